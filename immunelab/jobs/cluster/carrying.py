"""What Slurm and Ray share: the options of a job, the function that a node calls, and which run waits for which."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from immunelab import jobs
from immunelab.errors import UserError
from immunelab.jobs import processes, queue
from immunelab.runs.journal import RunFolder

VISIBLE = 30.0  # seconds that a network disk may take until another node sees a new folder


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a job asks of its cluster; a job carries out one run."""

    partition: str = ""  # Slurm's
    minutes: int = 24 * 60  # Slurm's time limit
    cpus: int = 1
    gpus: int = 0
    at_once: int = 0  # most jobs of an array, or slots of a local Ray, at a time; 0: no limit
    address: str = ""  # of a Ray cluster; empty starts one on this machine
    apart: bool = False  # Ray's nodes do not see the disk of the home: run folders travel through its object store

    def __post_init__(self) -> None:
        for name, least in {"minutes": 1, "cpus": 1, "gpus": 0, "at_once": 0}.items():
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise UserError(f"{name.replace('_', '-')} is a whole number from {least}, and got {value!r:.80}.")


class Over(NamedTuple):
    """A run whose job has ended, and what the cluster says about it (may be empty)."""

    folder: RunFolder
    why: str = ""


class Executor(Protocol):
    """Hands runs to a cluster."""

    outlives: bool  # whether jobs go on when this process has ended

    def begin(self, home: Path, folders: Sequence[RunFolder]) -> None:
        """Hand over queued runs, parents before their children. Called inside `jobs.processes.changing`."""

    def over(self, home: Path) -> list[Over]:
        """The runs whose job has ended, however. Also writes down what nodes without the home's disk sent."""

    def close(self) -> None:
        """Leave the cluster."""


def carry(
    run_id: str, home: str, command: Sequence[str] | None = None, meanwhile: Callable[[], object] | None = None
) -> int:
    """On a node: start the worker process of one run and wait for it; returns its exit code.

    The worker uses device locks of the job's own, because nodes that share a disk do not share a device. A run that
    does not stop in time is ended by force here, because only its own machine can. `meanwhile` is called about once a
    second.
    """
    folder = RunFolder(Path(home) / "runs" / run_id)
    _await_visible(folder)
    line = [*(command or processes.WORKER), run_id, "--home", home]
    worker = processes.detached(line, folder.log_path, {queue.LINE: run_id})
    born = processes.born(worker.pid)
    try:
        while True:
            try:
                return worker.wait(timeout=1.0)
            except subprocess.TimeoutExpired:
                if meanwhile:
                    meanwhile()
                if folder.overdue():
                    jobs.reconcile(home)
    finally:
        processes.end(worker.pid, born)  # if this call is interrupted
        if folder.path.exists() and not folder.recorded().ended:
            jobs.reconcile(home)  # it was killed, and this machine notices at once
        shutil.rmtree(queue.lines(Path(home), run_id), ignore_errors=True)


def _await_visible(folder: RunFolder) -> None:
    end = time.monotonic() + VISIBLE
    while not (folder.path / "spec.json").is_file():
        if time.monotonic() > end:
            raise UserError(
                f"The node {processes.HOST} does not see {folder.path}: nodes must share the disk of --home under the "
                "same path (on Ray, --apart sends the folders instead)."
            )
        time.sleep(0.5)


def by_parent(folders: Sequence[RunFolder], known: Sequence[str]) -> dict[str, list[RunFolder]]:
    """Runs, in order, by the parent that they wait for, if it is in the list or in `known`; the others under ""."""
    mine, found = {f.run_id for f in folders}.union(known), dict[str, list[RunFolder]]()
    for folder in folders:
        parent = folder.spec().parent
        found.setdefault(parent if parent in mine else "", []).append(folder)
    return found


def in_line(folder: RunFolder, where: str, **holder: Any) -> None:
    """Note in a queued run's status that a cluster has it, so that it is not taken for lost here.

    `holder` is the process (from `processes.own`) whose end would also end the job.
    """
    message = f"waiting for {where.replace(':', ' job ')}"
    folder.write_status(**{"pid": None, "create_time": None, **holder}, host=where, message=message)


def optional(package: str, extra: str) -> Any:
    """A package of an extra; a UserError with the command that installs it."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(
            f"The executor {extra} needs the package {package}, which is not installed: pip install {package} "
            f"(or immunelab with the extra {extra})."
        ) from None
