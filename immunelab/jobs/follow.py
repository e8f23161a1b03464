"""Following runs to their end, from their status files: the runs go on if this process does not."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from immunelab import jobs
from immunelab.errors import UserError
from immunelab.formatting import duration
from immunelab.jobs.notebook_bars import Bar, Place
from immunelab.runs import shipped
from immunelab.runs.journal import RunFolder, Status, folders, meant

FORCE_AFTER = 20.0  # seconds that a stopped run has to finish its step and save
POLL, RECONCILE = 0.2, 2.0  # seconds
CONSOLE = Console(stderr=True, highlight=False)


def run_id(text: str, home: Path) -> str:
    """The run that a person means: its id, the end or start of it if only one run has that, or `last`."""
    if text == "last":
        for run in newest(home):
            return run.run_id
        raise UserError(f"There is no last run: {home} holds no runs yet.")
    found = meant(text, [f.run_id for f in folders(home)])
    return found or RunFolder.open(home, text).run_id  # which raises, with near matches


def model(text: str, home: Path) -> str:
    """A model as a spec names it: `run:last` and shortened ids are spelled out, and a run's whole id is enough."""
    if text.startswith(shipped.PREFIX):
        return shipped.model(text, home)
    if not text.startswith("run:"):
        return f"run:{text}" if text in {folder.run_id for folder in folders(home)} else text
    if text.startswith("run:#"):
        return text
    name = text.removeprefix("run:")
    if name != "last":
        return f"run:{run_id(name, home)}"
    for run in newest(home):
        if run.status().status == "done" and any(run.checkpoints.glob("step-*")):
            return f"run:{run.run_id}"
    raise UserError(f"No finished run in {home} has a checkpoint yet. Make one with: immunelab immunize seam")


def newest(home: Path) -> Iterator[RunFolder]:
    """The runs, newest first. Ids sort by the second; within one, the queue's order decides."""
    for _, group in itertools.groupby(reversed(folders(home)), key=lambda run: run.run_id[: len("YYYYMMDD-HHMMSS")]):
        yield from sorted(group, key=lambda run: run.status().queued_at or 0.0, reverse=True)


def follow(run_ids: list[str], home: Path, also: Callable[[], object] | None = None) -> dict[str, Status]:
    """Draw progress until every run has ended, and return how. Ctrl-C stops them, each with a checkpoint.

    `also` is called every few seconds.
    """
    mine = {i: RunFolder.open(home, i) for i in run_ids}
    asked = False
    with Bars(mine) as bars:
        while True:
            try:
                statuses = {i: folder.status() for i, folder in mine.items()}
                bars.show(statuses)
                if all(s.ended for s in statuses.values()):
                    return statuses
                if time.monotonic() - bars.reconciled > RECONCILE:
                    jobs.reconcile(home)  # a run whose process is gone must not be waited for
                    if also:
                        also()
                    bars.reconciled = time.monotonic()
                time.sleep(POLL)
            except KeyboardInterrupt:
                if asked:
                    raise
                asked = True
                bars.say("Stopping: finishing the step and saving a checkpoint. Ctrl-C again leaves it to that.")
                for i in reversed(run_ids):  # queued ones first, so that none of them starts
                    if not mine[i].status().ended:
                        jobs.stop(i, home, FORCE_AFTER)


@contextmanager
def phases() -> Iterator[Callable[[str, int, int, float], None]]:
    """A bar for each phase of a training that is no run; inside, call with phase, step, steps and loss."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("loss {task.fields[loss]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=CONSOLE, disable=not CONSOLE.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(phase: str, step: int, steps: int, loss: float) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=steps, loss="")
                if not CONSOLE.is_terminal:
                    CONSOLE.print(f"{phase}: {steps} steps")
            bars.update(tasks[phase], completed=step, loss=f"{loss:.3f}")

        yield progress


class Bars:
    """One bar for all runs and one for each that is under way; without a terminal, a line when one starts or ends. In
    a notebook the same as HTML."""

    def __init__(self, runs: dict[str, RunFolder]) -> None:
        self.titles = {i: title(run) for i, run in runs.items()}
        self.kinds = {i: run.spec().kind for i, run in runs.items()}
        self.seen: dict[str, str] = {}
        self.reconciled = time.monotonic()
        self.live = CONSOLE.is_terminal or CONSOLE.is_jupyter
        self.place = Place() if CONSOLE.is_jupyter else None
        self.lines: list[str] = []
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
        )
        self.progress = Progress(*columns, console=CONSOLE, disable=not CONSOLE.is_terminal)
        self.whole: TaskID | None = None
        self.current: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        self.progress.start()
        if len(self.titles) > 1:
            self.whole = self.progress.add_task("all runs", total=len(self.titles), note="")
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def say(self, text: str) -> None:
        """A line above the bars."""
        if self.place is None:
            CONSOLE.print(text, markup=False)
        self.lines.append(text)

    def show(self, statuses: dict[str, Status]) -> None:
        """Bring the bars up to date."""
        for i, status in statuses.items():
            if status.status != self.seen.get(i) and status.status != "queued":
                self._changed(i, status)
            self.seen[i] = status.status
        active = [i for i, s in statuses.items() if s.status in ("running", "stopping")]
        for i in [i for i in self.current if i not in active]:
            self.progress.remove_task(self.current.pop(i))  # the lines above say how it ended
        for i in active:
            status = statuses[i]
            note = status.message or status.phase
            if status.eta_seconds is not None:
                note = f"{status.phase} {status.step}/{status.steps}, {duration(status.eta_seconds)} left"
            if i not in self.current:
                self.current[i] = self.progress.add_task(self.titles[i], total=1.0, note=note)
            self.progress.update(self.current[i], completed=status.progress or 0.0, note=note)
        if self.whole is not None:
            ended = sum(s.ended for s in statuses.values())
            part = sum(statuses[i].progress or 0.0 for i in active)
            left = remaining(statuses, self.kinds)
            note = f"{ended}/{len(statuses)}" + (f", about {duration(left)} left" if left is not None else "")
            self.progress.update(self.whole, completed=ended + part, note=note)
        if self.place is not None:
            under_way = [Bar(t.description, t.percentage / 100, t.fields["note"]) for t in self.progress.tasks]
            self.place.show(self.lines, [] if all(s.ended for s in statuses.values()) else under_way)

    def _changed(self, i: str, status: Status) -> None:
        if status.status == "failed":
            self.say(f"{self.titles[i]}: failed. {status.error or ''}".rstrip())
        elif status.ended:
            self.say(f"{self.titles[i]}: {status.status} after {duration(status.seconds)}")
        elif not self.live and status.status == "running":
            self.say(f"{self.titles[i]}: {status.status}")


def remaining(statuses: Mapping[str, Status], kinds: Mapping[str, str]) -> float | None:
    """Seconds left for a list of runs: what those under way say, and for the rest the mean of ended ones of its kind,
    shared by as many as are under way. None while a kind that is still to come has not been timed.
    """
    took: dict[str, list[float]] = {}
    coming: list[str] = []
    current: list[float] = []
    for run, status in statuses.items():
        kind = kinds[run]
        if status.status == "done" and status.seconds is not None:
            took.setdefault(kind, []).append(status.seconds)
        elif status.status == "queued":
            coming.append(kind)
        elif status.status == "running":
            if status.eta_seconds is None:
                return None
            current.append(status.eta_seconds)
    if any(kind not in took for kind in coming):
        return None
    rest = sum(sum(took[kind]) / len(took[kind]) for kind in coming)
    return max([*current, (sum(current) + rest) / max(1, len(current))])


def title(run: RunFolder) -> str:
    """A run in words: what it does to what, with which seed."""
    spec, ancestors = run.spec(), run.lineage()
    on = ancestors[0].method if ancestors else spec.model
    return f"{spec.kind} {spec.name or spec.method} on {on}, seed {spec.seed}"
