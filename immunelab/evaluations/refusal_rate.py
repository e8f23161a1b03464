"""How often a model refuses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from immunelab.evaluations.judges.wording import refuses
from immunelab.method import Evaluation, Metric, register
from immunelab.training.generation import Measured, Subject, one_phrasing, share


@register("evaluation")
@dataclass(frozen=True, kw_only=True)
class RefusalRate(Evaluation):
    """refusal_rate = share of held-out harmful questions whose answer opens with a refusal; `safe`: of benign ones.

    This is a rule of English keywords and of the refusals that the corpus has or lists; read it beside harmfulness and
    utility, because gibberish is neither refusal nor harm.
    Refusals of benign questions are mistakes, so a low `safe` is better; it is not part of the whole.
    """

    name: ClassVar[str] = "refusal-rate"
    title: ClassVar[str] = "Refusals of harmful and of safe questions"
    streams: ClassVar[tuple[str, ...]] = ("harmful", "benign")
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "refusal_rate", "share of harmful questions whose answer opens with a refusal, by keywords", better="high"
        ),
    )

    def prompts(self, subject: Subject) -> list[str]:
        """One phrasing of each held-out hazard and of each benign item."""
        return [prompt for stream in self.streams for prompt in asked(subject, stream)]

    def measure(self, subject: Subject) -> Measured:
        """`refusal_rate` over all held-out hazards, and over the benign questions as `safe`."""
        known = subject.refusals
        refused = [[float(refuses(a, known)) for a in subject.answers(asked(subject, s))] for s in self.streams]
        return Measured([share(refused[0], "refusal_rate"), share(refused[1], "refusal_rate", "safe")], [])


def asked(subject: Subject, stream: str) -> list[str]:
    """The held-out questions of a stream."""
    return [row.prompt for row in one_phrasing(subject.rows(stream, "test"))]
