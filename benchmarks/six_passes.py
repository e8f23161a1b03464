"""SEAM as one would write it down at first: six backward passes, and a clone of everything. arXiv:2505.12186.

What the package's step is measured against (`seam_cost.py`), and an oracle of its numbers: it shares no code with it
but the losses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from immunelab.training.activations import layerwise
from immunelab.training.losses import loss, scored

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from immunelab.defenses.seam import Seam
    from immunelab.method import Batch


def step(model: PreTrainedModel, batch: Batch, method: Seam) -> None:
    """Leaves w∇L_ul + α∇L_up + β∇L_sd + r∇CE(benign) in `.grad`, w and r the extensions (1 and 0 in the paper)."""
    harmful, refusal, benign = scored(method, batch, method.mask)
    alpha, beta, epsilon = method.alpha, method.beta, method.epsilon
    weights = list(model.parameters())
    layered = method.ascent == "layerwise"

    ul = gradient(layerwise(model, harmful)[1] if layered else -torch.log1p(loss(model, harmful)), weights)
    up = gradient(loss(model, refusal), weights)
    a = gradient(loss(model, harmful), weights)
    b = gradient(loss(model, benign), weights)
    a_unit = [x / norm(a) for x in a]
    b_unit = [x / norm(b) for x in b]
    c = sum(float((x.double() * y.double()).sum()) for x, y in zip(a_unit, b_unit, strict=True))

    kept = [w.detach().clone() for w in weights]
    move(weights, kept, epsilon, b_unit, a_unit, c)
    a_moved = gradient(loss(model, harmful), weights)
    move(weights, kept, epsilon, a_unit, b_unit, c)
    b_moved = gradient(loss(model, benign), weights)
    move(weights, kept, 0.0, a_unit, b_unit, c)

    for i, weight in enumerate(weights):
        sd = ((a_moved[i] - a[i]) / norm(a) + (b_moved[i] - b[i]) / norm(b)) / epsilon
        weight.grad = method.ascent_weight * ul[i] + alpha * up[i] + beta * sd + method.retain * b[i]


def gradient(value: Tensor, weights: list[torch.nn.Parameter]) -> list[Tensor]:
    """∇value."""
    return [x.clone() for x in torch.autograd.grad(value, weights)]


def norm(a: list[Tensor]) -> float:
    """‖a‖ over all weights."""
    return sum(float(x.double().square().sum()) for x in a) ** 0.5


def move(
    weights: list[torch.nn.Parameter],
    kept: list[Tensor],
    epsilon: float,
    along: list[Tensor],
    by: list[Tensor],
    c: float,
) -> None:
    """θ := what was kept + ε(along − c·by)."""
    with torch.no_grad():
        for weight, before, x, y in zip(weights, kept, along, by, strict=True):
            weight.copy_(before + epsilon * (x - c * y))
