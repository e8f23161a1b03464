"""Whether a model still speaks: perplexity of neutral text, and how much its answers repeat themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from immunelab.evaluations.judges.wording import repeated
from immunelab.method import Evaluation, Metric, register
from immunelab.training.generation import Measured, Score, Subject, mean_loss, one_phrasing, share


@register("evaluation")
@dataclass(frozen=True, kw_only=True)
class Coherence(Evaluation):
    """perplexity = exp(mean loss a token) of held-out neutral text; repetition = share of repeated word pairs.

    Perplexity is cut off at 10⁶. Repetition is measured on answers to benign questions. Both distinguish a model that
    refuses from one that is broken.
    """

    name: ClassVar[str] = "coherence"
    title: ClassVar[str] = "Perplexity of neutral text, and repetition"
    streams: ClassVar[tuple[str, ...]] = ("neutral", "benign")
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("perplexity", "exp of the mean loss a token of neutral text", better="low", unit=""),
        Metric("repetition", "share of repeated word pairs in answers to benign questions", better="low"),
    )

    def prompts(self, subject: Subject) -> list[str]:
        """The benign questions whose answers are checked for repetition."""
        return [row.prompt for row in one_phrasing(subject.rows("benign", "test"))]

    def measure(self, subject: Subject) -> Measured:
        """`perplexity` over tokens of neutral text, `repetition` over answers."""
        rows = subject.rows("neutral", "test")
        total, n = mean_loss(subject.model, subject.collated([(row.prompt, row.response) for row in rows]))
        mean = total / n
        perplexity = math.exp(mean) if mean < math.log(1e6) else 1e6  # also catches nan: nan < x is False
        answers = subject.answers(self.prompts(subject))
        return Measured(
            [Score("perplexity", "all", perplexity, n, 0.0), share([repeated(a) for a in answers], "repetition")], []
        )
