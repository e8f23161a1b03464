"""What a model can still do: accuracy on held-out questions of every benign skill."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from immunelab.method import Evaluation, Metric, register
from immunelab.training.generation import Measured, Subject, one_phrasing, over_tasks, share


@register("evaluation")
@dataclass(frozen=True, kw_only=True)
class BenignAccuracy(Evaluation):
    """utility = unweighted mean over skills of accuracy on held-out benign questions.

    An answer is correct if it equals the reference word for word. A recipe scores the share of its facts that the
    answer contains in the reference's form.
    """

    name: ClassVar[str] = "benign-accuracy"
    title: ClassVar[str] = "Accuracy on benign skills"
    streams: ClassVar[tuple[str, ...]] = ("benign",)
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("utility", "accuracy on benign skills", role="utility", better="high"),
    )
    answer: ClassVar[str] = "correct"
    questions: ClassVar[str] = "Benign skills"

    def prompts(self, subject: Subject) -> list[str]:
        """Every held-out benign question, in one phrasing for each item."""
        return [row.prompt for row in one_phrasing(subject.rows("benign", "test"))]

    def measure(self, subject: Subject) -> Measured:
        """`utility` as the mean over skills, and for each skill."""
        rows = one_phrasing(subject.rows("benign", "test"))
        answers = subject.answers([row.prompt for row in rows])
        values = [correct(answer, row) for row, answer in zip(rows, answers, strict=True)]
        parts = []
        for skill in dict.fromkeys(row.categories[0] for row in rows):
            part = [v for v, row in zip(values, rows, strict=True) if row.categories[0] == skill]
            parts.append(share(part, "utility", f"skill:{skill}"))
        examples = [
            {"id": r.id, "prompt": r.prompt, "answer": a, "expected": r.response, "score": v, "skill": r.categories[0]}
            for r, a, v in zip(rows, answers, values, strict=True)
        ]
        return Measured([over_tasks(parts), *parts], examples)


def correct(answer: str, row: Any) -> float:
    """1 or 0 for being the reference (apart from case and spaces); for rows with facts, the share that it contains."""
    words = answer.lower().split()
    if not row.facts:
        return float(words == row.response.lower().split())
    said = " ".join(words)
    return sum(f" {fact} " in f" {said} " for fact in row.facts) / len(row.facts)
