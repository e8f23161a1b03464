"""SEAM as one would write it down at first: six backward passes, and a clone of everything. Used by `seam_cost.py`.

The baseline that the package's step is measured against, and a second opinion on its numbers: it shares no code with
it but the losses. arXiv:2505.12186, with the layer-wise or the final-logit ascent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from immunelab.method import Batch
from immunelab.training.activations import layerwise
from immunelab.training.losses import Scored, loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def step(model: PreTrainedModel, batch: Batch, *, layered: bool, alpha: float, beta: float, epsilon: float) -> None:
    """Leaves ∇L_ul + α∇L_up + β∇L_sd in `.grad`."""
    harmful, refusal, benign = (Scored(rows) for rows in (batch.harmful, batch.refusal, batch.benign) if rows)
    parameters = list(model.parameters())

    def backward(value: Callable[[], Tensor]) -> list[Tensor]:
        model.zero_grad()
        value().backward()  # type: ignore[no-untyped-call]
        return [p.grad.clone() for p in parameters if p.grad is not None]

    def length(a: list[Tensor]) -> Tensor:
        return torch.stack([x.double().square().sum() for x in a]).sum().sqrt()

    def ascent() -> Tensor:
        return layerwise(model, harmful)[1] if layered else -torch.log1p(loss(model, harmful))

    ul = backward(ascent)
    up = backward(lambda: loss(model, refusal))
    a = backward(lambda: loss(model, harmful))
    b = backward(lambda: loss(model, benign))
    a_unit = [x / length(a).to(x.dtype) for x in a]
    b_unit = [x / length(b).to(x.dtype) for x in b]
    c = float(torch.stack([(x.double() * y.double()).sum() for x, y in zip(a_unit, b_unit, strict=True)]).sum())

    def shifted(towards: list[Tensor], away: list[Tensor], value: Callable[[], Tensor]) -> list[Tensor]:
        kept = [p.detach().clone() for p in parameters]
        with torch.no_grad():
            for p, x, y in zip(parameters, towards, away, strict=True):
                p.add_(epsilon * (x - c * y))
        found = backward(value)
        with torch.no_grad():
            for p, before in zip(parameters, kept, strict=True):
                p.copy_(before)
        return found

    a_moved = shifted(b_unit, a_unit, lambda: loss(model, harmful))
    b_moved = shifted(a_unit, b_unit, lambda: loss(model, benign))
    norm_a, norm_b = float(length(a)), float(length(b))
    for i, p in enumerate(parameters):
        pull = (a_moved[i] - a[i]) / norm_a + (b_moved[i] - b[i]) / norm_b
        p.grad = ul[i] + alpha * up[i] + beta / epsilon * pull
