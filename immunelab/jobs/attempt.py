"""One attempt at a run: from its first status to its last word, whatever happens, with its output in its log."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator

from immunelab.errors import UserError
from immunelab.jobs import failures
from immunelab.jobs.heartbeat import Heartbeat, finish
from immunelab.runs.journal import RunFolder

RESERVE = 64 << 10  # bytes set aside for the last status of a run that fills the disk
Execute = Callable[..., str]  # (folder, attempt, resume) -> "done" or "stopped"


class Stopped(Exception):
    """The run was asked to stop before it began."""


class Terminated(BaseException):
    """The process was told to end."""


def carry_out(folder: RunFolder, device: str, heartbeat: Heartbeat, code: str, execute: Execute, message: str) -> None:
    """The run itself, on a device that is ours. What `execute` raises passes; else the last word is written."""
    before = folder.recorded()
    folder.write_status(
        status="running",
        device=device,
        started_at=before.started_at or time.time(),
        heartbeat=time.time(),
        commit=code,
        message=message,
    )
    heartbeat.clock(before.seconds or 0.0)
    reserve = folder.path / ".reserve"
    try:
        reserve.write_bytes(b"\0" * RESERVE)
        outcome = execute(folder, attempt=before.attempt, resume=before.attempt > 1)
    finally:
        reserve.unlink(missing_ok=True)
        with contextlib.suppress(UserError, OSError):  # the reason why it can't be written is on its way already
            folder.write_status(seconds=heartbeat.seconds)
    if outcome == "done":
        finish(folder, "done", progress=1.0)
    elif outcome == "stopped":
        finish(folder, "stopped", message="stopped as asked; resume goes on from here")
    else:
        raise RuntimeError(f"execute returned {outcome!r}, and done or stopped was expected")


def tidy() -> None:
    """After a run: give its memory back, the device's too."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def last_words(folder: RunFolder) -> Iterator[None]:
    """Whatever happens to a run inside is told by its status. Only the end of the process itself passes."""
    try:
        yield
    except Stopped:
        _last_word(folder, "stopped", message="stopped before it began")
    except (Terminated, KeyboardInterrupt):
        asked = folder.stop_requested()
        text = "ended by force, because it did not stop in time" if asked else "ended by a signal"
        text += "; resume goes on from the last checkpoint"
        _last_word(folder, "stopped" if asked else "interrupted", message=text)
        raise
    except Exception as error:  # noqa: BLE001 - a run may fail in any way: record it, go on with the next
        with contextlib.suppress(OSError):  # a full disk has no room for the log; the status has its own
            traceback.print_exc(limit=0 if isinstance(error, UserError) else None)
        _last_word(folder, "failed", error=failures.sentence(error))


def _last_word(folder: RunFolder, status: str, **words: str) -> None:
    """As `finish`; where even that can't be written, reconciling finds the run once this process has ended."""
    try:
        finish(folder, status, **words)
    except (UserError, OSError):
        with contextlib.suppress(OSError):
            traceback.print_exc()


@contextlib.contextmanager
def output_to(folder: RunFolder) -> Iterator[None]:
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
