"""The algebra that the papers share: gradients as lists of tensors, their norms and cosines, and shifted weights.

A gradient is a list with one tensor per trainable parameter, in the order of `trainable(model)`. Norms and dot
products are global over all of them, accumulated in float64, and on sharded parameters (DTensor) they reduce across
ranks. Every function that touches the weights is a context manager that puts back the very bits it found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from immunelab.errors import UserError
from immunelab.training import savings, sharding

Gradient = list[Tensor]
NEEDS_FP32 = (
    "its own term is a difference of gradients at weights a little apart, and is lost in their rounding (for SEAM at "
    "ε = 1e-3 in bf16, the error is ten times the term). Use dtype fp32, with precision bf16-autocast for its other "
    "passes."
)
LAYER = re.compile(r"\.(\d+)\.")
ROW, PIECE = 1 << 10, 1 << 20  # numbers of a product that float32 adds up, and that exist at a time


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that require a gradient, tied ones once; a UserError if there are none."""
    found = [p for p in model.parameters() if p.requires_grad]
    if not found:
        raise UserError("The model has no trainable parameter: unfreeze some, or attach an adapter.")
    return found


def gradient(
    loss: Tensor, parameters: Sequence[Tensor], *, keep_graph: bool = False, differentiable: bool = False
) -> Gradient:
    """∇loss for each parameter; zeros where the loss does not depend on one. `.grad` is left alone.

    A UserError for `differentiable` on sharded parameters, which have no second derivative.
    """
    if sharding.sharded(parameters):
        if differentiable:
            raise UserError("Sharded weights have no second derivative: use estimator=finite-difference or one device.")
        return sharding.gradient(loss, parameters, keep_graph)
    found = torch.autograd.grad(
        loss, parameters, allow_unused=True, retain_graph=keep_graph or differentiable, create_graph=differentiable
    )
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def gather(loss: Tensor, parameters: Sequence[Tensor], into: Gradient, weight: float = 1.0) -> None:
    """Into += weight·∇loss, tensor by tensor as the backward pass gets there: no second whole gradient exists.

    `.grad` is left alone. Sharded parameters get their gradient whole first, and in one exchange.
    """
    if sharding.sharded(parameters):
        return accumulate(into, gradient(loss, parameters), weight)
    before = [p.grad for p in parameters]

    def consume(total: Tensor) -> Any:
        def hook(parameter: Tensor) -> None:
            if parameter.grad is not None:
                total.add_(parameter.grad, alpha=weight)
                parameter.grad = None

        return hook

    hooks = [p.register_post_accumulate_grad_hook(consume(t)) for p, t in zip(parameters, into, strict=True)]
    try:
        for p in parameters:
            p.grad = None
        loss.backward(inputs=list(parameters))
    finally:
        for hook in hooks:
            hook.remove()
        for p, grad in zip(parameters, before, strict=True):
            p.grad = grad


def dots(a: Gradient, b: Gradient) -> Tensor:
    """⟨a_i, b_i⟩ of each parameter as a float64 vector (float32 where the device has no float64).

    `a` may wait in main memory; `b` says where to compute.
    """
    wide = torch.float32 if b[0].device.type == "mps" else torch.float64
    found = []
    for part in savings.buckets(b):
        here = [x.to(y.device, non_blocking=True) for x, y in zip(a[part], b[part], strict=True)]
        if sharding.sharded(here) or sharding.sharded(b[part]):
            found.append(sharding.products(here, b[part], wide))
        else:
            found.append(torch.stack([_product(x, y, wide) for x, y in zip(here, b[part], strict=True)]))
    return torch.cat(found)


def _product(a: Tensor, b: Tensor, wide: torch.dtype) -> Tensor:
    """⟨a, b⟩ of two tensors: float32 over rows of `ROW` numbers, the rows in `wide`.

    A sum in `wide` alone takes ten times as long, one dot product in float32 is off by 1e-4 for a million numbers.
    """
    if a.dtype != torch.float32 or b.dtype != torch.float32 or a.numel() < ROW:
        return (a * b).sum(dtype=wide)
    pieces = zip(a.reshape(-1).split(PIECE), b.reshape(-1).split(PIECE), strict=True)
    if a.requires_grad or b.requires_grad:
        return torch.stack([_rows(x * y, wide) for x, y in pieces]).sum()
    room = a.new_empty(min(PIECE, a.numel()))  # one for all pieces: on a CPU new memory costs more than the product
    return torch.stack([_rows(torch.mul(x, y, out=room[: x.numel()]), wide) for x, y in pieces]).sum()


def _rows(numbers: Tensor, wide: torch.dtype) -> Tensor:
    whole = numbers.numel() // ROW * ROW
    total = numbers[:whole].view(-1, ROW).sum(1).sum(dtype=wide)
    return total + numbers[whole:].sum(dtype=wide) if whole < numbers.numel() else total


def dot(a: Gradient, b: Gradient) -> Tensor:
    """⟨a, b⟩ over all parameters, a float64 scalar tensor."""
    return dots(a, b).sum()


def norm(a: Gradient) -> Tensor:
    """‖a‖, one global L2 norm over all parameters, a float64 scalar tensor."""
    return dot(a, a).sqrt()


def unit(a: Gradient) -> Gradient:
    """a/‖a‖; a UserError if a is zero, because then it has no direction."""
    length = float(norm(a))
    if length == 0:
        raise UserError("A gradient is exactly zero, so it has no direction: is every label of the batch masked?")
    return scale(a, 1 / length)


def cosine(a: Gradient, b: Gradient) -> Tensor:
    """⟨a, b⟩/(‖a‖·‖b‖) of the flattened gradients, a float64 scalar tensor; nan if one is zero."""
    return dot(a, b) / (norm(a) * norm(b))


def scale(a: Gradient, by: float) -> Gradient:
    """by·a, as new tensors."""
    return list(torch._foreach_mul(a, by))


def combine(*terms: tuple[float, Gradient]) -> Gradient:
    """Σ weight·gradient, as new tensors."""
    weight, first = terms[0]
    total = scale(first, weight)
    for weight, term in terms[1:]:
        torch._foreach_add_(total, term, alpha=weight)
    return total


def accumulate(total: Gradient, term: Gradient, weight: float = 1.0) -> None:
    """Total += weight·term, in place; `term` may wait in main memory."""
    for part in savings.buckets(total):
        moved = [x.to(t.device, non_blocking=True) for x, t in zip(term[part], total[part], strict=True)]
        torch._foreach_add_(total[part], moved, alpha=weight)


def rescale(a: Gradient, by: float) -> None:
    """A := by·a, in place."""
    torch._foreach_mul_(a, by)


def clipped(a: Gradient, largest: float) -> Gradient:
    """a, scaled down to norm `largest` if it is longer; 0 is off."""
    length = float(norm(a)) if largest > 0 else 0.0
    return scale(a, largest / length) if length > largest > 0 else a


def leave(parameters: Sequence[nn.Parameter], direction: Gradient) -> None:
    """Put the update direction in `.grad`, where the loop's optimizer takes it from."""
    for parameter, g in zip(parameters, direction, strict=True):
        parameter.grad = g.to(parameter.dtype)


@contextmanager
def restored(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yields a copy of the weights; whatever happens inside, they are that copy again afterwards, bit for bit.

    A copy is put back instead of the step being undone: adding and subtracting leaves about 4 % of fp32 weights one
    rounding unit off.
    """
    with putting_back(parameters) as copies:
        copies += savings.copied(parameters)
        yield copies


@contextmanager
def putting_back(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """As `restored`, with a list to which the caller adds a copy of each weight in turn before it moves the weight."""
    copies: list[Tensor] = []
    try:
        yield copies
    finally:
        put_back(parameters[: len(copies)], copies)


def put_back(parameters: Sequence[Tensor], copies: Sequence[Tensor]) -> None:
    """The weights are the copies again, bit for bit."""
    if copies:
        with torch.no_grad():
            torch._foreach_copy_([sharding.held(p) for p in parameters], [sharding.held(c) for c in copies])


@contextmanager
def shifted(parameters: Sequence[nn.Parameter], direction: Gradient, by: float) -> Iterator[float]:
    """θ + by·direction inside, θ again after. Yields ‖θ′−θ‖/(by·‖direction‖): 1 if the shift survived rounding."""
    with restored(parameters):
        parts = savings.buckets(parameters)
        yield displacement([shift(parameters[part], direction[part], by) for part in parts], by)


def shift(parameters: Sequence[Tensor], direction: Gradient, by: float) -> tuple[Tensor, Tensor]:
    """θ := θ + by·direction, in place. ‖θ′−θ‖² and ‖direction‖² of each parameter, for `displacement`.

    Under autocast θ and θ′ are compared as the passes see them, in its precision.
    """
    with torch.no_grad():
        before = [p.detach().clone() for p in parameters]
        torch._foreach_add_(list(parameters), direction, alpha=by)
        after, kind = list(parameters), parameters[0].device.type
        if torch.is_autocast_enabled(kind):
            seen = torch.get_autocast_dtype(kind)
            before, after = ([t.detach().to(seen).to(t.dtype) for t in each] for each in (before, after))
        moved = list(torch._foreach_sub(after, before))
        return dots(moved, moved), dots(direction, direction)


def displacement(squares: Sequence[tuple[Tensor, Tensor]], by: float) -> float:
    """‖θ′−θ‖/(by·‖direction‖) of a shift made in parts: 1 if it survived rounding, 0 if nothing moved; far above 1 in
    bf16, where a few weights jump by a rounding unit for many that should have moved by less."""
    moved, direction = (float(torch.cat(each).sum()) for each in zip(*squares, strict=True))
    wanted = (by * by * direction) ** 0.5
    return moved**0.5 / wanted if wanted else 0.0


def full_precision(model: nn.Module) -> AbstractContextManager[object]:
    """No autocast inside: what is left of two gradients that nearly cancel would be lost in its rounding."""
    return torch.autocast(next(model.parameters()).device.type, enabled=False)


@contextmanager
def cast(parameters: Sequence[nn.Parameter], dtype: torch.dtype) -> Iterator[None]:
    """The weights rounded to `dtype` inside, the originals after; a UserError for sharded weights."""
    if sharding.sharded(parameters):
        raise UserError("Sharded weights keep their precision: use precision=fp32 or bf16-autocast, or one device.")
    originals = [p.data for p in parameters]
    try:
        for p in parameters:
            p.data = p.data.to(dtype)
        yield
    finally:
        for p, original in zip(parameters, originals, strict=True):
            p.data = original


def layer_of(model: nn.Module) -> list[int | None]:
    """The layer index of each trainable parameter, read from its name; None for embeddings, final norm and head."""
    found = [LAYER.search(f".{name}") for name, p in model.named_parameters() if p.requires_grad]
    return [int(m.group(1)) if m else None for m in found]


def by_layer(model: nn.Module, per_parameter: Tensor) -> list[float]:
    """Sums a vector with one entry per trainable parameter over the parameters of each layer, in layer order."""
    layers = layer_of(model)
    totals = [0.0] * (max((i for i in layers if i is not None), default=-1) + 1)
    for layer, value in zip(layers, per_parameter.tolist(), strict=True):
        if layer is not None:
            totals[layer] += value
    return totals
