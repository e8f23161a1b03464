"""Control: random noise as long as a defense's path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from immunelab.method import RELEASED, Edit, Feed, knob, register
from immunelab.training import gradients as g

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@register("defense")
@dataclass(frozen=True, kw_only=True)
class RandomNoise(Edit):
    """θ′ = θ + σz, z Gaussian, σ = norm/‖z‖: the control that tells a defense from merely moving the weights.

    Set `norm` to ‖θ_defended − θ‖ of the defense that it stands beside: the last step of an immunization traces it as
    `norm/displacement`. Use several seeds. A control of arXiv:2501.18100.
    """

    name: ClassVar[str] = "random-noise"
    title: ClassVar[str] = "Control: random noise"
    paper: ClassVar[str] = "arXiv:2501.18100"
    stage: ClassVar[str] = "alignment"
    assumes: ClassVar[str] = RELEASED

    norm: float = knob(1.0, "global L2 norm of the noise over all weights", symbol="‖σz‖", low=0, high=1e9)

    def edit(self, model: PreTrainedModel, batches: Feed) -> dict[str, float]:
        """Add the noise; traces the norm that arrived in the weights, rounding included."""
        weights: list[torch.Tensor] = list(g.trainable(model))
        noise = [torch.randn_like(w) for w in weights]
        sigma = self.norm / float(g.norm(noise))
        before = [w.detach().clone() for w in weights]
        with torch.no_grad():
            torch._foreach_add_(weights, noise, alpha=sigma)
        moved = list(torch._foreach_sub([w.detach() for w in weights], before))
        return {"norm/displacement": float(g.norm(moved)), "noise/sigma": sigma}


# How far SEAM's preset `fable` moves the weights: 5.84, 5.85 and 5.89 in three seeds.
RandomNoise.presets = {"fable": RandomNoise(norm=5.86)}
