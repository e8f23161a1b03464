"""What all clusters share: the options of a job, the function that a node calls, and which run waits for which."""

from __future__ import annotations

import importlib
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from immunelab.errors import UserError
from immunelab.jobs import processes, turns
from immunelab.journal import RunFolder


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a job asks its cluster for; a job carries one run."""

    partition: str = ""  # Slurm's
    minutes: int = 24 * 60  # Slurm's time limit
    cpus: int = 1
    gpus: int = 0
    at_once: int = 0  # jobs of one array, or slots of a local Ray; 0 is as many as there are
    address: str = ""  # of a Ray cluster; empty starts one on this machine

    def __post_init__(self) -> None:
        for name, least in {"minutes": 1, "cpus": 1, "gpus": 0, "at_once": 0}.items():
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise UserError(f"{name.replace('_', '-')} is a whole number from {least}, and got {value!r:.80}.")


class Executor(Protocol):
    """Hands runs to a cluster."""

    outlives: bool  # whether jobs go on when this process has ended

    def begin(self, home: Path, folders: Sequence[RunFolder]) -> None:
        """Hand over queued runs, parents before their children. Called inside `jobs.processes.changing`."""

    def over(self) -> list[RunFolder]:
        """Those of them whose job has ended, however."""

    def close(self) -> None:
        """Let go of the cluster."""


def carry(run_id: str, home: str, command: Sequence[str] | None = None) -> int:
    """On a node: one worker process for one run, which has the job's device to itself; its exit code.

    Device locks are those of the job, because nodes that share a disk do not share a device.
    """
    environment = processes.environment() | {turns.LINE: run_id}
    try:
        line = [*(command or processes.WORKER), run_id, "--home", home]
        return subprocess.run(line, env=environment, stdin=subprocess.DEVNULL, check=False).returncode
    finally:
        shutil.rmtree(turns.lines(Path(home), run_id), ignore_errors=True)


def by_parent(folders: Sequence[RunFolder]) -> dict[str, list[RunFolder]]:
    """Runs by the run of this list that they start from, in order; under "" those that wait for none of the list."""
    mine, found = {f.run_id for f in folders}, dict[str, list[RunFolder]]()
    for folder in folders:
        parent = folder.spec().parent
        found.setdefault(parent if parent in mine else "", []).append(folder)
    return found


def in_line(folder: RunFolder, where: str) -> None:
    """Write into a queued run that a cluster has it, so that nobody here takes it for forgotten."""
    folder.write_status(host=where, pid=None, create_time=None, message=f"waiting for {where.replace(':', ' job ')}")


def optional(package: str, extra: str) -> Any:
    """A package of an extra; a UserError with the command that installs it."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(
            f"The executor {extra} needs the package {package}, which is not installed: pip install {package} "
            f"(or immunelab with the extra {extra})."
        ) from None
