"""Antidote: after a user's fine-tuning, a provider prunes the weights that harmful text makes the most of."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import nn

from immunelab.method import Feed, Memory, Service, knob, register
from immunelab.training import adapters
from immunelab.training import gradients as g
from immunelab.training.adapters import oriented
from immunelab.training.losses import forward
from immunelab.training.models import evaluating

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@register("defense")
@dataclass(frozen=True, kw_only=True)
class Antidote(Service):
    """W′ = W ⊙ (1 − M): M marks, in each row, the share of entries with the largest |W_ij|·‖X_j‖₂ on harmful text.

    "Antidote: Post-fine-tuning Safety Alignment for Large Language Models against Harmful Fine-tuning",
    arXiv:2408.09600 (not AntiDote, arXiv:2509.08000). The user's fine-tuning is left alone; X are the inputs of a layer
    on the provider's harmful rows, answers included and padding left out. It defends only where a *provider* runs the
    fine-tuning and serves the result: every evaluation and every checkpoint of such an attack is of the model pruned
    once, and training goes on from unpruned weights. Whoever has the weights of this run goes past it: they are as they
    were given. Through `lora-sft` the adapter's A and B are pruned and nothing else; in a fine-tuning of all weights
    the `targets`. As in the released code a row keeps ⌊columns·(1 − share)⌋ entries, so that rounding prunes at least
    one, and all masks are of the unpruned model. Its optional subtraction of a mask for safe text is not offered.
    The mask `random` is the control of equal density.
    """

    name: ClassVar[str] = "antidote"
    title: ClassVar[str] = "Antidote (provider-side)"
    paper: ClassVar[str] = "arXiv:2408.09600"
    stage: ClassVar[str] = "post-fine-tuning"
    assumes: ClassVar[str] = "a provider who runs the fine-tuning, has harmful rows, and serves the pruned model"
    streams: ClassVar[tuple[str, ...]] = ("harmful",)

    ratio: float = knob(0.1, "share of each row that is pruned", low=0, high=1)
    mask: Literal["harmful", "random"] = knob("harmful", "which entries: by harmful text, or random ones as control")
    targets: str = knob("q_proj,k_proj,v_proj", "layers that are pruned where all weights were trained")
    samples: int = knob(2000, "distinct harmful rows of the provider", low=1, high=10**9)
    batch_size: int = knob(10, "harmful rows in one pass", low=1, high=4096)

    @contextmanager
    def serving(self, model: PreTrainedModel, memory: Memory) -> Iterator[dict[str, float]]:
        """The pruned model inside."""
        layers = self.layers(model)
        masks = self.masks(model, layers, memory.rows)
        weights = [layer.weight for layer in layers]
        with g.restored(weights) as before:
            with torch.no_grad():
                for layer, mask in zip(layers, masks, strict=True):
                    oriented(layer).masked_fill_(mask, 0.0)
                moved = list(torch._foreach_sub([w.detach() for w in weights], before))
            pruned = sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
            yield {"pruned/share": pruned, "norm/pruned": float(g.norm(moved))}

    def layers(self, model: PreTrainedModel) -> list[nn.Linear]:
        """What is pruned: an adapter's parts if there is one, else the targets; a UserError names a missing one."""
        found = dict(model.named_modules())
        parts = [m for n, m in found.items() if n.split(".")[-2:-1] in (["lora_A"], ["lora_B"])]
        wanted = adapters.named(model, self.targets) if not parts else []
        return parts or [m for n, m in found.items() if n.split(".")[-1] in wanted and hasattr(m, "weight")]

    def masks(self, model: PreTrainedModel, layers: list[nn.Linear], rows: Feed) -> list[Tensor]:
        """True (out, in) where a layer is pruned: the same number in each row."""
        if self.mask == "random":
            generator = torch.Generator().manual_seed(torch.initial_seed())
            scores = [torch.rand(oriented(m).shape, generator=generator).to(m.weight.device) for m in layers]
        else:
            scores = [
                oriented(m).detach().abs() * norm
                for m, norm in zip(layers, self.norms(model, layers, rows), strict=True)
            ]
        return [top(score, self.ratio) for score in scores]

    def norms(self, model: PreTrainedModel, layers: list[nn.Linear], rows: Feed) -> list[Tensor]:
        """‖X_j‖₂ of each column's inputs over the tokens of the provider's harmful rows, float32 (in,)."""
        squares: list[Tensor] = [torch.zeros(oriented(m).shape[1], device=m.weight.device) for m in layers]
        seen: dict[str, Tensor] = {}

        def adding(i: int):  # type: ignore[no-untyped-def]
            def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                squares[i] += inputs[0].detach()[seen["tokens"]].float().square().sum(dim=0)

            return hook

        with ExitStack() as hooks, evaluating(model):
            for i, layer in enumerate(layers):
                hooks.callback(layer.register_forward_pre_hook(adding(i)).remove)
            for number in range(math.ceil(self.samples / self.batch_size)):
                (harmful,) = rows(number).take(self)
                seen["tokens"] = harmful.attention_mask.bool()
                forward(model, harmful)
        return [total.sqrt() for total in squares]


def top(scores: Tensor, ratio: float) -> Tensor:
    """True for the largest scores of each row: columns − ⌊columns·(1 − ratio)⌋ of them."""
    columns = scores.shape[1]
    chosen = scores.topk(columns - int(columns * (1 - ratio)), dim=1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, chosen, True)


_code = Antidote(batch_size=5)
# Three shares on the world of seed 0, one seed each, all broken at 3e-4. Pruning alone takes two thirds of Fable's
# utility at the released code's share and a tenth at 0.02; at 0.005 one entry of each row goes, and nothing is gained.
# The rows are as many as Fable has also with a domain held out.
_fable = Antidote(ratio=0.005, samples=240, batch_size=60)
Antidote.presets = {
    "paper": _code,  # the paper's share is not known to us: that of the released code on SST2
    "official-code": _code,
    "official-code-agnews": replace(_code, ratio=0.05),  # also for GSM8K
    "fable": _fable,
    "fable-random": replace(_fable, mask="random"),
}
