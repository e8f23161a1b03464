"""The worst small shift of what modules put out, and the gradient of a loss under it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from immunelab.training import chance, sublayers
from immunelab.training import gradients as g
from immunelab.training.losses import Scored, loss, value_and_gradient

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Kind = Literal["gradient", "random", "gaussian"]


def sensitivity(model: PreTrainedModel, modules: Sequence[nn.Module], rows: Scored) -> tuple[float, g.Gradient]:
    """The loss of a minibatch, and q_l = ∂loss/∂(output of each module), of the outputs' shapes."""
    with sublayers.reading(modules) as outputs:
        value = loss(model, rows)
    return float(value.detach()), g.gradient(value, outputs)


def perturbed(
    model: PreTrainedModel,
    weights: Sequence[Parameter],
    modules: Sequence[nn.Module],
    rows: Scored,
    *,
    radius: float,
    kind: Kind = "gradient",
) -> tuple[g.Gradient, dict[str, float]]:
    """The gradient of the loss for the weights, with every module's output shifted by a constant ε_l; what to trace.

    ε is the `worst` shift or, as controls, `noise`. With radius 0 it is the plain gradient.
    """
    before, shift = 0.0, list[Tensor]()
    if radius and kind == "gradient":
        before, shift = worst(model, modules, rows, radius)
    elif radius:
        before, shift = noise(model, modules, rows, radius, kind)
    with sublayers.shifting(modules if shift else [], shift):
        value, gradient = value_and_gradient(model, list(weights), rows)
    traced = {"loss/total": value, "loss/perturbed": value, "loss/refusal": before if shift else value}
    return gradient, traced | {"perturbation/norm": float(g.norm(shift)) if shift else 0.0}


def worst(
    model: PreTrainedModel, modules: Sequence[nn.Module], rows: Scored, radius: float
) -> tuple[float, list[Tensor]]:
    """The loss, and ε_l = radius·q_l/(‖q‖ + 1e-7)."""
    before, q = sensitivity(model, modules, rows)
    return before, g.scale(q, radius / (float(g.norm(q)) + 1e-7))


def noise(
    model: PreTrainedModel, modules: Sequence[nn.Module], rows: Scored, radius: float, kind: Kind
) -> tuple[float, list[Tensor]]:
    """The loss, and Gaussian noise of norm `radius` (`random`) or of variance `radius` in each entry (`gaussian`)."""
    with torch.no_grad(), sublayers.reading(modules) as outputs:
        before = float(loss(model, rows))
    generator = chance.generator(outputs[0].device, rows.tokens)
    z = [torch.randn(o.shape, generator=generator, device=o.device, dtype=o.dtype) for o in outputs]
    return before, g.scale(z, radius / float(g.norm(z)) if kind == "random" else radius**0.5)
