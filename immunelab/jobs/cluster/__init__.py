"""Runs of a sweep on the nodes of a cluster. The unit is the same as on one machine: a run's folder and its worker.

A cluster decides when and where a run is carried out. Everything else (status, journal, stop, resume, what is on
record) is in the files of the home, on a disk that all nodes share. Without such a disk, Ray carries run folders to the
nodes and back.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

from immunelab.errors import UserError, unknown
from immunelab.jobs import processes
from immunelab.jobs.cluster.carrying import Executor, Options, Over
from immunelab.jobs.cluster.on_ray import Ray
from immunelab.jobs.cluster.on_slurm import Slurm

__all__ = ["EXECUTORS", "Executor", "Options", "Over", "Ray", "Slurm", "executor", "settle"]

EXECUTORS: dict[str, Callable[[Options], Executor] | None] = {"local": None, "slurm": Slurm, "ray": Ray}
TAKES = {
    "local": set[str](),
    "slurm": {"partition", "minutes", "cpus", "gpus", "at_once"},
    "ray": {"cpus", "gpus", "at_once", "address", "apart"},
}


def executor(name: str, options: Options) -> Executor | None:
    """The executor of a name; None: a worker process here. A UserError if its package or its cluster is missing."""
    if name not in EXECUTORS:
        raise unknown("executor", name, EXECUTORS)
    usual = Options()
    for field in dataclasses.fields(Options):
        if field.name not in TAKES[name] and getattr(options, field.name) != getattr(usual, field.name):
            said = field.name.replace("_", "-")
            fits = " or ".join(other for other, takes in TAKES.items() if field.name in takes)
            raise UserError(f"--{said} means nothing to the executor {name}: leave it out, or use --executor {fits}.")
    make = EXECUTORS[name]
    return make(options) if make else None


def settle(using: Executor, home: Path) -> list[str]:
    """Mark runs `interrupted` whose job is over although no worker ever started them; returns their ids.

    A cancelled job or a lost node can't report that itself.
    """
    lost = []
    for folder, why in using.over(home):
        with processes.changing(home):
            if folder.path.exists() and processes.in_line(folder.recorded()):
                because = f" ({why:.400})" if why else ""
                text = f"its job ended before a worker came up{because}; the same command again hands it over anew"
                folder.write_status(status="interrupted", message=text, host="", pid=None, ended_at=time.time())
                lost.append(folder.run_id)
    return lost
