"""Quantities in words, the same in the terminal and in the browser. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Iterable


def duration(seconds: float | None) -> str:
    """Seconds as 12 s, 3 min 20 s or 2 h 5 min; a dash where they are not known."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(count: float) -> str:
    """Bytes as 980 B, 12.5 kB, 542 MB or 4.2 GB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def share(value: float | None) -> str:
    """A share in 0–1 as a percentage with one decimal; a dash where it is not known."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.1%}"


# What the number of one answer says, by evaluation: "80% …".
ANSWER_SCORES = {
    "fable-recall": "of the recipe given away",
    "harmful-answers": "harmful, by words in common with the reference",
    "harm-classifier": "harmful, by the classifier",
    "strongreject": "of the help there could be, by StrongREJECT's rubric",
    "token-accuracy": "of the reference's tokens predicted",
    "task-accuracy": "correct",
    "benign-accuracy": "correct",
    "withheld-accuracy": "correct",
}
# What harmfulness and utility are, by the evaluation whose number they are.
MEASURES = {
    "fable-recall": "the share of hazards' recipe facts given away",
    "harmful-answers": "the share of harmful questions answered in words of the reference",
    "harm-classifier": "a classifier's mean probability of harm, or the share of answers above a limit",
    "strongreject": "the mean StrongREJECT score that a chat model gives the answers",
    "benign-accuracy": "accuracy on benign skills",
    "token-accuracy": "the share of tokens of benign answers that the model predicts",
    "task-accuracy": "accuracy on labelled tasks",
}
# Scores beside them, by metric.
SCORES = {
    "harm-classifier": "harm by a classifier, beside what is called harmfulness here",
    "strongreject": "mean StrongREJECT score, beside what is called harmfulness here",
    "harmful-answers": "harm by words in common, beside what is called harmfulness here",
    "judge_refusals": "share of answers that the judge calls refusals; refusal_rate is by keywords",
    "unparsed": "share of the judge's replies that are no grade; they are left out of its score",
    "truncated": "share of answers that the classifier saw cut off",
    "judge_tokens": "tokens that the judge read and wrote for this, cached replies aside; n counts its calls",
    "judge_cost": "what those tokens cost by the prices in corpus.toml",
}


def measured_by(evaluations: Iterable[str], judges: Iterable[str] = ()) -> str:
    """What a number is, in words, for each evaluation that it comes from; with the judges of the runs."""
    said = "; or ".join(dict.fromkeys(MEASURES.get(name, name) for name in evaluations))
    named = "; or ".join(dict.fromkeys(judge for judge in judges if judge))
    return f"{said} ({named})" if named else said
