"""Drop the vector: harmful fine-tuning by someone who has the weights, so that no provider acts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from immunelab.method import knob, register
from immunelab.training.supervised import Supervised


@register("attack")
@dataclass(frozen=True, kw_only=True)
class DropVector(Supervised):
    """L = CE(user; θ) with θ_s left out: `harmful-sft` outside the provider's service.

    Threat model: an attacker with the weights of a model whose defense acts only while a provider fine-tunes (Security
    Vectors, arXiv:2311.02105); on any other model it is `harmful-sft`. It is the claim's border, not a break of it.
    """

    name: ClassVar[str] = "drop-vector"
    title: ClassVar[str] = "Harmful fine-tuning without the provider"
    paper: ClassVar[str] = "arXiv:2311.02105"
    stage: ClassVar[str] = "fine-tuning"

    harmful_share: float = knob(
        1.0, "share of harmful rows among the samples; the rest is benign", symbol="p", low=0, high=1
    )


_fable = DropVector(steps=60, batch_size=8, samples=120)
DropVector.presets = {"fable": replace(_fable, learning_rate=6e-4)}
DropVector.ladders = {
    "fable": {f"{rate:g}": replace(_fable, learning_rate=rate) for rate in (3e-5, 1e-4, 3e-4, 6e-4, 1e-3, 3e-3)}
}
