"""Prune: set the smallest weights to zero, without any training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from immunelab.method import Edit, Feed, knob, register
from immunelab.training.sublayers import linear_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@register("attack")
@dataclass(frozen=True, kw_only=True)
class Prune(Edit):
    """W_ij = 0 where |W_ij| is among the smallest share s of its output row: magnitude pruning.

    Threat model: anyone who has the weights, without rows or training. What keeps a model safe sits in few weights
    (arXiv:2402.05162); a defense in small ones goes first. Linear layers are pruned, embeddings and norms not.
    """

    name: ClassVar[str] = "prune"
    title: ClassVar[str] = "Magnitude pruning"
    paper: ClassVar[str] = "arXiv:2402.05162"
    stage: ClassVar[str] = "post-fine-tuning"

    share: float = knob(0.3, "share of each row's weights that is set to 0", symbol="s", low=0, high=1)

    def edit(self, model: PreTrainedModel, batches: Feed) -> dict[str, float]:
        """Prune every linear layer; traces the share of weights that is 0, and how far the weights moved."""
        moved, zeros, count = 0.0, 0, 0
        with torch.no_grad():
            for weight in linear_weights(model):
                kept = pruned(weight, self.share)
                moved += float((kept - weight).double().square().sum())
                zeros, count = zeros + int((kept == 0).sum()), count + kept.numel()
                weight.copy_(kept)
        return {"prune/share": zeros / count, "norm/displacement": moved**0.5}


def pruned(weight: Tensor, share: float) -> Tensor:
    """A matrix (output, input) without the smallest share of each row."""
    out = round(share * weight.shape[1])
    if not out:
        return weight.clone()
    smallest = weight.abs().topk(out, dim=1, largest=False).indices
    return weight.scatter(1, smallest, 0.0)


Prune.presets = {"fable": Prune(), "fable-half": Prune(share=0.5)}
