"""Traces of scalars: horizontal axis, smoothing, and bands over the runs of a group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

AXES = {
    "step": "Step",
    "samples": "Rows trained on (steps × batch)",
    "minutes": "Minutes",
    "progress": "Share of the budget",
}


def with_x(points: pd.DataFrame, x: str, runs: pd.DataFrame) -> pd.DataFrame:
    """`points` with a column `x`; samples = steps × batch size, minutes count from a run's first point of a phase.

    Runs without the setting that the axis needs (batch size, steps) are left out: an axis is never made up.
    """
    if x == "step":
        return points.assign(x=points["step"])
    if x == "minutes":
        start = points.groupby(["run_id", "phase"])["at"].transform("min")
        return points.assign(x=(points["at"] - start) / 60)
    settings = runs.set_index("run_id")
    column, each = ("batch_size", points["step"]) if x == "samples" else ("steps", points["step"])
    known = points["run_id"].map(settings[column]).astype(float)
    values = each * known if x == "samples" else each / known
    return points.assign(x=values)[known.notna() & (known > 0)]


def smooth(values: pd.Series, weight: float) -> pd.Series:
    """Exponential moving average with bias correction, as in TensorBoard; weight 0 changes nothing.

    A missing value stays missing and does not count in the average.
    """
    if weight <= 0:
        return values
    out, average, seen = np.full(len(values), np.nan), 0.0, 0
    for i, value in enumerate(values.to_numpy(dtype=float)):
        if np.isfinite(value):
            seen += 1
            average = average * weight + (1 - weight) * value
            out[i] = average / (1 - weight**seen)
    return pd.Series(out, index=values.index)


def bands(points: pd.DataFrame, groups: Mapping[str, Any]) -> pd.DataFrame:
    """Mean, minimum and maximum over the runs of each group at every x: columns group, name, x, value, low, high, n.

    `groups` maps run_id to the group's label; runs that it lacks are left out.
    """
    labelled = points.assign(group=points["run_id"].map(groups)).dropna(subset=["group", "value"])
    return (
        labelled.groupby(["group", "name", "x"], sort=True)["value"]
        .agg(value="mean", low="min", high="max", n="count")
        .reset_index()
    )
