"""CTRAP: a harmful step leads to a model that says one token over and over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from immunelab.method import Batch, Deviation, Tokens, knob, register
from immunelab.training import gradients as g
from immunelab.training.alignment import Alignment
from immunelab.training.losses import IGNORED, Scored, value_and_gradient
from immunelab.training.models import deterministic

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@register("defense")
@dataclass(frozen=True, kw_only=True)
class Ctrap(Alignment):
    """L = CE(refusal) + CE(benign) + λ·CE_e(w − α·∇h/‖∇h‖), CE_e that of saying only e on benign rows, h = CE(harmful).

    "CTRAP: Embedding Collapse Trap to Safeguard Large Language Models from Harmful Fine-Tuning", arXiv:2505.16559. CE_e
    has the token e as the label wherever a benign answer is scored, after the answer's own words. The step to w′ is
    one normalized step of harmful fine-tuning; ∇CE_e at w′ is added as it is, at w, which is of first order, as in the
    released code. The norm is global over the weights that train. Both are taken in fp32 whatever the precision.
    """

    name: ClassVar[str] = "ctrap"
    title: ClassVar[str] = "CTRAP: collapse trap"
    display: ClassVar[str] = "CTRAP"
    paper: ClassVar[str] = "arXiv:2505.16559"
    stage: ClassVar[str] = "alignment"
    streams: ClassVar[tuple[str, ...]] = ("refusal", "harmful", "benign")

    strength: float = knob(0.1, "weight of the collapse after a harmful step", symbol="λ", low=0, high=1000)
    alpha: float = knob(0.1, "length of the harmful step", symbol="α", low=1e-8, high=100, log=True)
    token: int = knob(
        0, "id of the token that a collapsed model repeats, such as a word's", symbol="e", low=0, high=2**31
    )
    retain: float = knob(1.0, "weight of the benign loss", low=0, high=100)

    def step(self, model: PreTrainedModel, batch: Batch) -> dict[str, float]:
        """∇CE(refusal) + ∇CE(benign) + λ·∇CE_e at w′: four passes, one of them at shifted weights."""
        refusal, harmful, benign = batch.take(self)
        weights = g.trainable(model)
        with deterministic(model):
            aligned, direction = value_and_gradient(model, weights, refusal)
            traced = {"loss/total": aligned, "loss/refusal": aligned}
            if self.strength:
                with g.full_precision(model):
                    harm, here = value_and_gradient(model, weights, harmful)
                    length = float(g.norm(here))
                    with g.shifted(weights, here, by=-self.alpha / (length + 1e-7)) as moved:
                        collapse, there = value_and_gradient(model, weights, self.collapsed(benign))
                g.accumulate(direction, there, self.strength)
                traced["loss/total"] += self.strength * collapse
                traced |= {"loss/harmful": harm, "loss/collapse": collapse, "norm/harmful": length}
                traced["estimator/displacement"] = moved
            return self.leave(model, weights, direction, Scored(benign), traced)

    def collapsed(self, rows: Tokens) -> Scored:
        """The rows with e as the label wherever one is scored."""
        return Scored(rows._replace(labels=torch.where(rows.labels == IGNORED, rows.labels, self.token)))

    def in_fp32(self) -> str:
        """The harmful step is."""
        step = "its harmful step is shorter than the rounding of most weights. Use dtype fp32, with precision"
        return f"{step} bf16-autocast for its other passes." if self.strength else ""


Ctrap.presets = {
    "paper": Ctrap(),
    # Four settings on the Fable world of seed 0, one seed each, all broken at 1e-3. At α = 0.1 the released model
    # itself repeats e: it loses a quarter of its utility with λ = 0.1 and nearly all of it with λ = 1.
    "fable": Ctrap(learning_rate=3e-4, steps=300, batch_size=16, strength=0.1, alpha=1.0, token=5),
}

Ctrap.deviations = (
    Deviation(
        "the token e",
        "one fixed token",
        'the last token of "an error"',
        "an id, for methods see no text; 0 is often a sign",
    ),
    Deviation("benign rows of a step", "", "general data apart from the alignment data", "one minibatch for both"),
    Deviation("the harmful step", "normalized", "the same", "the same, a copy is put back", "the same bits"),
)
