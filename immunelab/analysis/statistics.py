"""Intervals for shares and for means over few seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Z95 = 1.959963984540054


def wilson(share: float, n: float, z: float = Z95) -> tuple[float, float]:
    """The Wilson score interval of a share observed over n examples; (0, 1) for n = 0 or an unknown share."""
    if not n > 0 or not math.isfinite(share):
        return 0.0, 1.0
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At 0 and 1 the interval ends exactly at the observed share; rounding must not move it past that.
    return min(share, max(0.0, center - half)), max(share, min(1.0, center + half))


def bootstrap(values: Sequence[float], level: float = 0.95, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean; a point for one value, and too narrow with few seeds."""
    data = np.asarray(values, dtype=float)
    data = data[np.isfinite(data)]
    if data.size == 0:
        return math.nan, math.nan
    picks = np.random.default_rng(seed).integers(0, data.size, size=(draws, data.size))
    low, high = np.quantile(data[picks].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
