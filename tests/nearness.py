"""How far apart two gradients are. Bounds on it leave room for what kernels of other processors round otherwise."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from immunelab.training import gradients as g

ROUNDED = 1e-5  # relative: some eighty times float32's rounding, for sums that are taken in another order


def relative(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """‖found − wanted‖ / ‖wanted‖, computed in float64."""
    difference = [x.detach().double() - y.detach().double() for x, y in zip(found, wanted, strict=True)]
    return float(g.norm(difference) / g.norm([y.detach().double() for y in wanted]))
