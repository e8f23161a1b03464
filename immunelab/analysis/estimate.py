"""How long a list of runs will take, estimated from recorded runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pandas as pd

from immunelab.runs.spec import RunSpec, base_name


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds for a list of runs, how many of them it can't estimate, and what it rests on."""

    seconds: float
    unknown: int
    basis: str

    def __str__(self) -> str:
        if not self.basis:
            return "No estimate yet: no finished run of these methods is recorded here."
        rest = f"; {self.unknown} more without a recorded run to judge by" if self.unknown else ""
        return f"About {duration(self.seconds)}{rest}. Rests on {self.basis}."


def estimate(wanted: Sequence[RunSpec], recorded: pd.DataFrame) -> Estimate:
    """Seconds = steps × the median seconds a step of finished runs of the method (and batch size, if there are any).

    Only runs with a base model of the list count: Fable says nothing about 7 billion parameters.
    """
    bases = {base_name(spec.model, spec.corpus) for spec in wanted if not spec.model.startswith("run:")}
    if bases and "base_model" in recorded:
        pairs = zip(recorded["base_model"], recorded["corpus"], strict=True)
        recorded = recorded.loc[[base_name(str(m), str(c)) in bases for m, c in pairs]]
    done = recorded[(recorded["status"] == "done") & (recorded["seconds"] > 0) & (recorded["steps"] > 0)]
    total, unknown, used = 0.0, 0, pd.Index([])
    for spec in wanted:
        same = done[done["method"] == spec.method]
        near = same[same["batch_size"] == spec.knobs.get("batch_size")]
        same = near if len(near) else same
        steps = spec.knobs.get("steps")
        if same.empty or not steps:
            unknown += 1
            continue
        total += float((same["seconds"] / same["steps"]).median()) * float(steps)
        used = used.union(same.index)
    if not len(used):
        return Estimate(0.0, unknown, "")
    where = ", ".join(sorted(recorded.loc[used, "device"].dropna().astype(str).unique())) or "unknown device"
    shipped = ", shipped ones among them" if recorded.loc[used, "showcase"].astype(bool).any() else ""
    return Estimate(total, unknown, f"the median step time of {len(used)} finished runs ({where}{shipped})")


def duration(seconds: float) -> str:
    """Seconds in words: 40 s, 3 min, 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
