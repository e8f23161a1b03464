"""The heartbeat of a worker, and the last word on a run."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

from immunelab.errors import UserError
from immunelab.jobs import processes, queue
from immunelab.runs.journal import RunFolder

BEAT = 1.0  # seconds between heartbeats


class Heartbeat:
    """A thread that shows that the worker lives, and lets go of runs that are stopped while they wait.

    `within` is the sweep that the runs are trials of: a wish to stop it is passed on to the trial at hand.
    """

    def __init__(self, waiting: list[RunFolder], within: RunFolder | None = None) -> None:
        self._waiting, self._within = list(waiting), within
        self._current: RunFolder | None = None
        self._before, self._since = 0.0, 0.0
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(timeout=5)

    @contextlib.contextmanager
    def carrying(self, folder: RunFolder) -> Iterator[None]:
        """Beat for this run until it has ended."""
        with self._lock:
            self._waiting = [f for f in self._waiting if f.run_id != folder.run_id]
            self._current, self._since = folder, 0.0
        try:
            yield
        finally:
            with self._lock:
                self._current = None

    def clock(self, before: float) -> None:
        """The run at hand starts now, and has run for `before` seconds in earlier attempts."""
        self._before, self._since = before, time.time()

    @property
    def seconds(self) -> float | None:
        """How long the run at hand has run, all attempts together; None before it started."""
        return self._before + time.time() - self._since if self._since else None

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with self._lock, contextlib.suppress(OSError, UserError):  # a full disk or a deleted folder: next second
                self._once()

    def _once(self) -> None:
        current, seconds = self._current, self.seconds
        if current and not current.recorded().ended:
            current.write_status(heartbeat=time.time(), **({} if seconds is None else {"seconds": seconds}))
            if self._within and self._within.stop_requested() and not current.stop_requested():
                current.request_stop()
        for folder in [f for f in self._waiting if f.stop_requested()]:
            with processes.changing(folder.path.parent.parent):
                if folder.recorded().status == "queued" and not queue.ticket_of(
                    folder.path.parent.parent, folder.run_id
                ):
                    finish(folder, "stopped", message="stopped before it began")
            self._waiting.remove(folder)


def finish(folder: RunFolder, status: str, *, message: str = "", error: str = "", **more: Any) -> None:
    """The last word on an attempt. Only this writes `done`."""
    began = folder.recorded().started_at is not None
    if began:
        more["peak_memory"] = processes.peak_memory()
    folder.write_status(status=status, message=message, error=error, ended_at=time.time(), eta_seconds=None, **more)
    folder.clear_stop()
