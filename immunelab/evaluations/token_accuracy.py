"""How well a model still predicts benign answers, token by token: a utility for answers of any length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from immunelab.method import Evaluation, Metric, register
from immunelab.training.generation import Measured, Subject, in_passes, one_phrasing, parts, share
from immunelab.training.losses import forward
from immunelab.training.models import evaluating

ROWS = 16  # rows in one forward pass, or fewer
IGNORED = -100


@register("evaluation")
@dataclass(frozen=True, kw_only=True)
class TokenAccuracy(Evaluation):
    """utility = mean over held-out benign answers of the share of tokens t with argmax p(· | question, a_<t) = a_t.

    The reference up to each token is given (teacher forcing), so that answers of any length can be measured. It is
    higher than what the model reaches by itself, and its floor is above 0: frequent words are often right by chance.
    Read it beside coherence and against the undefended model. Rows count alike, whatever their length.
    """

    name: ClassVar[str] = "token-accuracy"
    title: ClassVar[str] = "Tokens of benign answers predicted"
    streams: ClassVar[tuple[str, ...]] = ("benign",)
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "utility", "the share of tokens of benign answers that the model predicts", role="utility", better="high"
        ),
    )
    answer: ClassVar[str] = "of the reference's tokens predicted"

    def prompts(self, subject: Subject) -> list[str]:
        """None: references are read, nothing is asked."""
        return []

    def measure(self, subject: Subject) -> Measured:
        """`utility` over all rows and by category."""
        rows = one_phrasing(subject.rows("benign", "test"))
        values: list[float] = []
        for start in range(0, len(rows), ROWS):
            values += predicted(subject, [(row.prompt, row.response) for row in rows[start : start + ROWS]])
        examples: list[dict[str, Any]] = [
            {"id": r.id, "prompt": r.prompt, "answer": "", "expected": r.response, "score": v}
            for r, v in zip(rows, values, strict=True)
        ]
        return Measured([share(values, "utility"), *parts(values, rows, "utility", "skill")], examples)


def predicted(subject: Subject, pairs: list[tuple[str, str]]) -> list[float]:
    """For each (question, answer): the share of the answer's tokens that are the most likely next ones."""
    shares: list[float] = []
    for tokens in in_passes(subject.model, subject.collated(pairs)):
        with evaluating(subject.model):
            likeliest = forward(subject.model, tokens)[0][:, :-1].argmax(-1)
        wanted = tokens.labels[:, 1:]
        scored = wanted != IGNORED
        right = ((likeliest == wanted) & scored).sum(1)
        shares += [float(x) for x in right / scored.sum(1).clamp(min=1)]
    return shares
