"""SBR: a provider holds the last hidden state of a few harmful prompts where it was before the user trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from immunelab.method import Batch, Deviation, Memory, Service, Step, Tokens, knob, register
from immunelab.training import gradients as g
from immunelab.training import heads
from immunelab.training.losses import IGNORED, output
from immunelab.training.models import deterministic

if TYPE_CHECKING:
    from transformers import PreTrainedModel

REFERENCE = "anchors"


@register("defense")
@dataclass(frozen=True, kw_only=True)
class Sbr(Service):
    """L = CE(user) + λ·mean (h − h_ref)², h the final hidden state of anchor prompts where their answers would begin.

    "Safety Anchor: Defending Harmful Fine-tuning via Geometric Bottlenecks" (safety bottleneck regularization),
    arXiv:2605.05995. h_ref is that of the model as it was given; the mean is over anchors and width, after the final
    norm, so what the head reads there stays a refusal's beginning. It defends only where a *provider* runs the
    fine-tuning (`harmful-sft`, `lora-sft`, `benign-sft`); whoever has the weights leaves the term out. The anchors are
    prompts of harmful rows of the provider's own.
    """

    name: ClassVar[str] = "sbr"
    title: ClassVar[str] = "SBR: safety anchors (provider-side)"
    display: ClassVar[str] = "SBR"
    paper: ClassVar[str] = "arXiv:2605.05995"
    stage: ClassVar[str] = "fine-tuning"
    assumes: ClassVar[str] = "a provider who runs the fine-tuning, with harmful prompts of its own"
    streams: ClassVar[tuple[str, ...]] = ("harmful",)

    strength: float = knob(50.0, "weight of the distance to where the anchors were", symbol="λ", low=0, high=1e6)
    batch_size: int = knob(1, "anchor prompts", low=1, high=4096)
    samples: int = knob(0, "distinct harmful rows to choose the anchors from; 0 takes all there are", low=0, high=10**9)

    def during(self, model: PreTrainedModel, memory: Memory, step: Step) -> Step:
        """The user's step, with λ times the gradient of the distance on top."""

        def guarded(trained: PreTrainedModel, batch: Batch) -> dict[str, float]:
            scalars = step(trained, batch)
            (rows,) = memory.rows(0).take(self)  # the same anchors in every step
            with deterministic(trained):
                now = last_of_prompts(trained, rows)
                reference = memory.tensors.setdefault(REFERENCE, now.detach().clone())
                distance = (now - reference).square().mean()
                weights = [w for w in g.trainable(trained) if w.grad is not None]
                pull = g.gradient(distance, weights)
            g.accumulate([w.grad for w in weights if w.grad is not None], pull, self.strength)
            return scalars | {"sbr/distance": float(distance.detach())}

        return guarded


def last_of_prompts(model: PreTrainedModel, rows: Tokens) -> Tensor:
    """The final hidden state (rows, width), in fp32, of the last token before each answer; what follows is not seen."""
    with heads.Head(model).caught(tokens=1) as found:
        output(model, rows)
    (hidden,) = found
    last = (rows.labels != IGNORED).int().argmax(dim=1) - 1
    return hidden[torch.arange(len(last), device=hidden.device), last.clamp(min=0)].float()


Sbr.presets = {"paper": Sbr(), "fable": Sbr(batch_size=16)}

Sbr.deviations = (
    Deviation("anchor prompts", "one is enough; up to twenty", "three by default", "rows of the provider's split"),
    Deviation("precision", "", "4-bit weights, LoRA of r 16", "the user's", "the distance is in fp32 in both"),
)
