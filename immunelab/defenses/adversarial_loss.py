"""Immunization adversarial loss: refuse, and ascend on the harmful answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from immunelab.method import Batch, Defense, Deviation, knob, register
from immunelab.training.losses import scored
from immunelab.training.objective import Ascent, CrossEntropy, Objective, minimize

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@register("defense")
@dataclass(frozen=True, kw_only=True)
class AdversarialLoss(Defense):
    """L = CE_m(refusal) − α·CE_m(harmful), m the tokens in which a pair differs.

    "Immunization against harmful fine-tuning attacks", arXiv:2402.16382, as in its authors' code. The harmful loss is
    unbounded above: a run stops at the first scalar that is not finite. `ascent` = layerwise is the variant
    L = CE_m(refusal) − α·log(1 + S/|H|) that SEAM and RepNoise use.

    Not in the paper, and off in the preset `paper`: `retain`, a benign loss term.
    """

    name: ClassVar[str] = "adversarial-loss"
    title: ClassVar[str] = "Immunization adversarial loss"
    paper: ClassVar[str] = "arXiv:2402.16382"
    stage: ClassVar[str] = "alignment"
    streams: ClassVar[tuple[str, ...]] = ("harmful", "refusal", "benign")

    alpha: float = knob(0.1, "weight of the ascent on harmful answers", symbol="α", low=0, high=100)
    ascent: Literal["loss", "layerwise"] = knob("loss", "what is ascended: the loss, or its logarithm over layers")
    mask: Literal["official", "response"] = knob("official", "tokens scored: where the pair differs, or the answer")
    retain: float = knob(0.0, "weight of a benign loss term (extension)", low=0, high=100)

    def objective(self, batch: Batch) -> Objective:
        """L, and the benign term if there is one."""
        harmful, refusal, benign = scored(self, batch, self.mask)
        wanted = CrossEntropy(refusal) + self.alpha * Ascent(harmful, on=self.ascent)
        return wanted + self.retain * CrossEntropy(benign) if self.retain else wanted

    def step(self, model: PreTrainedModel, batch: Batch) -> dict[str, float]:
        """∇L: two forward passes, one backward; a third forward pass for the benign term."""
        return minimize(model, self.objective(batch))


AdversarialLoss.presets = {
    # "For Llama-2" in the released code; the released model: rate 1e-5, 4 epochs of 10K rows in batches of 4.
    "paper": AdversarialLoss(learning_rate=1e-5, steps=10_000, batch_size=4, samples=10_000),
    # Searched on the Fable world of seed 0 (eight configurations, one seed each). Without the retain term it loses
    # half of its utility before any attack, or is broken at every rung.
    "fable": AdversarialLoss(learning_rate=3e-4, steps=300, batch_size=16, alpha=0.1, clip=1.0, retain=3.0),
    # Not tuned.
    "fable-layerwise": AdversarialLoss(
        learning_rate=3e-4, steps=300, batch_size=16, alpha=0.3, clip=1.0, retain=3.0, ascent="layerwise"
    ),
}

AdversarialLoss.deviations = (
    Deviation("padding", "", "trained as a label where one text has ended", "masked", "a bug there"),
    Deviation("rows and epochs", "10,000 rows, 4 epochs", "the same", "the same in `paper`"),
    Deviation("ascent", "layer-wise: log of the mean loss", "the same", "layer-wise: log(1 + S/|H|), as SEAM"),
)
