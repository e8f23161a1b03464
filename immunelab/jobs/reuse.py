"""Runs of equal specs: what is on record need not be run again, and what was cut short can be gone on with."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from immunelab.corpus import described
from immunelab.errors import UserError
from immunelab.jobs import processes
from immunelab.runs.journal import RunFolder, folders
from immunelab.runs.spec import RunSpec

STATES = ("done", "under way", "unfinished", "new")


class Planned(NamedTuple):
    """A wanted run: its spec as it would be recorded, what is on record of it, and that run's id if there is one."""

    spec: RunSpec
    state: str  # one of STATES
    run_id: str | None


def judged(specs: Sequence[RunSpec]) -> list[RunSpec]:
    """The specs with who judges their corpora today, which is part of what a run is; its own method needs no judge."""
    known = {name: described.judge(name) for name in dict.fromkeys(spec.corpus for spec in specs)}
    return [
        dataclasses.replace(spec, judge="" if spec.kind == "evaluate" and spec.method else known[spec.corpus])
        for spec in specs
    ]


def recorded(place: Path) -> dict[str, list[RunFolder]]:
    """The runs of a home by the hash of their specs, the newest first."""
    found: dict[str, list[RunFolder]] = {}
    for folder in reversed(folders(place)):
        with contextlib.suppress(UserError, OSError):  # a folder that can't be read is not an equal run
            found.setdefault(folder.spec().hash, []).append(folder)
    return found


def equal(same: Sequence[RunFolder], reuse: bool, go_on: bool, checkpoint: bool) -> RunFolder | None:
    """Which of the runs of one hash stands for a wanted run: a finished one, else one under way, else an unfinished."""
    states = {id(folder): state(folder) for folder in same}
    wanted = [*(["done"] if reuse else []), *(["under way", "unfinished"] if go_on else [])]
    for state_ in wanted:
        for folder in same:
            whole = state_ != "done" or not checkpoint or any(folder.checkpoints.glob("step-*"))
            if states[id(folder)] == state_ and whole:
                return folder
    return None


def state(folder: RunFolder) -> str:
    """Whether a run is done, under way, or neither (unfinished); empty where its status can't be read."""
    try:
        status = folder.recorded()
    except (UserError, OSError):
        return ""
    if status.status == "done":
        return "done"
    return "unfinished" if status.ended or not processes.alive(status) else "under way"
