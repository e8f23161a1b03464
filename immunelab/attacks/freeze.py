"""Harmful fine-tuning of a part of the weights; the rest is frozen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from immunelab.errors import UserError
from immunelab.method import Feed, knob, register
from immunelab.training import gradients as g
from immunelab.training.supervised import Supervised

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@register("attack")
@dataclass(frozen=True, kw_only=True)
class Freeze(Supervised):
    """L = CE(user) over a part of the weights: fine-tuning with k layers, all but k, or the embeddings frozen.

    Threat model: an attacker with the weights who suspects that the defense sits in some layers, or that it needs all
    of them to move together for the model to destroy itself. Source: an adaptive attack named in arXiv:2505.12186;
    the choices are ours.
    """

    name: ClassVar[str] = "freeze"
    title: ClassVar[str] = "Harmful fine-tuning, part of the weights"
    paper: ClassVar[str] = "arXiv:2505.12186"
    stage: ClassVar[str] = "fine-tuning"

    frozen: Literal["embeddings", "first", "last", "all-but-first", "all-but-last"] = knob(
        "first", "what stays as it is: input embeddings (a tied head too), the first or last k layers, or all but them"
    )
    k: int = knob(1, "how many layers; without meaning for embeddings", symbol="k", low=1, high=1000)
    harmful_share: float = knob(
        1.0, "share of harmful rows among the samples; the rest is benign", symbol="p", low=0, high=1
    )

    def prepare(self, model: PreTrainedModel, batches: Feed) -> PreTrainedModel:
        """The same model; what is frozen does not require a gradient."""
        if self.frozen == "embeddings":
            model.get_input_embeddings().requires_grad_(False)
            return model
        layers = g.layer_of(model)
        count = max((i + 1 for i in layers if i is not None), default=0)
        if self.k >= count:
            raise UserError(f"k is {self.k}, and the model has {count} layers: freezing needs some left to train.")
        chosen = range(self.k) if self.frozen.endswith("first") else range(count - self.k, count)
        for parameter, layer in zip(g.trainable(model), layers, strict=True):
            parameter.requires_grad_((layer in chosen) == self.frozen.startswith("all-but"))
        return model

    def after(self, model: PreTrainedModel) -> PreTrainedModel:
        """Everything may be trained again."""
        return model.requires_grad_(True)


_fable = Freeze(learning_rate=6e-4, steps=60, batch_size=8, samples=120)
Freeze.presets = {
    "fable": _fable,
    "fable-last": replace(_fable, frozen="last"),
    "fable-embeddings": replace(_fable, frozen="embeddings"),
    "fable-last-only": replace(_fable, frozen="all-but-last"),
}
