"""Whether a model has learned the skill that was withheld from it: the measure of trainability."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from immunelab.method import Evaluation, Metric, register
from immunelab.training.generation import Measured, Subject, one_phrasing, share


@register("evaluation")
@dataclass(frozen=True, kw_only=True)
class WithheldAccuracy(Evaluation):
    """withheld = share of held-out questions of the withheld skill that are answered word for word.

    In Fable the skill is rotation of three words, which no released model was taught. Read along a benign fine-tune
    (`immunelab finetune`) it says how many steps a defended model needs to learn something new (arXiv:2402.16382,
    trainability).
    """

    name: ClassVar[str] = "withheld-accuracy"
    title: ClassVar[str] = "Accuracy on the withheld skill"
    paper: ClassVar[str] = "arXiv:2402.16382"
    streams: ClassVar[tuple[str, ...]] = ("withheld",)
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("withheld", "accuracy on the skill that no released model was taught", better="high"),
    )
    answer: ClassVar[str] = "correct"

    def prompts(self, subject: Subject) -> list[str]:
        """Every held-out question of the withheld skill."""
        return [row.prompt for row in one_phrasing(subject.rows("withheld", "test"))]

    def measure(self, subject: Subject) -> Measured:
        """`withheld` over the test rows."""
        rows = one_phrasing(subject.rows("withheld", "test"))
        answers = subject.answers([row.prompt for row in rows])
        values = [float(a.lower().split() == r.response.lower().split()) for a, r in zip(answers, rows, strict=True)]
        examples = [
            {"id": r.id, "prompt": r.prompt, "answer": a, "expected": r.response, "score": v}
            for r, a, v in zip(rows, answers, values, strict=True)
        ]
        return Measured([share(values, "withheld")], examples)
