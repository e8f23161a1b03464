"""Commands of `immunelab` that a page starts in a process of their own, and that are no runs.

What became of one is read from its output: the last line, and whether the process lives. One of a name at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from immunelab.errors import UserError
from immunelab.jobs import failures, processes
from immunelab.runs import journal
from immunelab.runs.status import Status, read_file, replace_file

COMMAND = (sys.executable, "-P", "-m", "immunelab")
FOLDER = "commands"  # within the lab's home
READ = 4096  # bytes at the end of an output in which its last line is looked for


class CommandState(NamedTuple):
    """Whether its process lives, and the last line that it wrote."""

    alive: bool
    words: str
    log: Path


def start_command(
    name: str, arguments: Sequence[str], home: Path | str | None = None, command: Sequence[str] = COMMAND
) -> None:
    """Start `immunelab ARGUMENTS --home HOME`; one of that name that still goes is left to it."""
    place = journal.home(home)
    with processes.changing(place), failures.told():
        folder = place / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        before = command_state(name, place)
        if before and before.alive:
            return
        log = folder / f"{name}.log"
        log.unlink(missing_ok=True)
        child = processes.detached([*command, *arguments, "--home", str(place)], log)
        who = Status(status="running", run_id=name, pid=child.pid, host=processes.HOST)
        with contextlib.suppress(psutil.NoSuchProcess):  # ended at once: its output says why
            who = dataclasses.replace(who, create_time=psutil.Process(child.pid).create_time())
        replace_file(folder / f"{name}.json", who.to_json())


def command_state(name: str, home: Path | str | None = None) -> CommandState | None:
    """What became of a command; None if there was none of that name."""
    processes.reap()
    folder = journal.home(home) / FOLDER
    log = folder / f"{name}.log"
    try:
        who = Status.from_json(read_file(folder / f"{name}.json"), f"{name}.json")
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - READ))
            lines = file.read().decode("utf-8", "replace").split("\n")
        who = dataclasses.replace(who, heartbeat=log.stat().st_mtime)
    except (UserError, OSError, json.JSONDecodeError):
        return None
    return CommandState(processes.alive(who), next((line.strip() for line in reversed(lines) if line.strip()), ""), log)
