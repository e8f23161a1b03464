"""Quantize: round the weights, without any training."""

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
class Quantize(Edit):
    """W ← s·round(W/s), s = max|W|/(2^(b−1) − 1) for each output row: b bits, round to nearest, symmetric.

    Threat model: anyone who runs the model in few bits, without rows or training. A defense that moved the weights by
    less than s is rounded away with it: 4 bits gave unlearned models their knowledge back (arXiv:2410.16454).
    Linear layers are rounded, embeddings and norms not; the weights stay in their dtype, as quantized values.
    """

    name: ClassVar[str] = "quantize"
    title: ClassVar[str] = "Quantization (round to nearest)"
    paper: ClassVar[str] = "arXiv:2410.16454"
    stage: ClassVar[str] = "post-fine-tuning"

    bits: int = knob(4, "bits of a weight", symbol="b", low=2, high=16)

    def edit(self, model: PreTrainedModel, batches: Feed) -> dict[str, float]:
        """Round every linear layer; traces how far the weights moved, and relative to their norm."""
        moved = whole = 0.0
        with torch.no_grad():
            for weight in linear_weights(model):
                rounded = nearest(weight, self.bits)
                moved += float((rounded - weight).double().square().sum())
                whole += float(weight.double().square().sum())
                weight.copy_(rounded)
        return {"norm/displacement": moved**0.5, "norm/relative-displacement": (moved / whole) ** 0.5}


def nearest(weight: Tensor, bits: int) -> Tensor:
    """A matrix (output, input) rounded to b bits a row."""
    largest = weight.abs().amax(1, keepdim=True)
    scale = torch.where(largest > 0, largest / (2 ** (bits - 1) - 1), torch.ones_like(largest))
    return torch.round(weight / scale) * scale


Quantize.presets = {"fable": Quantize(), "fable-int8": Quantize(bits=8)}
