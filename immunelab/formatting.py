"""Quantities in words, the same in the terminal and in the browser. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def duration(seconds: float | None) -> str:
    """Seconds as 12 s, 3 min 20 s or 2 h 5 min; a dash where they are not known."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(count: float) -> str:
    """Bytes as 980 B, 12.5 kB, 542 MB or 4.2 GB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def share(value: float | None) -> str:
    """A share in 0–1 as a percentage with one decimal; a dash where it is not known."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.1%}"


def named(values: Mapping[str, Any]) -> str:
    """Settings with their values in one line: "beta 0.5, ascent layerwise"."""
    return ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
