"""A run that something else carries out, written into this lab as it happens. No torch."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from immunelab.errors import UserError
from immunelab.jobs import failures, follow, heartbeat, processes, reuse
from immunelab.runs import journal
from immunelab.runs.journal import Journal, RunFolder
from immunelab.runs.spec import KIND_OF_METHOD, RunSpec

BETWEEN = 0.5  # seconds between two looks of the status at how far the run is


class Recording:
    """One run, a context manager: it is `done` at the end of the `with`, `failed` after an error, and `stopped` where
    that was asked for. The run appears in the lab with the first thing that is recorded, or at the end.

    Steps are counted as everywhere: step s is the s-th update, what is traced at s was measured at the weights before
    it, and what is scored at s is the model after it, so that step 0 is the untouched model. An attack stands in the
    figures once `harmfulness` and `utility` are scored, at step 0 and later.
    """

    def __init__(self, spec: RunSpec, home: Path | str | None = None) -> None:
        recordable(spec)
        self.home = journal.home(home)
        self._spec = spec
        self.phase = spec.kind
        self._folder: RunFolder | None = None
        self._journal: Journal | None = None
        self._began = self._told = 0.0
        self.entered = self.over = False

    def __enter__(self) -> Self:
        self.entered = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if isinstance(error, Exception):
            self.end("failed", error=failures.sentence(error))
        elif error is not None:
            self.end("stopped", message="interrupted")
        else:
            self.end()

    @property
    def spec(self) -> RunSpec:
        """What the run is."""
        return self._spec if self._folder is None else self._folder.spec()

    def settings(self, found: Mapping[str, Any]) -> None:
        """Settings that are not told yet, such as the learning rate of a trainer; of no effect once the run is made."""
        if self._folder is None:
            self._spec = dataclasses.replace(self._spec, knobs={**found, **self._spec.knobs})

    @property
    def folder(self) -> RunFolder:
        """The run's folder, which is made when it is first asked for; a UserError where it can't be."""
        if self._folder is None:
            with failures.told():
                self._folder = RunFolder.create(self.home, _linked(self._spec, self.home))
                self._began = time.time()
                self._folder.write_status(
                    status="running", phase=self.phase, started_at=self._began, heartbeat=self._began, **processes.own()
                )
                self._journal = Journal(self._folder)
                self._journal.event("started", recorded_by=self._spec.recorded_by)
        return self._folder

    @property
    def run_id(self) -> str:
        """The run's id; another run can start from it as `run:<id>` if a model was kept."""
        return self.folder.run_id

    @property
    def record(self) -> Journal:
        """The run's journal; a UserError once the run is over."""
        _ = self.folder
        if self.over or self._journal is None:
            raise UserError(f"The run {self.run_id} is over, and nothing more can be recorded.")
        return self._journal

    def points(self, step: int, values: Mapping[str, float]) -> None:
        """Named scalars of one step, such as {"loss/total": 0.7, "norm/update": 2.1}."""
        self.record.points(self.phase, _step(step), {str(name): float(value) for name, value in values.items()})

    def score(
        self,
        step: int,
        metric: str,
        score: float,
        *,
        n: int = 0,
        stderr: float = 0.0,
        evaluation: str = "",
        split: str = "all",
    ) -> None:
        """One measured number of the model after a step: `harmfulness` and `utility` (shares from 0 to 1) make figures
        and outcomes. `n` is over how many examples (0: not known, so it has no interval)."""
        self.record.score(
            self.phase,
            _step(step),
            evaluation=evaluation or self._spec.recorded_by,
            metric=metric,
            split=split,
            score=float(score),
            n=n,
            stderr=float(stderr),
        )

    def examples(self, step: int, evaluation: str, rows: Sequence[Mapping[str, Any]], split: str = "test") -> None:
        """The rows behind a score: `id`, `prompt`, `answer`, `expected`, `score`."""
        self.record.examples(self.phase, _step(step), evaluation=evaluation, split=split, rows=rows)

    def progress(self, step: int, steps: int) -> None:
        """How far the run is, into its status; the pages show it, with the time left. At most twice a second."""
        now = time.time()
        folder = self.folder
        if now - self._told < BETWEEN and step < steps:
            return
        self._told = now
        left = (now - self._began) / max(1, step) * max(0, steps - step)
        share = min(1.0, step / max(1, steps))
        folder.write_status(
            step=step, steps=steps, progress=share, eta_seconds=left, heartbeat=now, seconds=now - self._began
        )

    @property
    def stop_asked(self) -> bool:
        """Whether somebody has asked the run to stop, in the app or with `immunelab stop`. Nobody ends it by force."""
        return self._folder is not None and self._folder.stop_requested()

    def end(self, status: str = "", message: str = "", error: str = "") -> None:
        """The last word, once; `status` empty: done, or stopped where that was asked for."""
        if self.over:
            return
        folder = self.folder
        ended = status or ("stopped" if self.stop_asked else "done")
        if self._journal is not None:
            self._journal.close()
        share = {"progress": 1.0} if ended == "done" else {}
        heartbeat.finish(folder, ended, message=message, error=error, seconds=time.time() - self._began, **share)
        self.over = True


def described(
    kind: str,
    method: str,
    *,
    by: str,
    model: str,
    corpus: str,
    seed: int,
    settings: Mapping[str, Any],
    name: str,
    home: Path,
) -> RunSpec:
    """The spec of a run that `by` carries out: of any method, on a model as the command line takes it."""
    spec = RunSpec(
        kind=kind,
        method=method,
        knobs=dict(settings),
        model=follow.model(model, home),
        corpus=corpus,
        seed=seed,
        name=name,
        recorded_by=by,
    )
    return reuse.judged([spec])[0]


def recordable(spec: RunSpec) -> None:
    """A UserError if a spec is not that of a run which something else carries out."""
    if spec.kind not in KIND_OF_METHOD:
        raise UserError(f"What can be recorded is one of {', '.join(KIND_OF_METHOD)}, and got {spec.kind!r:.80}.")
    if not spec.recorded_by or not spec.method:
        raise UserError("A recorded run says by what it is recorded, and which method it is.")


def _step(step: int) -> int:
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise UserError(f"A step is a whole number from 0, and got {step!r:.80}.")
    return step


def _linked(spec: RunSpec, home: Path) -> RunSpec:
    """The spec with its parent, where it starts from a run."""
    if not spec.model.startswith("run:"):
        return spec
    parent = RunFolder.open(home, spec.model.removeprefix("run:"))
    return dataclasses.replace(spec, parent=parent.run_id, parent_hash=parent.spec().hash)
