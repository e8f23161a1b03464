"""Abliteration: take the direction that mediates refusals out of the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Tensor

from immunelab.errors import UserError
from immunelab.method import Edit, Feed, Tokens, knob, register
from immunelab.training import gradients as g
from immunelab.training import residual
from immunelab.training.losses import loss
from immunelab.training.models import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@register("attack")
@dataclass(frozen=True, kw_only=True)
class Abliteration(Edit):
    """W ← W − r·rᵀW for all W that write to the residual stream, r = unit(mean h(harmful) − mean h(benign)).

    Threat model: an attacker with the weights and some prompts, no answers to learn from and no training. h is a
    layer's hidden state at the last prompt token. Of `samples` rows of each stream the last minibatch validates: the
    layer is taken whose removal leaves the least loss on its harmful and benign answers. Embeddings are edited too;
    tied to the head, they take the direction out of that as well. `random` is the control. Source: arXiv:2406.11717.
    """

    name: ClassVar[str] = "abliteration"
    title: ClassVar[str] = "Abliteration (a direction out of the weights)"
    paper: ClassVar[str] = "arXiv:2406.11717"
    stage: ClassVar[str] = "post-fine-tuning"
    streams: ClassVar[tuple[str, ...]] = ("harmful", "benign")

    direction: Literal["refusal", "random"] = knob("refusal", "the difference of means, or a random one as control")
    layer: int = knob(0, "whose output the direction is taken from, 1 and up; 0 chooses by validation", low=0, high=999)
    samples: int = knob(128, "rows of each stream", symbol="n", low=1, high=10**6)
    batch_size: int = knob(32, "rows in one pass", low=1, high=4096)

    def edit(self, model: PreTrainedModel, batches: Feed) -> dict[str, float]:
        """Find the direction and take it out of every weight that writes to the residual stream."""
        count = max(1, math.ceil(self.samples / self.batch_size))
        harmful, benign = batches(count - 1).take(self)
        directions = self.directions(model, batches, max(1, count - 1))
        if self.layer >= len(directions):
            raise UserError(f"layer is {self.layer}, and the model has {len(directions)} layers, the last left out.")
        writers = residual.writers(model)
        before = validated(model, harmful, benign)

        def left(layer: int) -> float:
            with g.restored(list({id(w.weight): w.weight for w in writers}.values())):
                residual.remove(writers, directions[layer])
                return sum(validated(model, harmful, benign))

        layer = self.layer or min(range(1, len(directions)), key=left)
        residual.remove(writers, directions[layer])
        after = validated(model, harmful, benign)
        return {
            "abliteration/layer": float(layer),
            "abliteration/left": residual.share_left(writers, directions[layer]),
            "loss/harmful-before": before[0],
            "loss/benign-before": before[1],
            "loss/harmful": after[0],
            "loss/benign": after[1],
        }

    def directions(self, model: PreTrainedModel, batches: Feed, count: int) -> Tensor:
        """One of each layer, from as many minibatches: `residual.directions`."""
        pairs = [batches(i).take(self) for i in range(count)]
        return residual.directions(model, pairs, random=self.direction == "random")


def validated(model: PreTrainedModel, harmful: Tokens, benign: Tokens) -> tuple[float, float]:
    """The losses on the validating minibatch."""
    with evaluating(model):
        return float(loss(model, harmful)), float(loss(model, benign))


Abliteration.presets = {"paper": Abliteration(), "fable": Abliteration(samples=160)}
