"""Whether a run can be computed as it asks to be, found out before anything of it is written.

Runs with the usual numbers are not looked at, so that starting them needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from immunelab.errors import UserError
from immunelab.jobs.queue import resolve_device
from immunelab.method import configure
from immunelab.runs import journal, numerics
from immunelab.runs.spec import KIND_OF_METHOD, RunSpec


def check(specs: Sequence[RunSpec], home: Path | str | None = None, here: bool = True) -> None:
    """A UserError if device, method or model can't do a spec's dtype or attention.

    `here` False: on a cluster, whose devices are not known before the run is there.
    """
    place = journal.home(home)
    for spec in specs:
        if {"dtype": spec.dtype, "attention": spec.attention} == numerics.USUAL:
            continue
        if here:
            # Every trial of a search is by AdamW.
            knobs = {"optimizer": "adamw"} if spec.kind == "sweep" else spec.knobs
            numerics.check(spec.dtype, spec.attention, resolve_device(spec.device, place), knobs)
        _method(spec)
        if spec.attention != numerics.USUAL["attention"]:
            from immunelab.experiment import run as experiment

            experiment.check_attention(spec, place)


def _method(spec: RunSpec) -> None:
    """A UserError if the method's arithmetic has no use for rounded weights. Imports torch for other dtypes."""
    kind = "evaluation" if spec.kind == "evaluate" else KIND_OF_METHOD.get(spec.kind)
    if spec.dtype == numerics.USUAL["dtype"] or not kind or not spec.method:
        return
    reason = configure(kind, spec.method, spec.knobs).in_fp32()  # type: ignore[arg-type]
    if reason:
        raise UserError(f"{spec.method} does not run on weights in {spec.dtype}: {reason}")
