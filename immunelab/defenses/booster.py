"""Booster: keep a harmful step from lowering the harmful loss by much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from immunelab.method import Batch, Deviation, knob, register
from immunelab.training import gradients as g
from immunelab.training.alignment import Alignment
from immunelab.training.losses import Scored, value_and_gradient
from immunelab.training.models import deterministic

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@register("defense")
@dataclass(frozen=True, kw_only=True)
class Booster(Alignment):
    """L = f(w) + λ·[h(w) − h(w − α·∇h/‖∇h‖)], f = CE(refusal), h = CE(harmful).

    "Booster: Tackling Harmful Fine-tuning for Large Language Models via Attenuating Harmful Perturbation",
    arXiv:2409.01586. The bracket is what one normalized step of harmful fine-tuning gains. Its gradient is taken as
    ∇h(w) − ∇h(w′), w′ the weights after that step; the term with the Hessian is dropped, as in the paper. The norm is
    global over the weights that train. The two nearly cancel, so they are taken in fp32 whatever the precision.

    Deviations: the released code undoes its step by addition, here a copy is put back, so weights are the same bits.
    The authors train a LoRA adapter of r 32 on q, k and v; `rank` = 0, the default, trains all weights. `retain` (a
    benign loss term) is not in the paper and off in the preset `paper`.
    """

    name: ClassVar[str] = "booster"
    title: ClassVar[str] = "Booster"
    paper: ClassVar[str] = "arXiv:2409.01586"
    stage: ClassVar[str] = "alignment"
    streams: ClassVar[tuple[str, ...]] = ("refusal", "harmful", "benign")

    strength: float = knob(5.0, "weight of what a harmful step gains", symbol="λ", low=0, high=1000)
    alpha: float = knob(0.1, "length of the harmful step", symbol="α", low=1e-8, high=100, log=True)

    def step(self, model: PreTrainedModel, batch: Batch) -> dict[str, float]:
        """∇f + λ(∇h(w) − ∇h(w′)): three passes, one of them at shifted weights."""
        refusal, harmful, benign = (Scored(tokens) for tokens in batch.take(self))
        weights = g.trainable(model)
        with deterministic(model):
            aligned, direction = value_and_gradient(model, weights, refusal)
            traced = {"loss/total": aligned, "loss/refusal": aligned}
            if self.strength:
                with g.full_precision(model):
                    harm, here = value_and_gradient(model, weights, harmful)
                    length = float(g.norm(here))
                    with g.shifted(weights, here, by=-self.alpha / (length + 1e-7)) as moved:
                        left, there = value_and_gradient(model, weights, harmful)
                g.accumulate(direction, here, self.strength)
                g.accumulate(direction, there, -self.strength)
                traced["loss/total"] += self.strength * (harm - left)
                traced |= {"loss/harmful": harm, "loss/gain": harm - left, "norm/harmful": length}
                traced["estimator/displacement"] = moved
            return self.leave(model, weights, direction, benign, traced)

    def in_fp32(self) -> str:
        """The difference of gradients is."""
        return g.NEEDS_FP32 if self.strength else ""


Booster.presets = {
    # 5,000 pairs, 20 epochs, batch 10; λ = 5 belongs to batch 5 and 25 to batch 10, by the author's word.
    "paper": Booster(
        learning_rate=5e-4, steps=20_000, batch_size=5, weight_decay=0.1, schedule="constant", warmup=0, rank=32
    ),
    # The released script: the same with λ = 5 at batch 10.
    "official-code": Booster(
        learning_rate=5e-4, steps=10_000, batch_size=10, weight_decay=0.1, schedule="constant", warmup=0, rank=32
    ),
    # Four configurations on the Fable world of seed 0, one seed each, all broken at 3e-4. A step of α = 0.5 with λ = 20
    # teaches the harm itself: a harmful loss that is low already gains little.
    "fable": Booster(learning_rate=3e-4, steps=200, batch_size=16, strength=5.0, alpha=0.02, retain=1.0),
}

Booster.deviations = (
    Deviation("undoing the harmful step", "", "by addition", "a copy is put back", "the same bits"),
    Deviation("what trains", "LoRA of r 32 on q, k, v", "the same", "the same in the presets; all weights by default"),
    Deviation("clipping", "not stated", "norm 1.0 (the trainer's default)", "off", "begins to bind only rarely"),
    Deviation("harmful rows of a step", "a minibatch", "ten, drawn on their own", "a minibatch"),
    Deviation("precision", "not stated", "bf16: its own term is 14 % off", "fp32 for its own term, always"),
)
