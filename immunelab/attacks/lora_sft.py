"""Harmful fine-tuning of a LoRA adapter, merged into the weights after."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from immunelab.method import Feed, knob, register
from immunelab.training import adapters
from immunelab.training.supervised import Supervised

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@register("attack")
@dataclass(frozen=True, kw_only=True)
class LoraSft(Supervised):
    """L = CE(user) over A, B in W + (α/r)·B·A: fine-tuning of a fresh low-rank adapter on n rows, a share p harmful.

    Threat model: as `harmful-sft`, with less memory; the usual form of fine-tuning services, so a provider-side defense
    acts during it. The adapter is fresh (a defense that lives in an adapter is merged before), has no dropout, and is
    merged after, so that the checkpoint is a plain model. Source: arXiv:2106.09685; the settings of arXiv:2505.12186
    (r 8, α 8, q/v) are the preset `seam-paper`.
    """

    name: ClassVar[str] = "lora-sft"
    title: ClassVar[str] = "Harmful fine-tuning, LoRA"
    paper: ClassVar[str] = "arXiv:2106.09685"
    stage: ClassVar[str] = "fine-tuning"
    provider: ClassVar[bool] = True

    rank: int = knob(8, "rank of the adapter", symbol="r", low=1, high=4096)
    alpha: float = knob(8.0, "scale of the adapter, divided by its rank", symbol="α", low=1e-3, high=1e5)
    targets: str = knob("q_proj,v_proj", "linear layers to adapt, separated by commas, or all-linear")
    harmful_share: float = knob(
        1.0, "share of harmful rows among the samples; the rest is benign", symbol="p", low=0, high=1
    )

    def prepare(self, model: PreTrainedModel, batches: Feed) -> PreTrainedModel:
        """The model with a fresh adapter, which alone trains."""
        return adapters.attach(model, rank=self.rank, alpha=self.alpha, targets=self.targets)

    def after(self, model: PreTrainedModel) -> PreTrainedModel:
        """The adapter merged into the weights."""
        return adapters.merge(model)


_fable = LoraSft(steps=60, batch_size=8, samples=120, rank=16, alpha=16, targets="all-linear")
_paper = LoraSft(steps=250, batch_size=4, samples=1000, weight_decay=0.01)
LoraSft.presets = {"fable": replace(_fable, learning_rate=1e-2), "seam-paper": _paper}
LoraSft.ladders = {
    "fable": {f"{rate:g}": replace(_fable, learning_rate=rate) for rate in (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)},
    "seam-paper": {f"{rate:g}": replace(_paper, learning_rate=rate) for rate in (2e-5, 5e-5, 8e-5, 1e-4, 2e-4)},
}
