"""The algebra that the papers share: gradients as lists of tensors, their norms and cosines, and shifted weights.

A gradient is a list with one tensor per trainable parameter, in the order of `trainable(model)`. Norms and dot
products are global over all of them, accumulated in float64, and on sharded parameters (DTensor) they reduce across
ranks. Every function that touches the weights is a context manager that puts back the very bits it found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from immunelab.errors import UserError

Gradient = list[Tensor]
LAYER = re.compile(r"\.(\d+)\.")


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
    if any(_sharded(p) for p in parameters):
        return _of_shards(loss, parameters, keep_graph, differentiable)
    found = torch.autograd.grad(
        loss, parameters, allow_unused=True, retain_graph=keep_graph or differentiable, create_graph=differentiable
    )
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def _of_shards(loss: Tensor, parameters: Sequence[Tensor], keep_graph: bool, differentiable: bool) -> Gradient:
    """FSDP puts gradients into `.grad` by hooks of the backward pass; the graph itself never reaches the shards."""
    if differentiable:
        raise UserError("Sharded weights have no second derivative: use estimator=finite-difference, or one device.")
    before = [p.grad for p in parameters]
    try:
        for p in parameters:
            p.grad = None
        loss.backward(retain_graph=keep_graph)
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    finally:
        for p, grad in zip(parameters, before, strict=True):
            p.grad = grad


def dots(a: Gradient, b: Gradient) -> Tensor:
    """⟨a_i, b_i⟩ of each parameter as a float64 vector (float32 where the device has no float64)."""
    wide = torch.float32 if a[0].device.type == "mps" else torch.float64
    products = torch._foreach_mul(a, b)
    if all(_sharded(p) for p in products):
        return _reduced(products, wide)
    return torch.stack([_whole(p.sum(dtype=wide)) for p in products])


def _sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor; asked so because not every build of torch has them."""
    return hasattr(tensor, "full_tensor")


def _held(tensor: Any) -> Tensor:
    """What this process holds of a tensor, in the same memory; `_foreach_copy_` does not know DTensors."""
    held: Tensor = tensor.to_local() if _sharded(tensor) else tensor
    return held


def _whole(scalar: Any) -> Tensor:
    """A reduction over a DTensor is still sharded or partial; its full value is what every rank needs."""
    full: Tensor = scalar.full_tensor() if _sharded(scalar) else scalar
    return full


def _reduced(shards: Sequence[Any], wide: torch.dtype) -> Tensor:
    """The sum of each tensor, in one exchange for all that are split in the same way instead of one each."""
    from torch.distributed.tensor import DTensor, Partial, Shard

    mesh = shards[0].device_mesh
    if any(s.device_mesh != mesh or not all(isinstance(p, Shard) for p in s.placements) for s in shards):
        return torch.stack([_whole(s.sum(dtype=wide)) for s in shards])
    mine = torch.stack([_held(s).sum(dtype=wide) for s in shards])
    return DTensor.from_local(mine, mesh, [Partial()] * mesh.ndim).full_tensor()


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
    """Total += weight·term, in place."""
    torch._foreach_add_(total, term, alpha=weight)


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
    copies = [p.detach().clone() for p in parameters]
    try:
        yield copies
    finally:
        with torch.no_grad():
            torch._foreach_copy_([_held(p) for p in parameters], [_held(c) for c in copies])


@contextmanager
def shifted(parameters: Sequence[nn.Parameter], direction: Gradient, by: float) -> Iterator[float]:
    """θ + by·direction inside, θ again after. Yields ‖θ′−θ‖/(by·‖direction‖): 1 if the shift survived rounding."""
    with restored(parameters) as before:
        with torch.no_grad():
            torch._foreach_add_(list(parameters), direction, alpha=by)
            moved = list(torch._foreach_sub(list(parameters), before))
            wanted = abs(by) * float(norm(direction))
            displacement = float(norm(moved)) / wanted if wanted else 0.0
            del moved
        yield displacement


@contextmanager
def cast(parameters: Sequence[nn.Parameter], dtype: torch.dtype) -> Iterator[None]:
    """The weights rounded to `dtype` inside, the originals after; a UserError for sharded weights."""
    if any(_sharded(p) for p in parameters):
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
