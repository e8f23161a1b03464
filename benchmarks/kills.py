"""`kill -9` at random moments: of jobs, of apps, of `store.sync`, and what is lost by it. Used by `reliability.py`.

A worker is a fork of this process that calls `jobs.work`, as `python -m immunelab.jobs` does; only the seconds of
importing torch are saved. Each line that the journal has acknowledged (the call has returned) is told to this process
through a pipe, which outlives the worker: that is what "lost" is measured against.
"""

from __future__ import annotations

import collections
import hashlib
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from immunelab import jobs
from immunelab.jobs import control, processes
from immunelab.runs.journal import Journal, RunFolder
from immunelab.runs.spec import RunSpec
from immunelab.store import Busy, Store, queries

Say = Callable[[str], None]
Key = tuple[str, str, int]  # kind, phase, step of a journal line


class Loss(AssertionError):
    """Something that was promised did not hold."""


def holds(true: bool, otherwise: object) -> None:
    """Raise a `Loss` that says what was found."""
    if not true:
        raise Loss(str(otherwise))


def fork(work: Callable[[], object]) -> int:
    """A child process in a session of its own that does something and ends; its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.setsid()
        os.nice(5)
        work()
        code = 0
    except BaseException:  # noqa: BLE001 - a fork must never return into its parent's program
        traceback.print_exc()
    finally:
        os._exit(code)


def kill(pid: int) -> None:
    """`kill -9`, and wait until it is gone."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


class Carrier:
    """A forked worker that carries one run and reports what its journal has acknowledged."""

    def __init__(self, home: Path, run_id: str) -> None:
        self.folder = RunFolder.open(home, run_id)
        self.heard, told = os.pipe()
        with processes.changing(home):  # as `processes.start`: the run names its worker before that one may claim it
            self.pid = fork(lambda: self._work(home, run_id, told))
            born = psutil.Process(self.pid).create_time()
            self.folder.write_status(pid=self.pid, create_time=born, host=processes.HOST)
        os.close(told)

    @staticmethod
    def _work(home: Path, run_id: str, told: int) -> None:
        append = Journal._append

        def acknowledged(self: Journal, kind: str, phase: str, step: int, rest: dict[str, Any]) -> None:
            append(self, kind, phase, step, rest)
            os.write(told, f"{self.attempt} {kind} {phase or '-'} {step}\n".encode())

        Journal._append = acknowledged  # type: ignore[method-assign]
        jobs.work([run_id], home)

    def ended(self, within: float) -> bool:
        """Wait for the worker's end, at most so many seconds."""
        end = time.monotonic() + within
        while time.monotonic() < end:
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                return True
            time.sleep(0.005)
        return False

    def acknowledged(self) -> list[str]:
        """Every line that was acknowledged, in order; call it once the worker is gone."""
        with os.fdopen(self.heard) as pipe:
            return pipe.read().splitlines()


def written(folder: RunFolder) -> list[str]:
    """The journal's lines, as `acknowledged` tells them."""
    return [f"{e['attempt']} {e['kind']} {e['phase'] or '-'} {e['step']}" for e in folder.entries()]


def missing(acknowledged: list[str], found: list[str]) -> int:
    """How many acknowledged lines are not on record."""
    return sum((collections.Counter(acknowledged) - collections.Counter(found)).values())


class Outcome:
    """All that a finished run has to show, as the store tells it; what depends on the clock is left out."""

    def __init__(self, store: Store, run_id: str) -> None:
        store.sync(force=True)
        names = queries.names(store, [run_id])["name"].unique().tolist()
        points = queries.points(store, [run_id], [n for n in names if not n.startswith("time/")], bins=10**9)
        self.points = points[["phase", "step", "name", "value"]].to_csv(index=False, float_format="%r")
        scores = queries.scores(store, [run_id], splits=None)
        self.scores = scores.drop(columns="run_id").to_csv(index=False, float_format="%r")
        self.rows = len(points)
        self.repeats = int(points.duplicated(["phase", "step", "name"]).sum())
        saved = sorted(RunFolder.open(store.home, run_id).checkpoints.glob("step-*"))
        weights = saved[-1] / "model.safetensors"
        self.weights = hashlib.sha256(weights.read_bytes()).hexdigest()


def of_jobs(home: Path, specs: dict[str, RunSpec], kills: int, seed: int, say: Say) -> dict[str, Any]:
    """Kill workers of these specs in turn, `kills` times in all; each run is killed up to 3 times, then finishes."""
    chance = random.Random(f"jobs-{seed}")
    store = Store(home, home / "no-showcase")
    whole, took = {}, {}
    for name, spec in specs.items():
        run_id, took[name] = _uninterrupted(home, spec)
        whole[name] = Outcome(store, run_id)
    done = collections.Counter[str]()
    figures: dict[str, Any] = {
        "kills": 0,
        "by method": done,
        "acknowledged lines": 0,
        "lost lines": 0,
        "runs finished after kills": 0,
        "of them equal bit for bit": 0,
        "resumed from a checkpoint": 0,
        "killed while": collections.Counter(),
    }
    turn = 0
    while figures["kills"] < kills:
        name = list(specs)[turn % len(specs)]
        turn += 1
        (run_id,) = jobs.submit([specs[name]], home, start=False)
        for _ in range(chance.randint(1, 3)):
            if figures["kills"] == kills or not _killed(home, run_id, chance.uniform(0, took[name]), figures):
                break
            done[name] += 1
        if RunFolder.open(home, run_id).status().status != "done":
            carrier = Carrier(home, run_id)
            holds(carrier.ended(180), f"{run_id} does not end")
            os.close(carrier.heard)
        status = RunFolder.open(home, run_id).status()
        holds(status.status == "done", f"{run_id} is {status.status}: {status.error}")
        found = Outcome(store, run_id)
        holds(found.repeats == 0, f"{run_id} has {found.repeats} repeated points")
        holds(found.rows == whole[name].rows, f"{run_id} has {found.rows} points, and {whole[name].rows} are due")
        for part in ("scores", "points", "weights"):
            holds(getattr(found, part) == getattr(whole[name], part), f"{part} of {run_id} ({name}) differ")
        figures["runs finished after kills"] += 1
        figures["of them equal bit for bit"] += 1
        jobs.drop_checkpoints(run_id, home)
        say(f"jobs: {figures['kills']} of {kills} kills, {figures['lost lines']} lines lost")
    figures["points compared"] = {name: outcome.rows for name, outcome in whole.items()}
    return figures


def _uninterrupted(home: Path, spec: RunSpec) -> tuple[str, float]:
    (run_id,) = jobs.submit([spec], home, start=False)
    began = time.monotonic()
    carrier = Carrier(home, run_id)
    holds(carrier.ended(180), f"{run_id} does not end")
    os.close(carrier.heard)
    status = RunFolder.open(home, run_id).status()
    holds(status.status == "done", f"{run_id} is {status.status}: {status.error}")
    return run_id, time.monotonic() - began


def _killed(home: Path, run_id: str, after: float, figures: dict[str, Any]) -> bool:
    """Carry a run and kill its worker; False if it was done before. Checks what must hold at once."""
    folder = RunFolder.open(home, run_id)
    carrier = Carrier(home, run_id)
    if carrier.ended(after):
        os.close(carrier.heard)
        return False
    kill(carrier.pid)
    before = folder.recorded()
    acknowledged = carrier.acknowledged()
    lost = missing(acknowledged, written(folder))
    figures["acknowledged lines"] += len(acknowledged)
    figures["lost lines"] += lost
    holds(lost == 0, f"{run_id}: {lost} acknowledged lines are not in its journal")
    if before.status == "done":
        return False  # killed after its last word
    figures["kills"] += 1
    figures["killed while"]["training" if before.step else "starting" if before.status == "running" else "queued"] += 1
    holds(folder.recorded().status in ("queued", "running"), folder.recorded())
    jobs.reconcile(home)
    holds(folder.status().status == "interrupted", f"{run_id} is {folder.status().status} after kill -9")
    Store(home, home / "no-showcase").sync(force=True)  # the database opens
    from immunelab.training import checkpoints

    saved = checkpoints.latest(folder.checkpoints)
    figures["resumed from a checkpoint"] += saved is not None
    with processes.changing(home):  # as `resume` does, which would also start a worker: ours are forks
        control.queue_again(folder)
    return True


def of_sync(home: Path, kills: int, seed: int, say: Say) -> dict[str, Any]:
    """Two processes sync one home while a run records 1,000 lines a second; one of them is killed, again and again."""
    chance = random.Random(f"sync-{seed}")
    store = Store(home, home / "no-showcase")
    (run_id,) = jobs.submit([RunSpec(kind="attack", method="harmful-sft", device="cpu")], home, start=False)
    folder = RunFolder.open(home, run_id)
    store.sync(force=True)
    writer = fork(lambda: _record(folder))
    syncers = [fork(lambda: _sync(home)) for _ in range(2)]
    longest = 0.0
    try:
        for i in range(kills):
            time.sleep(chance.uniform(0.02, 0.4))
            victim = syncers.pop(0)
            holds(not os.waitpid(victim, os.WNOHANG)[0], "a process that syncs ended by itself")
            kill(victim)
            syncers.append(fork(lambda: _sync(home)))
            began = time.monotonic()
            stored = store.frame("SELECT count(*) AS n, count(DISTINCT step) AS steps FROM points")  # it opens
            longest = max(longest, time.monotonic() - began)
            holds(stored["n"][0] == stored["steps"][0], f"repeated points after kill {i + 1}")
            if i % 10 == 9:
                say(f"sync: {i + 1} of {kills} kills, {stored['n'][0]} points stored")
    finally:
        for pid in (writer, *syncers):
            kill(pid)
    store.sync(force=True)
    on_record = sum(1 for _ in folder.entries())
    steps = store.frame("SELECT step FROM points ORDER BY step")["step"].tolist()
    holds(steps == list(range(1, on_record + 1)), f"{on_record} lines on record, {len(steps)} points stored")
    before = store.frame("SELECT * FROM points ORDER BY ALL").to_csv()
    store.rebuild()
    holds(store.frame("SELECT * FROM points ORDER BY ALL").to_csv() == before, "rebuilding gives other points")
    return {
        "kills": kills,
        "points recorded": on_record,
        "points stored": len(steps),
        "lost": 0,
        "repeated": 0,
        "longest read right after a kill, s": round(longest, 3),
        "rebuilt database is equal": True,
    }


def _record(folder: RunFolder) -> None:
    with Journal(folder) as journal:
        for step in range(1, 10**9):
            journal.points("attack", step, {"loss/total": float(step)})
            time.sleep(0.001)


def _sync(home: Path) -> None:
    store = Store(home, home / "no-showcase")
    while True:
        try:
            store.sync(force=True)
        except Busy:
            continue
        time.sleep(0.005)


@contextmanager
def pretended(home: Path, steps: int, name: str = "") -> Iterator[RunFolder]:
    """A detached worker of the tests' kind, started as the app starts one: 50 lines a second, no torch."""
    worker = (sys.executable, str(Path(__file__).resolve().parents[1] / "tests" / "pretend_worker.py"))
    spec = RunSpec(kind="attack", method="harmful-sft", knobs={"steps": steps}, device="cpu", name=name)
    (run_id,) = jobs.submit([spec], home, command=worker)
    folder = RunFolder.open(home, run_id)
    try:
        yield folder
    finally:
        status = folder.recorded()
        processes.end(status.pid, status.create_time)


def of_apps(home: Path, kills: int, seed: int, say: Say) -> dict[str, Any]:
    """`streamlit run app.py`, with a browser's session that asks for pages, killed again and again beside a run."""
    from benchmarks.browsing import PAGES, App

    chance = random.Random(f"apps-{seed}")
    pages = 0
    with pretended(home, 10**7) as folder:
        for i in range(kills):
            with App(home) as app:
                end = time.monotonic() + chance.uniform(0, 1.0)
                while time.monotonic() < end:
                    app.ask(chance.choice(PAGES), 0 if chance.random() < 0.3 else 60)  # some are killed in mid-page
                    pages += 1
                app.process.kill()
                app.process.wait()
            status = folder.status()
            holds(processes.alive(status) and not status.ended, f"the run is {status.status} after kill {i + 1}")
            if i % 10 == 9:
                say(f"app: {i + 1} of {kills} kills, {pages} pages asked for, the run is at step {status.step}")
        status = jobs.stop(folder.run_id, home, wait=True)
        holds(status.status == "stopped", f"the run is {status.status}")
        holds(status.attempt == 1, "the run was started again")
    store = Store(home, home / "no-showcase")
    store.sync(force=True)
    # Of this run: the app has taken in the shipped showcase too.
    steps = store.frame("SELECT step FROM points WHERE run_id = ? ORDER BY step", [folder.run_id])["step"].tolist()
    on_record = [e["step"] for e in folder.entries() if e["kind"] == "points"]
    due = list(range(1, len(on_record) + 1))
    holds(steps == on_record == due, f"{len(on_record)} points on record, {len(steps)} stored")
    return {
        "kills": kills,
        "pages asked for": pages,
        "points recorded": len(on_record),
        "points stored": len(steps),
        "lost": 0,
        "repeated": 0,
    }


def read_figures(path: Path) -> dict[str, Any]:
    """The figures of the last time."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
