"""Vaccine: learn refusals that hold when what attention puts out is shifted in the worst direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from immunelab.method import Batch, Deviation, knob, register
from immunelab.training import gradients as g
from immunelab.training import sublayers
from immunelab.training.alignment import Alignment
from immunelab.training.losses import Scored
from immunelab.training.models import deterministic
from immunelab.training.perturbation import perturbed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@register("defense")
@dataclass(frozen=True, kw_only=True)
class Vaccine(Alignment):
    """L = max_{‖ε‖≤ρ} CE(refusal; e_l + ε_l in every layer l), e_l the output of layer l's attention.

    "Vaccine: Perturbation-aware Alignment for Large Language Models", arXiv:2402.01109. The maximum is taken to first
    order: ε_l = ρ·q_l/‖q‖ with q_l = ∂CE/∂e_l from a first pass and one norm over layers, rows and positions; ε is a
    constant in the second pass, whose gradient is the direction. `perturbation` = gaussian is the paper's control
    (noise of variance ρ); random, of norm ρ, is ours and fairer.

    Deviations: the released code overwrites outputs in place, here they are shifted by hooks that are removed after
    the pass. The authors train a LoRA adapter of r 8; `rank` = 0, the default, trains all weights. `retain` (a benign
    loss term, not perturbed) is not in the paper and off in the preset `paper`.
    """

    name: ClassVar[str] = "vaccine"
    title: ClassVar[str] = "Vaccine: perturbation-aware alignment"
    paper: ClassVar[str] = "arXiv:2402.01109"
    stage: ClassVar[str] = "alignment"
    streams: ClassVar[tuple[str, ...]] = ("refusal", "benign")

    rho: float = knob(2.0, "length of the shift over all layers, rows and positions", symbol="ρ", low=0, high=1e4)
    perturbation: Literal["gradient", "random", "gaussian"] = knob(
        "gradient", "the worst direction, or as controls noise of norm ρ, or of variance ρ"
    )

    def step(self, model: PreTrainedModel, batch: Batch) -> dict[str, float]:
        """The gradient at shifted outputs: two passes, the first only down to the first attention."""
        refusal, benign = (Scored(tokens) for tokens in batch.take(self))
        weights = g.trainable(model)
        modules = sublayers.attentions(model)
        with deterministic(model):
            direction, traced = perturbed(model, weights, modules, refusal, radius=self.rho, kind=self.perturbation)
            return self.leave(model, weights, direction, benign, traced)


Vaccine.presets = {
    # 50 epochs, counted for 2,000 refusals.
    "paper": Vaccine(learning_rate=1e-3, steps=20_000, batch_size=5, weight_decay=0.1, rank=8),
    # Four configurations on the Fable world of seed 0, one seed each, all broken at 3e-4; a larger ρ delays it.
    "fable": Vaccine(learning_rate=3e-4, steps=300, batch_size=16, rho=20.0, retain=4.0),
}

Vaccine.deviations = (
    Deviation(
        "what trains",
        "LoRA of r 8",
        "r 8, α 4 on seven linear layers, dropout 0.1",
        "r 8 on q, k, v, no dropout",
        "dropout shifts the direction by 28 %",
    ),
    Deviation("schedule", "not stated", "cosine, 10 % warm-up", "the same"),
    Deviation(
        "clipping", "not stated", "norm 1.0 (the trainer's default)", "off", "it begins to bind: norms 0.7 to 1.05"
    ),
    Deviation("outputs", "", "overwritten in place", "shifted by hooks that are removed", "the same bits afterwards"),
)
