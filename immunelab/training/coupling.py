"""The coupling of benign and harmful gradients: cos(g_a, g_b), and its gradient by differences or exactly.

Source: arXiv:2505.12186. It needs two Hessian-vector products, which are estimated by differences of gradients at
shifted weights, so the weights must be in fp32 or finer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import Parameter

from immunelab.errors import UserError
from immunelab.training import gradients as g
from immunelab.training.losses import Scored, loss
from immunelab.training.models import twice_differentiable

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Coupled(NamedTuple):
    """∇cos(g_a, g_b), the harmful and benign gradients it was made with, and what to trace."""

    gradient: g.Gradient
    harmful: g.Gradient
    benign: g.Gradient
    trace: dict[str, float]


def coupling(
    model: PreTrainedModel,
    weights: list[Parameter],
    harmful: Scored,
    benign: Scored,
    *,
    epsilon: float | None,
    needed: bool = True,
) -> Coupled:
    """∇cos(g_a, g_b), estimated at weights shifted by ε (None: exactly); zeros if only the traces are needed."""
    if epsilon is None:
        return exact(model, weights, harmful, benign)
    return estimated(model, weights, harmful, benign, epsilon, needed)


def estimated(
    model: PreTrainedModel,
    weights: list[Parameter],
    harmful: Scored,
    benign: Scored,
    epsilon: float,
    needed: bool,
) -> Coupled:
    """∇L_sd ≈ (1/ε)·[(g_a′ − g_a)/‖g_a‖ + (g_b′ − g_b)/‖g_b‖].

    g_a′ is taken at θ + ε(ĝ_b − cĝ_a) and g_b′ at θ + ε(ĝ_a − cĝ_b), hats for unit length, c for the cosine.
    """
    loss_a, a = value_and_gradient(model, weights, harmful)
    loss_b, b = value_and_gradient(model, weights, benign)
    coupled = similarity(model, a, b, loss_a, loss_b)
    if not needed:
        return coupled._replace(gradient=[torch.zeros_like(w) for w in weights])
    norm_a, norm_b = coupled.trace["norm/harmful"], coupled.trace["norm/benign"]
    c = coupled.trace["cosine/harmful-benign"]

    with g.shifted(weights, g.combine((1 / norm_b, b), (-c / norm_a, a)), by=epsilon) as moved_a:
        pull = value_and_gradient(model, weights, harmful)[1]
    with g.shifted(weights, g.combine((1 / norm_a, a), (-c / norm_b, b)), by=epsilon) as moved_b:
        other = value_and_gradient(model, weights, benign)[1]
    pull = g.combine((1 / norm_a, pull), (-1 / norm_a, a), (1 / norm_b, other), (-1 / norm_b, b))
    coupled.trace["estimator/displacement"] = min(moved_a, moved_b)
    return coupled._replace(gradient=g.scale(pull, 1 / epsilon))


def exact(model: PreTrainedModel, weights: list[Parameter], harmful: Scored, benign: Scored) -> Coupled:
    """∇L_sd by differentiating both gradients once more."""
    with twice_differentiable():
        loss_a, loss_b = loss(model, harmful), loss(model, benign)
        a = g.gradient(loss_a, weights, differentiable=True)
        b = g.gradient(loss_b, weights, differentiable=True)
        pull = g.gradient(g.cosine(a, b), weights)
    a, b = [x.detach() for x in a], [x.detach() for x in b]
    return similarity(model, a, b, float(loss_a.detach()), float(loss_b.detach()))._replace(gradient=pull)


def value_and_gradient(model: PreTrainedModel, weights: list[Parameter], scored: Scored) -> tuple[float, g.Gradient]:
    """The cross-entropy of a minibatch and its gradient at the present weights."""
    value = loss(model, scored)
    return float(value.detach()), g.gradient(value, weights)


def similarity(model: PreTrainedModel, a: g.Gradient, b: g.Gradient, loss_a: float, loss_b: float) -> Coupled:
    """Losses, norms and cosines of the harmful and the benign gradient, also of each layer; no gradient yet."""
    ab, aa, bb = g.dots(a, b), g.dots(a, a), g.dots(b, b)
    norm_a, norm_b = float(aa.sum().sqrt()), float(bb.sum().sqrt())
    if norm_a == 0 or norm_b == 0:
        raise UserError("The harmful or the benign gradient is exactly zero, so their cosine is undefined.")
    trace = {
        "loss/harmful": loss_a,
        "loss/benign": loss_b,
        "norm/harmful": norm_a,
        "norm/benign": norm_b,
        "cosine/harmful-benign": float(ab.sum()) / (norm_a * norm_b),
    }
    layers = zip(*(g.by_layer(model, each) for each in (ab, aa, bb)), strict=True)
    for i, (layer_ab, layer_aa, layer_bb) in enumerate(layers):
        trace[f"norm/harmful/layer/{i}"] = layer_aa**0.5
        trace[f"norm/benign/layer/{i}"] = layer_bb**0.5
        if layer_aa and layer_bb:  # a frozen layer has no direction
            trace[f"cosine/harmful-benign/layer/{i}"] = layer_ab / (layer_aa * layer_bb) ** 0.5
    return Coupled([], a, b, trace)
