"""The coupling of benign and harmful gradients: cos(g_a, g_b), and its gradient by differences or exactly.

Source: arXiv:2505.12186. It needs two Hessian-vector products, which are estimated by differences of gradients at
shifted weights, so the weights must be in fp32 or finer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from immunelab.errors import UserError
from immunelab.training import gradients as g
from immunelab.training.losses import Scored, loss
from immunelab.training.models import twice_differentiable

if TYPE_CHECKING:
    from transformers import PreTrainedModel


NEEDS_FP32 = (
    "what it estimates from differences of gradients is lost in their rounding (10 times the estimate itself at ε = "
    "1e-3 in bf16). Use dtype fp32, with precision bf16-autocast for the other passes."
)
EMPTY = torch.empty(0)  # stands where a tensor was, so that its memory is free
Beside = Callable[[], tuple[Tensor, Tensor]]
Share = Callable[[dict[str, float]], tuple[float, float]]


class Thrift(NamedTuple):
    """What may be done to save memory: round waiting gradients to `buffers`, keep what waits in main memory."""

    buffers: torch.dtype | None = None
    offload: bool = False

    def aside(self, tensors: Sequence[Tensor], *, exact: bool = False) -> g.Gradient:
        """Tensors that wait; `exact` ones are not rounded."""
        return g.aside(tensors, dtype=None if exact else self.buffers, host=self.offload)


class Coupled(NamedTuple):
    """∇cos(g_a, g_b), empty if it was not needed; the `rest` that was asked for; and what to trace.

    rest = k_a·g_a + k_b·g_b + the gradient of what was computed beside g_a. Either may wait in main memory.
    """

    gradient: g.Gradient
    rest: g.Gradient
    trace: dict[str, float]


def nothing(trace: dict[str, float]) -> tuple[float, float]:
    """No multiple of either gradient."""
    return 0.0, 0.0


def coupling(
    model: PreTrainedModel,
    weights: list[Parameter],
    harmful: Scored,
    benign: Scored,
    *,
    epsilon: float | None,
    needed: bool = True,
    share: Share = nothing,
    beside: Beside | None = None,
    thrift: Thrift = Thrift(),  # noqa: B008  # immutable
) -> Coupled:
    """∇cos(g_a, g_b), estimated at weights shifted by ε (None: exactly), or only the traces and the rest.

    `share` says from the traces which multiples of g_a and g_b the caller wants back: the gradients themselves are
    used up. `beside` gives the harmful loss and another one from the same forward pass, whose gradient is part of the
    rest.
    """
    if epsilon is None:
        return exact(model, weights, harmful, benign, share)
    if weights[0].dtype == torch.bfloat16:
        return rounded(model, weights, harmful, benign, epsilon, needed, share)
    return estimated(model, weights, harmful, benign, epsilon, needed, share, beside, thrift)


def estimated(
    model: PreTrainedModel,
    weights: list[Parameter],
    harmful: Scored,
    benign: Scored,
    epsilon: float,
    needed: bool,
    share: Share,
    beside: Beside | None,
    thrift: Thrift,
) -> Coupled:
    """∇L_sd ≈ (1/ε)·[(g_a′ − g_a)/‖g_a‖ + (g_b′ − g_b)/‖g_b‖].

    g_a′ is taken at θ + ε(ĝ_b − cĝ_a) and g_b′ at θ + ε(ĝ_a − cĝ_b), hats for unit length, c for the cosine. Beside
    the weights and their copy there are at most three gradients at a time: the sum, the next shift, and the rest.
    """
    found = unshifted(model, weights, harmful, benign, beside, thrift)
    trace = found.trace
    if not needed:
        return Coupled([], split(weights, found, share(trace), thrift)[0], trace)
    with g.restored(weights, host=thrift.offload) as copies:
        rest, pull, onward, moved = split(weights, found, share(trace), thrift, epsilon)
        g.gather(loss(model, harmful), weights, pull, 1 / trace["norm/harmful"])
        g.put_back(weights, copies)
        moved_on = []
        for part in g.buckets(weights):
            moved_on.append(g.shift(weights[part], g.near(onward[part], weights[part]), epsilon))
            onward[part] = [EMPTY] * len(onward[part])
        g.gather(loss(model, benign), weights, pull, 1 / trace["norm/benign"])
    trace["estimator/displacement"] = min(g.displacement(moved), g.displacement(moved_on))
    g.rescale(pull, 1 / epsilon)
    return Coupled(thrift.aside(pull, exact=True), rest, trace)


def add(direction: g.Gradient, pull: g.Gradient, weight: float, largest: float) -> float:
    """Direction += weight·∇cos, cut down to norm `largest` if it is longer (0 is off); returns the norm of that."""
    if not pull:
        return 0.0
    length = abs(weight) * float(g.norm(pull))
    kept = largest if length > largest > 0 else length
    g.accumulate(direction, pull, weight * (kept / length if length else 1.0))
    return kept


class Unshifted(NamedTuple):
    """g_a, g_b, the gradient of what was computed beside g_a (or none), and what to trace."""

    a: g.Gradient
    b: g.Gradient
    beside: g.Gradient
    trace: dict[str, float]


def unshifted(
    model: PreTrainedModel,
    weights: list[Parameter],
    harmful: Scored,
    benign: Scored,
    beside: Beside | None,
    thrift: Thrift,
) -> Unshifted:
    """The gradients at the weights as they are; g_a waits aside while g_b is computed."""
    extra = g.Gradient()
    if beside is None:
        loss_a, a = value_and_gradient(model, weights, harmful)
        a = thrift.aside(a, exact=True)
    else:
        value, other = beside()
        loss_a = float(value.detach())
        a = thrift.aside(g.gradient(value, weights, keep_graph=True), exact=True)
        extra = thrift.aside(g.gradient(other, weights))
        del value, other
    loss_b, b = value_and_gradient(model, weights, benign)
    return Unshifted(a, b, extra, similarity(model, a, b, loss_a, loss_b))


def split(
    weights: list[Parameter], found: Unshifted, wanted: tuple[float, float], thrift: Thrift, epsilon: float = 0.0
) -> tuple[g.Gradient, g.Gradient, g.Gradient, list[tuple[float, float]]]:
    """What becomes of g_a and g_b, which are used up: the rest; −ĝ_a − ĝ_b, to which the later gradients are added;
    the second shift; and lengths of the first, which is made. With ε = 0 only the rest.
    """
    a, b, extra, trace = found
    norm_a, norm_b, c = trace["norm/harmful"], trace["norm/benign"], trace["cosine/harmful-benign"]
    rest, pull, onward, moved = g.Gradient(), g.Gradient(), g.Gradient(), list[tuple[float, float]]()
    for part in g.buckets(weights):
        x, y = g.near(a[part], weights[part]), g.near(b[part], weights[part])
        if any(wanted) or extra:
            both = g.combine((wanted[0], x), (wanted[1], y))
            if extra:
                g.accumulate(both, extra[part])
                extra[part] = [EMPTY] * len(x)
            rest += thrift.aside(both)
        if epsilon:
            moved.append(g.shift(weights[part], g.combine((1 / norm_b, y), (-c / norm_a, x)), epsilon))
            onward += thrift.aside(g.combine((1 / norm_a, x), (-c / norm_b, y)))
            pull += g.combine((-1 / norm_a, x), (-1 / norm_b, y))
        a[part] = b[part] = [EMPTY] * len(x)
    return rest, pull, onward, moved


def rounded(
    model: PreTrainedModel,
    weights: list[Parameter],
    harmful: Scored,
    benign: Scored,
    epsilon: float,
    needed: bool,
    share: Share,
) -> Coupled:
    """As `estimated`, at weights in bf16: there the result depends on the order of additions, and this is a replica."""
    loss_a, a = value_and_gradient(model, weights, harmful)
    loss_b, b = value_and_gradient(model, weights, benign)
    trace = similarity(model, a, b, loss_a, loss_b)
    rest = combined(a, b, share(trace))
    if not needed:
        return Coupled([], rest, trace)
    norm_a, norm_b, c = trace["norm/harmful"], trace["norm/benign"], trace["cosine/harmful-benign"]
    with g.shifted(weights, g.combine((1 / norm_b, b), (-c / norm_a, a)), by=epsilon) as moved_a:
        pull = value_and_gradient(model, weights, harmful)[1]
    with g.shifted(weights, g.combine((1 / norm_a, a), (-c / norm_b, b)), by=epsilon) as moved_b:
        other = value_and_gradient(model, weights, benign)[1]
    pull = g.combine((1 / norm_a, pull), (-1 / norm_a, a), (1 / norm_b, other), (-1 / norm_b, b))
    trace["estimator/displacement"] = min(moved_a, moved_b)
    return Coupled(g.scale(pull, 1 / epsilon), rest, trace)


def exact(model: PreTrainedModel, weights: list[Parameter], harmful: Scored, benign: Scored, share: Share) -> Coupled:
    """∇L_sd by differentiating both gradients once more."""
    with twice_differentiable():
        loss_a, loss_b = loss(model, harmful), loss(model, benign)
        a = g.gradient(loss_a, weights, differentiable=True)
        b = g.gradient(loss_b, weights, differentiable=True)
        pull = g.gradient(g.cosine(a, b), weights)
    a, b = [x.detach() for x in a], [x.detach() for x in b]
    trace = similarity(model, a, b, float(loss_a.detach()), float(loss_b.detach()))
    return Coupled(pull, combined(a, b, share(trace)), trace)


def combined(a: g.Gradient, b: g.Gradient, wanted: tuple[float, float]) -> g.Gradient:
    """The multiples of both gradients that the caller wants back; empty if none."""
    return g.combine((wanted[0], a), (wanted[1], b)) if any(wanted) else []


def value_and_gradient(model: PreTrainedModel, weights: list[Parameter], scored: Scored) -> tuple[float, g.Gradient]:
    """The cross-entropy of a minibatch and its gradient at the present weights."""
    value = loss(model, scored)
    return float(value.detach()), g.gradient(value, weights)


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
