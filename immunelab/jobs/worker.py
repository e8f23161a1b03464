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
from immunelab.jobs.demand import Demand, demand
from immunelab.jobs.heartbeat import Heartbeat
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
    """Takes the runs of a list one after the other; other workers of the same list take others beside it."""

    def __init__(self, home: Path, folders: list[RunFolder], execute: Execute | None) -> None:
        self.home, self.folders, self.execute = home, folders, execute
        self.code: str | None = None
        self.carried: list[RunFolder] = []
        self.interrupted = {f.run_id for f in folders if f.recorded().status == "interrupted"}  # asked for all the same

    def run(self) -> int:
        """Every run of the list that nobody else takes. Standing in line, a run is taken; 0 if all of ours are done."""
        with Heartbeat(self.folders) as self.heartbeat:
            following = self._next(wait=True)
            while following:
                folder, ticket = following
                self.carried.append(folder)
                following = self._one(folder, *ticket) or self._next(wait=True)
        mine = self.carried
        return 0 if mine and all(f.path.exists() and f.recorded().status == "done" for f in mine) else 1

    def _next(self, wait: bool, on: str = "") -> tuple[RunFolder, tuple[str, Path]] | None:
        """Stand in line for the first run of the list that is free and can start; None if there is none.

        With `wait`, runs whose parents are still under way are waited for. `on` is the device that we hold: only runs
        that may be done there are taken.
        """
        while True:
            with processes.changing(self.home):
                free = [folder for folder in self.folders if self._free(folder)]
                for folder in free:
                    ticket = self._take(folder, on)
                    if ticket:
                        return folder, ticket
            if not wait or not free:
                return None
            time.sleep(POLL)

    def _free(self, folder: RunFolder) -> bool:
        """Whether a run waits for a worker, and no living one has taken it."""
        if not folder.path.exists() or folder in self.carried:
            return False  # deleted, or ours and over
        status = folder.recorded()
        if status.status == "interrupted" and status.started_at and folder.run_id not in self.interrupted:
            return False  # it was begun by another worker of this list, and whether to go on is for people to say
        if status.status not in ("queued", "interrupted") or queue.ticket_of(self.home, folder.run_id, ours=False):
            return False
        # A list's other workers have not taken what has no ticket; the line of a cluster is for us to take.
        return not processes.alive(status) or processes.in_line(status) or processes.alike(status)

    def _take(self, folder: RunFolder, on: str) -> tuple[str, Path] | None:
        """Stand in line for a free run if it can start, and say that it is ours. Call it inside `changing`."""
        status, device = folder.recorded(), on or "cpu"
        try:
            spec = folder.spec()
            if not self._ready(folder):
                if not (status.message and processes.alive(status)):
                    folder.write_status(message=f"waiting for the run {spec.parent}", **processes.own())
                return None
            if on and spec.device not in ("auto", on):
                return None
            already = queue.ticket_of(self.home, folder.run_id)
            device = already[0] if already else on or queue.resolve_device(spec.device, self.home)
        except (UserError, OSError):
            if on:
                return None  # what is wrong with it is told when it is begun
        folder.write_status(status="queued", ended_at=None, **processes.own())
        return device, queue.join(self.home, device, folder.run_id, status.queued_at or time.time())

    def _one(self, folder: RunFolder, device: str, ticket: Path) -> tuple[RunFolder, tuple[str, Path]] | None:
        """One run, from queued to its end, whatever happens to it; returns the next one, if that is known already."""
        following = None
        try:
            if not folder.path.exists():  # it was stopped while it waited, and deleted
                return None
            with attempt.output_to(folder), self.heartbeat.carrying(folder), attempt.last_words(folder):
                self._ready(folder)  # says what is wrong with its parent
                queue.resolve_device(folder.spec().device)  # or with its device
                with self._turn(folder, device, ticket):
                    # We stand in line again before the device is left, so that a later list doesn't slip in between.
                    try:
                        self._do(folder, device)
                    except Exception:
                        following = self._next(wait=False, on=device)
                        raise
                    following = self._next(wait=False, on=device)
        finally:
            queue.leave(ticket)
            attempt.tidy()
        return following

    @contextlib.contextmanager
    def _turn(self, folder: RunFolder, device: str, ticket: Path) -> Iterator[None]:
        said = -1

        def waiting(ahead: int) -> None:
            nonlocal said
            if folder.stop_requested():
                raise attempt.Stopped
            if ahead != said:
                said = ahead
                folder.write_status(device=device, message=f"waiting for {device}: {ahead} before it")

        wanted = demand(folder.spec(), self.home) if device == "cpu" else Demand(1, 0)
        with queue.turn(self.home, device, ticket, waiting, wanted.share, wanted.memory):
            yield

    def _do(self, folder: RunFolder, device: str) -> None:
        """The run itself, on a device that is ours."""
        if folder.recorded().ended:
            return  # it was stopped while it waited
        if folder.stop_requested():
            raise attempt.Stopped
        if self.code is None:
            self.code = processes.code_version()
        execute, message = self.execute, "starting"
        if execute is None:
            execute, message = _experiment, "starting: loading torch"
        if folder.spec().kind == "sweep":
            execute = trials.conducting(self.home, device, self.code, execute)
        attempt.carry_out(folder, device, self.heartbeat, self.code, execute, message)

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
