"""Accuracy on labelled tasks such as SST-2, AG News and GSM8K: before a fine-tuning (ZS) and after it (FS)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from immunelab.errors import UserError
from immunelab.evaluations.judges.labels import named, number, worked
from immunelab.evaluations.judges.wording import CHARACTER, WORD
from immunelab.method import Evaluation, Metric, register
from immunelab.training.generation import Measured, Score, Subject, one_phrasing, over_tasks, share

LONGEST = 6  # words of a label


@register("evaluation")
@dataclass(frozen=True, kw_only=True)
class TaskAccuracy(Evaluation):
    """utility = unweighted mean over tasks of the share of held-out questions whose answer names the right label.

    A row's task is its category; its label is the whole reference, or the number after `####`. `utility` reads answers
    charitably: the label that one names first, or its last number if it has no `####`. `strict_accuracy` follows
    released codes: the bare label, or the number after `####`. `chance` is the share of the most frequent label. At
    step 0 this is what papers call ZS, after a fine-tuning on the task FS.
    """

    name: ClassVar[str] = "task-accuracy"
    title: ClassVar[str] = "Accuracy on labelled tasks (ZS, FS)"
    streams: ClassVar[tuple[str, ...]] = ("benign",)
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("utility", "accuracy on labelled tasks", role="utility", better="high"),
        Metric(
            "strict_accuracy", "accuracy on labelled tasks by the rule of released codes", better="high", main=False
        ),
        Metric("chance", "share of the commonest label", main=False),
    )
    answer: ClassVar[str] = "correct"

    def prompts(self, subject: Subject) -> list[str]:
        """Every held-out benign question."""
        return [row.prompt for row in one_phrasing(subject.rows("benign", "test"))]

    def measure(self, subject: Subject) -> Measured:
        """`utility`, `strict_accuracy` and `chance`: of each task, and their means over tasks."""
        rows = one_phrasing(subject.rows("benign", "test"))
        answers = subject.answers([row.prompt for row in rows])
        scores: dict[str, list[Score]] = {"utility": [], "strict_accuracy": [], "chance": []}
        examples: list[dict[str, Any]] = []
        for task in dict.fromkeys(row.categories[0] for row in rows):
            mine = [(row, a) for row, a in zip(rows, answers, strict=True) if row.categories[0] == task]
            labels = _labels(task, [row.response for row, _ in mine])
            right = [(_charitable(a, r.response, labels), _strict(a, r.response)) for r, a in mine]
            for metric, values in zip(("utility", "strict_accuracy"), zip(*right, strict=True), strict=True):
                scores[metric].append(share(values, metric, f"task:{task}"))
            frequent = Counter(_key(row.response) for row, _ in mine).most_common(1)[0][1]
            scores["chance"].append(Score("chance", f"task:{task}", frequent / len(mine), len(mine), 0.0))
            examples += [
                {"id": r.id, "prompt": r.prompt, "answer": a, "expected": r.response, "score": v, "strict": s}
                for (r, a), (v, s) in zip(mine, right, strict=True)
            ]
        return Measured([each for parts in scores.values() for each in (over_tasks(parts), *parts)], examples)


def _labels(task: str, references: Sequence[str]) -> list[str]:
    """The labels of a task; a UserError if its answers are not labels."""
    found = list(dict.fromkeys(text for text in references if not worked(text)))
    longest = max(found, key=_length, default="")
    if _length(longest) > LONGEST:
        raise UserError(
            f"task-accuracy is for answers that are a label of at most {LONGEST} words or end in `#### number`, and "
            f"{task} has the answer {longest!r:.80}: use token-accuracy for it."
        )
    return found


def _length(text: str) -> float:
    """A text's words; where a script sets no spaces between them, half of its characters."""
    return sum(0.5 if CHARACTER.fullmatch(word) else 1.0 for word in WORD.findall(text))


def _key(reference: str) -> str | float | None:
    return number(reference, marked=True) if worked(reference) else _plain(reference)


def _charitable(answer: str, reference: str, labels: Sequence[str]) -> float:
    if worked(reference):
        return float(number(answer, marked=False) == number(reference, marked=True))
    said = named(answer, labels)
    return float(said is not None and _plain(said) == _plain(reference))


def _strict(answer: str, reference: str) -> float:
    if worked(reference):
        return float(number(answer, marked=True) == number(reference, marked=True))
    return float(_plain(answer) == _plain(reference))


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
