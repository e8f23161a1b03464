"""The worker process: carries runs out one after the other, and keeps their status true."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from immunelab.errors import UserError
from immunelab.jobs import attempt, processes, queue, trials
from immunelab.jobs.heartbeat import Pulse
from immunelab.runs import journal
from immunelab.runs.journal import RunFolder

POLL = 0.5  # seconds between looks at a parent that another worker carries
Execute = attempt.Execute


def work(run_ids: Sequence[str], home: Path | str | None = None, execute: Execute | None = None) -> int:
    """Carry out queued runs in this process, in order; 0 if all of them are done, 143 if told to end, else 1.

    Runs that another living process carries, or that ended meanwhile, are left alone. `execute(folder, attempt=…,
    resume=…)` does one run and returns "done" or "stopped"; None takes `immunelab.experiment.execute`. What a run
    prints goes to its log.
    """
    place = journal.home(home)
    worker = _Worker(place, [RunFolder.open(place, run_id) for run_id in dict.fromkeys(run_ids)], execute)
    try:
        with _told_to_end():
            return worker.run()
    except attempt.Terminated:
        return 143


class _Worker:
    def __init__(self, home: Path, folders: list[RunFolder], execute: Execute | None) -> None:
        self.home, self.folders, self.execute = home, folders, execute
        self.code: str | None = None
        self.reserved: tuple[str, Path] | None = None  # device and ticket that the next run already has

    def run(self) -> int:
        """Every run that waits for us, in order."""
        mine = self._claim()
        with Pulse(mine) as self.pulse:
            for i, folder in enumerate(mine):
                self._one(folder, following=mine[i + 1] if i + 1 < len(mine) else None)
        return 0 if mine and all(f.path.exists() and f.recorded().status == "done" for f in mine) else 1

    def _claim(self) -> list[RunFolder]:
        """Take over the runs that wait for a worker."""
        mine = []
        with processes.changing(self.home):
            for folder in self.folders:
                status = folder.recorded()
                if status.status not in ("queued", "interrupted"):
                    continue
                # A process that started this one may stand for it: the launcher of a Windows environment does.
                ours = status.host == processes.HOST and status.pid in (os.getpid(), os.getppid())
                held = status.pid is not None and not processes.in_line(status)  # a cluster's line is for us to take
                if held and not ours and processes.alive(status):
                    continue
                folder.write_status(status="queued", ended_at=None, **processes.own())
                mine.append(folder)
        return mine

    def _one(self, folder: RunFolder, following: RunFolder | None) -> None:
        """One run, from queued to its end; whatever happens to it, the next one gets its turn."""
        try:
            if folder.path.exists():  # else it was stopped while it waited, and deleted
                self._carry(folder, following)
        finally:
            already = queue.standing(self.home, folder.run_id)
            if already:  # it stood in line and never came to its turn
                already[1].unlink(missing_ok=True)

    def _carry(self, folder: RunFolder, following: RunFolder | None) -> None:
        with attempt.output_to(folder), self.pulse.carrying(folder), attempt.last_words(folder):
            if not folder.recorded().ended:  # else it was stopped while it waited
                self._await_parent(folder)
                self._take_turn(folder, following)
        self._leave(folder)

    def _take_turn(self, folder: RunFolder, following: RunFolder | None) -> None:
        if self.reserved and folder.run_id in self.reserved[1].name:
            device, ticket = self.reserved
        else:
            already = queue.standing(self.home, folder.run_id)
            device = already[0] if already else queue.resolve_device(folder.spec().device, self.home)
            ticket = queue.join(self.home, device, folder.run_id, folder.recorded().queued_at or time.time())
        said = -1

        def waiting(ahead: int) -> None:
            nonlocal said
            if folder.stop_requested():
                raise attempt.Stopped
            if ahead != said:
                said = ahead
                folder.write_status(device=device, message=f"waiting for {device}: {ahead} before it")

        with queue.turn(self.home, device, ticket, waiting):
            self._do(folder, device)
            self.reserved = self._reserve(following, device) if following else None

    def _do(self, folder: RunFolder, device: str) -> None:
        """The run itself, on a device that is ours."""
        if folder.stop_requested():
            raise attempt.Stopped
        if self.code is None:
            self.code = processes.code_version()
        execute, message = self.execute, "starting"
        if execute is None:
            execute, message = _experiment, "starting: loading torch"
        if folder.spec().kind == "sweep":
            execute = trials.conducting(self.home, device, self.code, execute)
        attempt.carry_out(folder, device, self.pulse, self.code, execute, message)

    def _reserve(self, following: RunFolder, device: str) -> tuple[str, Path] | None:
        """Stand in line for the next run before the device is left, so that a later list doesn't slip in between."""
        try:
            status = following.recorded()
            if status.ended or following.spec().device not in ("auto", device) or not self._ready(following):
                return None
            return device, queue.join(self.home, device, following.run_id, status.queued_at or time.time())
        except (UserError, OSError):
            return None  # what is wrong with it is told when its turn comes

    def _leave(self, folder: RunFolder) -> None:
        """After a run: give back its place in line, and its memory."""
        if self.reserved and folder.run_id in self.reserved[1].name:
            self.reserved[1].unlink(missing_ok=True)
            self.reserved = None
        attempt.tidy()

    def _await_parent(self, folder: RunFolder) -> None:
        """Wait for the run that this one starts from; a UserError if it did not work out."""
        said = False
        while not self._ready(folder):
            if folder.stop_requested():
                raise attempt.Stopped
            if not said:
                folder.write_status(message=f"waiting for the run {folder.spec().parent}")
                said = True
            time.sleep(POLL)

    def _ready(self, folder: RunFolder) -> bool:
        """Whether the parent, if any, is done. A UserError where it never will be."""
        name = folder.spec().parent
        if not name:
            return True
        parent = RunFolder.open(self.home, name).status()
        if parent.status == "done":
            return True
        if not parent.ended and processes.alive(parent) and parent.pid != os.getpid():
            return False
        state = parent.status if parent.ended else "not run before it"
        because = f" ({parent.error:.200})" if parent.error else ""
        raise UserError(
            f"The run {name} that this one starts from is {state}{because}. Resume that one, then resume this one."
        )


def _experiment(folder: RunFolder, **how: Any) -> str:
    from immunelab.experiment.run import execute

    return execute(folder, **how)


@contextlib.contextmanager
def _told_to_end() -> Iterator[None]:
    """A SIGTERM is an exception meanwhile, so that the run at hand gets its last word."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise attempt.Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
