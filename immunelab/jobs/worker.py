"""The worker process: carries runs out one after the other, and keeps their status true."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from immunelab import journal
from immunelab.errors import UserError
from immunelab.jobs import failures, processes, turns
from immunelab.jobs.pulse import Pulse, finish
from immunelab.journal import RunFolder

POLL = 0.5  # seconds between looks at a parent that another worker carries
RESERVE = 64 << 10  # bytes set aside for the last status of a run that fills the disk
Execute = Callable[..., str]  # (folder, attempt, resume) -> "done" or "stopped"


class _Stopped(Exception):
    """The run was asked to stop before it began."""


class _Terminated(BaseException):
    """The process was told to end."""


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
    except _Terminated:
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
                if status.pid is not None and not ours and processes.alive(status):
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
            already = turns.standing(self.home, folder.run_id)
            if already:  # it stood in line and never came to its turn
                already[1].unlink(missing_ok=True)

    def _carry(self, folder: RunFolder, following: RunFolder | None) -> None:
        with _output_to(folder), self.pulse.carrying(folder):
            try:
                if not folder.recorded().ended:  # else it was stopped while it waited
                    self._await_parent(folder)
                    self._take_turn(folder, following)
            except _Stopped:
                _last_word(folder, "stopped", message="stopped before it began")
            except (_Terminated, KeyboardInterrupt):
                asked = folder.stop_requested()
                text = "ended by force, because it did not stop in time" if asked else "ended by a signal"
                text += "; resume goes on from the last checkpoint"
                _last_word(folder, "stopped" if asked else "interrupted", message=text)
                raise
            except Exception as error:  # noqa: BLE001 - a run may fail in any way: record it, go on with the next
                with contextlib.suppress(OSError):  # a full disk has no room for the log; the status has its own
                    traceback.print_exc(limit=0 if isinstance(error, UserError) else None)
                _last_word(folder, "failed", error=failures.sentence(error))
        self._leave(folder)

    def _take_turn(self, folder: RunFolder, following: RunFolder | None) -> None:
        if self.reserved and folder.run_id in self.reserved[1].name:
            device, ticket = self.reserved
        else:
            already = turns.standing(self.home, folder.run_id)
            device = already[0] if already else turns.resolve_device(folder.spec().device, self.home)
            ticket = turns.queue(self.home, device, folder.run_id, folder.recorded().queued_at or time.time())
        said = -1

        def waiting(ahead: int) -> None:
            nonlocal said
            if folder.stop_requested():
                raise _Stopped
            if ahead != said:
                said = ahead
                folder.write_status(device=device, message=f"waiting for {device}: {ahead} before it")

        with turns.turn(self.home, device, ticket, waiting):
            self._do(folder, device)
            self.reserved = self._reserve(following, device) if following else None

    def _do(self, folder: RunFolder, device: str) -> None:
        """The run itself, on a device that is ours."""
        if folder.stop_requested():
            raise _Stopped
        before = folder.recorded()
        if self.code is None:
            self.code = processes.code_version()
        folder.write_status(
            status="running",
            device=device,
            started_at=before.started_at or time.time(),
            heartbeat=time.time(),
            commit=self.code,
            message="starting" if self.execute else "starting: loading torch",
        )
        self.pulse.clock(before.seconds or 0.0)
        reserve = folder.path / ".reserve"
        try:
            reserve.write_bytes(b"\0" * RESERVE)
            execute = self.execute or _experiment()
            outcome = execute(folder, attempt=before.attempt, resume=before.attempt > 1)
        finally:
            reserve.unlink(missing_ok=True)
            with contextlib.suppress(UserError, OSError):  # the reason why it can't be written is on its way already
                folder.write_status(seconds=self.pulse.seconds)
        if outcome == "done":
            finish(folder, "done", progress=1.0)
        elif outcome == "stopped":
            finish(folder, "stopped", message="stopped as asked; resume goes on from here")
        else:
            raise RuntimeError(f"execute returned {outcome!r}, and done or stopped was expected")

    def _reserve(self, following: RunFolder, device: str) -> tuple[str, Path] | None:
        """Stand in line for the next run before the device is left, so that a later list doesn't slip in between."""
        try:
            status = following.recorded()
            if status.ended or following.spec().device not in ("auto", device) or not self._ready(following):
                return None
            return device, turns.queue(self.home, device, following.run_id, status.queued_at or time.time())
        except (UserError, OSError):
            return None  # what is wrong with it is told when its turn comes

    def _leave(self, folder: RunFolder) -> None:
        """After a run: give back its place in line, and its memory."""
        if self.reserved and folder.run_id in self.reserved[1].name:
            self.reserved[1].unlink(missing_ok=True)
            self.reserved = None
        gc.collect()
        torch = sys.modules.get("torch")
        if torch and torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def _await_parent(self, folder: RunFolder) -> None:
        """Wait for the run that this one starts from; a UserError if it did not work out."""
        said = False
        while not self._ready(folder):
            if folder.stop_requested():
                raise _Stopped
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


def _last_word(folder: RunFolder, status: str, **words: str) -> None:
    """As `finish`; where even that can't be written, reconciling finds the run once this process has ended."""
    try:
        finish(folder, status, **words)
    except (UserError, OSError):
        with contextlib.suppress(OSError):
            traceback.print_exc()


def _experiment() -> Execute:
    from immunelab.experiment import execute  # imports torch, on a device that is ours

    return execute


@contextlib.contextmanager
def _output_to(folder: RunFolder) -> Iterator[None]:
    """Standard output and error, those of C libraries and child processes too, go to the run's log.

    On a full disk the log may end early; that is no reason to lose the run's last word, or the runs that follow.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    try:
        target = os.open(folder.log_path, flags, 0o644)
    except OSError:
        target = os.open(os.devnull, os.O_WRONLY)  # what can't be logged is told by the status
    log = open(target, "w", encoding="utf-8", buffering=1)  # noqa: SIM115, PTH123 - closed below, where it may fail
    try:
        with contextlib.suppress(OSError):
            log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} attempt {folder.recorded().attempt} ---\n")
        kept = [os.dup(1), os.dup(2)]
        try:
            _turn_output([log.fileno()] * 2)
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                yield
        finally:
            _turn_output(kept)
            for descriptor in kept:
                os.close(descriptor)
    finally:
        with contextlib.suppress(OSError):
            log.close()


def _turn_output(targets: list[int]) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    for descriptor, target in zip((1, 2), targets, strict=True):
        os.dup2(target, descriptor)


@contextlib.contextmanager
def _told_to_end() -> Iterator[None]:
    """A SIGTERM is an exception meanwhile, so that the run at hand gets its last word."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
