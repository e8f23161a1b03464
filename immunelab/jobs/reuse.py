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
from immunelab.runs import shipped
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


class Record(NamedTuple):
    """The runs of a home, the newest first."""

    equal: dict[str, list[RunFolder]]  # by the hash of their specs
    alike: dict[str, list[RunFolder]]  # by that of the weights that they leave

    def match(self, spec: RunSpec, states: Sequence[str], as_parent: bool = False) -> RunFolder | None:
        """The run that stands for a wanted one: of the first of these states (of `STATES`), if possible an equal one.

        `as_parent`: others start from its weights, so they must still be there if it is done, and a run serves that
        leaves the same weights and measured something else on its way.
        """
        found = self.equal.get(spec.hash, [])
        if as_parent:
            found = [*found, *(f for f in self.alike.get(spec.weights_hash, ()) if f not in found)]
        now = [(folder, state(folder)) for folder in found]
        for wanted in states:
            for folder, its in now:
                whole = its != "done" or not as_parent or any(folder.checkpoints.glob("step-*"))
                if its == wanted and whole:
                    return folder
        return None


def recorded(place: Path, ready: bool = True) -> Record:
    """What a home holds, and, if `ready`, behind that the immunized models that ship with the lab."""
    record = Record({}, {})
    own = folders(place)
    have = {folder.run_id for folder in own}
    for folder in [*reversed(own), *(f for f in shipped.folders() if ready and f.run_id not in have)]:
        with contextlib.suppress(UserError, OSError):  # a folder that can't be read is not an equal run
            spec = folder.spec()
            record.equal.setdefault(spec.hash, []).append(folder)
            record.alike.setdefault(spec.weights_hash, []).append(folder)
    return record


def states(reuse: bool, go_on: bool) -> tuple[str, ...]:
    """The states of runs that may stand for a wanted one."""
    return ("done",) * reuse + ("under way", "unfinished") * go_on


def state(folder: RunFolder) -> str:
    """Whether a run is done, under way, or neither (unfinished); empty where its status can't be read."""
    try:
        status = folder.recorded()
    except (UserError, OSError):
        return ""
    if status.status == "done":
        return "done"
    return "unfinished" if status.ended or not processes.alive(status) else "under way"
