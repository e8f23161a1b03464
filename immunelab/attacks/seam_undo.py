"""SEAM undone: pull the coupling of benign and harmful gradients back up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from immunelab.method import Attack, Batch, knob, register
from immunelab.training.gradients import NEEDS_FP32
from immunelab.training.losses import scored
from immunelab.training.objective import CrossEntropy, GradientCosine, Objective, minimize

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@register("attack")
@dataclass(frozen=True, kw_only=True)
class SeamUndo(Attack):
    """L = −β·cos(g_a, g_b) + μ·CE(benign) + λ·CE(harmful): SEAM's coupling with the sign of β turned.

    Threat model: an attacker with the weights who knows that SEAM was used, and first makes harmful and benign
    gradients point the same way again. With λ = 0 this only undoes; then attack the checkpoint with `harmful-sft`
    (`--model run:last`). Source: arXiv:2505.12186 names the adaptive attack; μ and λ are ours. Six passes become four.
    """

    name: ClassVar[str] = "seam-undo"
    title: ClassVar[str] = "SEAM undone (negative β)"
    paper: ClassVar[str] = "arXiv:2505.12186"
    stage: ClassVar[str] = "fine-tuning"
    streams: ClassVar[tuple[str, ...]] = ("harmful", "benign")

    beta: float = knob(0.01, "how hard the cosine is pulled up", symbol="β", low=0, high=100)
    epsilon: float = knob(
        1e-3, "how far the weights are shifted for the estimate", symbol="ε", low=1e-8, high=1, log=True
    )
    coupling_clip: float = knob(0.0, "largest norm of β·∇cos; 0 is off", low=0, high=1e6)
    mu: float = knob(1.0, "weight of the benign loss", symbol="μ", low=0, high=100)
    harm: float = knob(0.0, "weight of the harmful loss", symbol="λ", low=0, high=100)

    def objective(self, batch: Batch) -> Objective:
        """L of one minibatch each of `harmful` and `benign`."""
        harmful, benign = scored(self, batch)
        cosine = GradientCosine(harmful, benign, epsilon=self.epsilon, largest=self.coupling_clip)
        return -self.beta * cosine + self.mu * CrossEntropy(benign) + self.harm * CrossEntropy(harmful)

    def step(self, model: PreTrainedModel, batch: Batch) -> dict[str, float]:
        """∇L; that of the cosine is estimated as SEAM does."""
        return minimize(model, self.objective(batch))

    def in_fp32(self) -> str:
        """As for SEAM, whose estimate it takes."""
        return NEEDS_FP32 if self.beta else ""


SeamUndo.presets = {
    "paper": SeamUndo(),
    "fable": SeamUndo(learning_rate=3e-4, steps=60, batch_size=8, samples=120, beta=1.0, coupling_clip=1.0),
}
