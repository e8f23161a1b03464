"""cos(g_a, g_b) of the harmful and the benign gradient, and its own gradient: exactly, or estimated as SEAM does.

Source: arXiv:2505.12186. The gradient needs two Hessian-vector products, which are estimated by differences of
gradients at shifted weights, so the weights must be in fp32 or finer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from immunelab.errors import UserError
from immunelab.training import gradients as g
from immunelab.training import savings
from immunelab.training.losses import Scored, loss, value_and_gradient
from immunelab.training.models import twice_differentiable

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Pair(NamedTuple):
    """g_a = ∇CE(harmful) and g_b = ∇CE(benign) at the weights as they are, and what to trace of them."""

    a: g.Gradient
    b: g.Gradient
    trace: dict[str, float]

    @property
    def numbers(self) -> tuple[float, float, float]:
        """‖g_a‖, ‖g_b‖ and their cosine c."""
        return self.trace["norm/harmful"], self.trace["norm/benign"], self.trace["cosine/harmful-benign"]


def gradient(
    model: PreTrainedModel, weights: list[Parameter], harmful: Scored, benign: Scored, epsilon: float | None
) -> tuple[g.Gradient, dict[str, float]]:
    """∇cos(g_a, g_b), estimated at weights shifted by ε (None: exactly); and what to trace."""
    if epsilon is None:
        pair, found = exact(model, weights, harmful, benign)
    else:
        pair, _ = unshifted(model, weights, [loss(model, harmful)], benign)
        found = estimated(model, weights, harmful, benign, pair, epsilon)
    return found, pair.trace


def exact(model: PreTrainedModel, weights: list[Parameter], harmful: Scored, benign: Scored) -> tuple[Pair, g.Gradient]:
    """Both gradients, and that of their cosine by differentiating them once more."""
    with twice_differentiable():
        loss_a, loss_b = loss(model, harmful), loss(model, benign)
        a = g.gradient(loss_a, weights, differentiable=True)
        b = g.gradient(loss_b, weights, differentiable=True)
        found = g.gradient(g.cosine(a, b), weights)
    a, b = [x.detach() for x in a], [x.detach() for x in b]
    return Pair(a, b, similarity(model, a, b, float(loss_a.detach()), float(loss_b.detach()))), found


def unshifted(
    model: PreTrainedModel, weights: list[Parameter], harmful: Sequence[Tensor], benign: Scored
) -> tuple[Pair, list[g.Gradient]]:
    """Both gradients at the weights as they are, g_a of the first of `harmful`: losses from one forward pass.

    The gradients of its other losses come second.
    """
    a, *others = (
        savings.aside(g.gradient(value, weights, keep_graph=value is not harmful[-1]), exact=value is harmful[0])
        for value in harmful
    )
    loss_b, b = value_and_gradient(model, weights, benign)
    return Pair(a, b, similarity(model, a, b, float(harmful[0].detach()), loss_b)), others


def estimated(
    model: PreTrainedModel, weights: list[Parameter], harmful: Scored, benign: Scored, pair: Pair, epsilon: float
) -> g.Gradient:
    """∇L_sd ≈ (1/ε)·[(g_a′ − g_a)/‖g_a‖ + (g_b′ − g_b)/‖g_b‖].

    g_a′ is taken at θ + ε(ĝ_b − cĝ_a) and g_b′ at θ + ε(ĝ_a − cĝ_b), hats for unit length. Uses the pair up, unless
    the weights are in bf16: there the sum depends on the order of additions, and this is the released code's.
    """
    if weights[0].dtype != torch.bfloat16:
        return _in_place(model, weights, harmful, benign, pair, epsilon)
    a, b = pair.a, pair.b
    norm_a, norm_b, c = pair.numbers
    with g.shifted(weights, g.combine((1 / norm_b, b), (-c / norm_a, a)), by=epsilon) as moved_a:
        a_moved = value_and_gradient(model, weights, harmful)[1]
    with g.shifted(weights, g.combine((1 / norm_a, a), (-c / norm_b, b)), by=epsilon) as moved_b:
        b_moved = value_and_gradient(model, weights, benign)[1]
    pair.trace["estimator/displacement"] = min(moved_a, moved_b)
    found = g.combine((1 / norm_a, a_moved), (-1 / norm_a, a), (1 / norm_b, b_moved), (-1 / norm_b, b))
    return g.scale(found, 1 / epsilon)


def _in_place(
    model: PreTrainedModel, weights: list[Parameter], harmful: Scored, benign: Scored, pair: Pair, epsilon: float
) -> g.Gradient:
    """The same sum with two gradients and one copy of the weights beside them, where the above holds seven."""
    norm_a, norm_b, c = pair.numbers
    found, onward, moved_a, moved_b = g.Gradient(), g.Gradient(), [], []
    with g.putting_back(weights) as copies:
        for part, (a, b) in savings.used_up(pair.a, pair.b, like=weights):
            copies += savings.copied(weights[part])
            moved_a.append(g.shift(weights[part], g.combine((1 / norm_b, b), (-c / norm_a, a)), epsilon))
            onward += savings.aside(g.combine((1 / norm_a, a), (-c / norm_b, b)))
            found += g.combine((-1 / norm_a, a), (-1 / norm_b, b))
        g.gather(loss(model, harmful), weights, found, 1 / norm_a)
        g.put_back(weights, copies)
        for part, (direction,) in savings.used_up(onward, like=weights):
            moved_b.append(g.shift(weights[part], direction, epsilon))
        g.gather(loss(model, benign), weights, found, 1 / norm_b)
    pair.trace["estimator/displacement"] = min(g.displacement(moved_a, epsilon), g.displacement(moved_b, epsilon))
    g.rescale(found, 1 / epsilon)
    return savings.aside(found, exact=True)


def similarity(model: PreTrainedModel, a: g.Gradient, b: g.Gradient, loss_a: float, loss_b: float) -> dict[str, float]:
    """Losses, norms and cosines of the harmful and the benign gradient, also of each layer."""
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
    return trace
