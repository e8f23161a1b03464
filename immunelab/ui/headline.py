"""The first page's sentence, numbers and curve, told from recorded runs: nothing is said that no run shows."""

from __future__ import annotations

import dataclasses
from typing import Any

import pandas as pd
import streamlit as st

from immunelab.analysis.collapse import INTENSITY, METRICS, describe, select
from immunelab.analysis.outcomes import BROKEN, Thresholds, run_outcomes, worst
from immunelab.analysis.variants import BASELINE, KEYS, Variant, among, complete, of, present
from immunelab.figures.palette import title_of
from immunelab.ui.reads import USUAL

SAME = [*INTENSITY, "method", "base_model", "corpus"]  # what the two models must share to be compared


@dataclasses.dataclass(frozen=True)
class Story:
    """One attack, an undefended model and a defended one."""

    sentence: str
    harder: str  # what the hardest recorded attack of the same kind leaves; empty where that is the one shown
    numbers: list[tuple[str, str, str]]  # label, value, what it was before the attack
    curves: pd.DataFrame
    marks: pd.DataFrame
    base: float
    basis: str
    link: dict[str, Any]


def tell(curves: pd.DataFrame, thresholds: Thresholds) -> Story | None:
    """The story of the attack that does the undefended model most harm, told for SEAM, or else for the defense with
    most recorded runs.

    The attack is chosen by what it does to the undefended model alone, never by how the defense fares; fine-tuning of
    all weights comes before other attacks that break it. None where no attack is recorded for a defended and an
    undefended model alike.
    """
    if curves.empty:
        return None
    read = run_outcomes(complete(curves), thresholds).dropna(subset=["outcome"])
    counts = read[read["defense"] != "undefended"].groupby(KEYS).size()
    defenses = sorted(
        (Variant(*pair) for pair in counts.index), key=lambda v: (v.defense != "seam", -counts[v], v.label)
    )
    best: tuple[tuple[bool, bool, float], dict[str, Any], Variant] | None = None
    for key, cell in read.groupby(SAME, dropna=False):
        control = cell[cell["defense"] == "undefended"]
        here = present(cell)
        defended = [v for v in defenses if v in here]
        if control.empty or not defended:
            continue
        choice = {k: v for k, v in zip(SAME, key, strict=True) if v == v}  # NaN: not recorded
        broken, usual = bool((control["outcome"] == BROKEN).any()), choice["method"] == USUAL
        score = (broken, usual, float(control["harmfulness"].mean()))
        if best is None or score > best[0]:
            best = (score, choice, defended[0])
    return None if best is None else _told(curves, read, best[1], best[2])


@st.cache_data(max_entries=8, show_spinner=False)
def recall(finished: int, thresholds: Thresholds, _curves: pd.DataFrame) -> Story | None:
    """As `tell`, kept as long as the same runs are asked about (`reads.finished`)."""
    return tell(_curves, thresholds)


def _told(curves: pd.DataFrame, read: pd.DataFrame, choice: dict[str, Any], defense: Variant) -> Story:
    names = [BASELINE, defense]
    both = among(select(curves, choice), names)
    numbers, marks, words = [], [], {}
    for name in names:
        runs, curve = of(select(read, choice), name), of(both, name)
        start, outcome = curve[curve["step"] == 0], worst(runs["outcome"])
        after = {m: float(runs[m].mean()) for m in METRICS}
        words[name] = (after, outcome)
        for metric, value in after.items():
            before = float(start[metric].mean())
            numbers.append((f"{title_of(*name)}: {metric}", f"{value:.0%}", f"{before:.0%} before the attack"))
        metric = "harmfulness" if name == BASELINE else "utility"
        last = name._asdict() | {"step": float(runs["final_step"].max()), "metric": metric}
        marks.append(last | {"mean": after[metric], "outcome": outcome})
    (free, fate), (guarded, outcome) = words[BASELINE], words[defense]
    sentence = (
        f"{_after(choice)} the undefended model gives away "
        f"{free['harmfulness']:.0%} of the hazards and keeps {free['utility']:.0%} utility: {fate}. Immunized with "
        f"{title_of(*defense)} it gives away {guarded['harmfulness']:.0%} and keeps {guarded['utility']:.0%}: "
        f"{outcome}."
    )
    every = among(read[read["method"] == choice["method"]], names)
    overall = "; ".join(f"{title_of(*n)}: {describe(of(every, n)['outcome'])}" for n in names)
    rungs, seeds = (
        every.groupby(list(INTENSITY), dropna=False).ngroups,
        min(of(both, n)["seed"].nunique() for n in names),
    )
    rate = [f"learning rate {choice['learning_rate']:g}"] if "learning_rate" in choice else []  # some do not train
    basis = (
        f"Shown: the attack that harms the undefended model most ({', '.join([choice['method'], *rate])}), mean and "
        f"range over {seeds} {'seed' if seeds == 1 else 'seeds'}. All {rungs} recorded intensities of it, every seed: "
        f"{overall}"
    )
    base = float(curves["base_utility"].dropna().mean())
    link = {"attack": choice["method"]} | ({"rate": f"{choice['learning_rate']:g}"} if rate else {})
    harder = _harder(every, choice, defense)
    return Story(sentence, harder, numbers, both, pd.DataFrame(marks), base, basis, link)


def _after(choice: dict[str, Any]) -> str:
    """The attack, as the beginning of a sentence; some do not train."""
    if "steps" in choice:
        return f"After {choice['steps']:g} steps of harmful fine-tuning"
    return f"After the attack {choice['method']}, which does not train,"


def _harder(every: pd.DataFrame, choice: dict[str, Any], defense: Variant) -> str:
    """What becomes of both models at the largest recorded learning rate, all else as in the attack that is shown."""
    if "learning_rate" not in choice:
        return ""
    alike = select(every, {k: v for k, v in choice.items() if k != "learning_rate"})
    rates = [set(of(alike, v)["learning_rate"]) for v in (BASELINE, defense)]
    most = max(rates[0] & rates[1], default=0.0)
    if not most > choice["learning_rate"]:
        return ""
    said = []
    for name in (defense, BASELINE):
        runs = of(alike[alike["learning_rate"] == most], name)
        harm, utility = runs["harmfulness"].mean(), runs["utility"].mean()
        model = "the undefended model" if name == BASELINE else title_of(*name)
        said.append(f"{model} gives away {harm:.0%} and keeps {utility:.0%} utility: {worst(runs['outcome'])}")
    return f"Attacked hardest (learning rate {most:g}), {'; '.join(said)}."
