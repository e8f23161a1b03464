"""Runs inside a run: the trials of a sweep, which its worker carries out itself, on the device that it holds.

So many small runs share one warm process, and a trial is a run like any other: folder, status, journal, log.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from immunelab.jobs import attempt, control, processes, reuse
from immunelab.jobs.heartbeat import Heartbeat
from immunelab.runs.journal import RunFolder
from immunelab.runs.spec import RunSpec


def conducting(home: Path, device: str, code: str, execute: attempt.Execute) -> attempt.Execute:
    """What carries out a sweep: the controller of its kind, which gets a trials for its trials."""

    def conduct(folder: RunFolder, attempt: int, resume: bool) -> str:
        from immunelab.sweep import search, tuner, tuning  # Optuna, which nothing else needs

        conductor = tuner if folder.spec().method == tuning.Tune.name else search
        return conductor.conduct(folder, attempt, Trials(home, folder, device, code, execute))

    return conduct


class Trials:
    """Where a sweep's process carries out its trials, one at a time."""

    def __init__(self, home: Path, sweep: RunFolder, device: str, code: str, execute: attempt.Execute) -> None:
        self.home, self.sweep, self.device, self.code, self.execute = home, sweep, device, code, execute

    def known(self, spec: RunSpec, as_parent: bool = False) -> RunFolder | None:
        """The run of an equal spec that has ended: a finished one if there is any, else the newest unfinished one.

        With `as_parent` a finished one counts only if its weights are still there.
        """
        return reuse.recorded(self.home, ready=not as_parent).match(spec, ("done", "unfinished"), as_parent)

    def carry(self, spec: RunSpec, earlier: RunFolder | None, watch: Callable[[RunFolder], None]) -> RunFolder:
        """Carry out a trial, or go on with an earlier attempt at it; returns its folder once it has ended.

        `watch(trial)` is called after each evaluation. A failure is in the trial's status, and is not raised.
        """
        folder = self._place(spec, earlier)
        execute = self._watched(watch)
        heartbeat = Heartbeat([], within=self.sweep)
        with attempt.output_to(folder), heartbeat, heartbeat.carrying(folder), attempt.last_words(folder):
            attempt.carry_out(folder, self.device, heartbeat, self.code, execute, "starting")
        attempt.tidy()
        return folder

    def drop(self, folder: RunFolder) -> None:
        """Delete the checkpoints of an ended trial."""
        control.drop_checkpoints(folder.run_id, self.home)

    def _place(self, spec: RunSpec, earlier: RunFolder | None) -> RunFolder:
        with processes.changing(self.home):
            if earlier is None:
                folder = RunFolder.create(self.home, spec)
            else:
                folder = earlier
                control.queue_again(folder)
            folder.write_status(queued_at=time.time(), **processes.own())
        return folder

    def _watched(self, watch: Callable[[RunFolder], None]) -> attempt.Execute:
        def execute(folder: RunFolder, **how: Any) -> str:
            return self.execute(folder, watch=lambda step: watch(folder), **how)

        return execute
