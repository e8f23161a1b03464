"""How well SEAM's differences of gradients estimate the gradient that they stand for, at this very checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from immunelab.method import Evaluation, Metric, Tokens, knob, register
from immunelab.training import coupling
from immunelab.training import gradients as g
from immunelab.training.generation import Measured, Score, Subject, one_phrasing
from immunelab.training.losses import Scored
from immunelab.training.models import deterministic

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EPSILONS = tuple(10 ** (-k / 2) for k in range(1, 13))  # 0.3 … 1e-6, two a decade
PRECISIONS = ("fp32", "bf16")


@register("evaluation")
@dataclass(frozen=True, kw_only=True)
class EstimatorError(Evaluation):
    """error(ε) = ‖d(ε) − ∇L_sd‖ / ‖∇L_sd‖, with L_sd = cos(g_a, g_b) and d(ε) its estimate by differences.

    ∇L_sd is taken exactly, by double backward on fp32 weights (arXiv:2505.12186 estimates it). `bf16` rounds the
    weights first, as the released code does. Scores: `estimator_error`, `estimator_cosine` with ∇L_sd, and
    `estimator_displacement` ‖θ′−θ‖/ε; the split names precision and ε, n counts the rows of both minibatches.
    """

    name: ClassVar[str] = "estimator-error"
    title: ClassVar[str] = "Error of SEAM's gradient estimate against ε"
    paper: ClassVar[str] = "arXiv:2505.12186"
    streams: ClassVar[tuple[str, ...]] = ("harmful", "benign")
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("estimator_error", "relative error of SEAM's estimate of its coupling's gradient", unit="", main=False),
        Metric("estimator_cosine", "cosine of that estimate and the exact gradient", unit="", main=False),
        Metric(
            "estimator_displacement", "distance to the weights that the estimate looks at, over ε", unit="", main=False
        ),
    )

    rows: int = knob(8, "held-out rows of each stream in the minibatch", low=1, high=1024)

    def in_fp32(self) -> str:
        """It rounds the weights itself, and compares with what they were."""
        return "its reference is the exact gradient at weights in fp32. Use dtype fp32."

    def prompts(self, subject: Subject) -> list[str]:
        """None: nothing is asked, only gradients are taken."""
        return []

    def measure(self, subject: Subject) -> Measured:
        """Every ε at both precisions; the weights are put back bit for bit."""
        harmful, benign = (Scored(self._tokens(subject, stream)) for stream in self.streams)
        n = len(harmful.tokens.input_ids) + len(benign.tokens.input_ids)
        return Measured([s._replace(n=n) for s in _errors(subject.model, harmful, benign)], [])

    def _tokens(self, subject: Subject, stream: str) -> Tokens:
        rows = one_phrasing(subject.rows(stream, "test"))[: self.rows]
        tokens: Tokens = subject.collated([(row.prompt, row.response) for row in rows])
        return tokens


def _errors(model: PreTrainedModel, harmful: Scored, benign: Scored) -> Iterator[Score]:
    weights = g.trainable(model)
    with deterministic(model), torch.autocast(model.device.type, enabled=False):
        exact, _ = coupling.gradient(model, weights, harmful, benign, epsilon=None)
        length = float(g.norm(exact))
        for precision in PRECISIONS:
            rounded = g.cast(list(model.parameters()), torch.bfloat16) if precision == "bf16" else nullcontext()
            with rounded:
                for epsilon in EPSILONS:
                    found, traced = coupling.gradient(model, weights, harmful, benign, epsilon=epsilon)
                    estimate = [x.float() for x in found]
                    split = f"{precision}:{epsilon:.3g}"
                    error = float(g.norm(g.combine((1.0, estimate), (-1.0, exact)))) / length
                    yield Score("estimator_error", split, error, 0, 0.0)
                    yield Score("estimator_cosine", split, float(g.cosine(estimate, exact)), 0, 0.0)
                    yield Score("estimator_displacement", split, traced["estimator/displacement"], 0, 0.0)
