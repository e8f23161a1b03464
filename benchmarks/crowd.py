"""Two apps, a notebook that holds the file, a command line and four jobs on one home. Used by `reliability.py`."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb

from benchmarks.browsing import PAGES, ROOT, App
from benchmarks.kills import Say, fork, holds, kill
from immunelab import jobs
from immunelab.jobs import processes
from immunelab.runs.journal import RunFolder
from immunelab.runs.spec import RunSpec
from immunelab.store import Busy, Store

MOST = 2.0  # seconds that a page may wait for the database
SLACK = 0.5  # for the query itself and a busy machine


def notebook(database: Path) -> None:
    """What people do in notebooks: hold the file open, for reading or for writing, longer than pages wait."""
    for turn in range(10**6):
        with contextlib.suppress(duckdb.Error):
            connection = duckdb.connect(str(database), read_only=turn % 2 == 0)
            time.sleep((1.0, 1.5, 1.0, 3.0)[turn % 4])
            connection.close()
        time.sleep(0.5)


def reader(home: Path, told: int) -> None:
    """A page's reads without the page: sync, then a query, as often as pages do; tells how long each took."""
    store = Store(home, home / "no-showcase")
    while True:
        began, busy = time.monotonic(), False
        store.sync()
        synced = time.monotonic()
        try:
            store.frame("SELECT run_id, status, count(*) AS n FROM runs JOIN points USING (run_id) GROUP BY ALL")
        except Busy:
            busy = True
        line = {"sync": synced - began, "read": time.monotonic() - synced, "busy": busy}
        os.write(told, (json.dumps(line) + "\n").encode())
        time.sleep(0.1)


class Visitor(threading.Thread):
    """Asks one app for its pages, one after the other."""

    def __init__(self, app: App) -> None:
        super().__init__(daemon=True)
        self.app, self.over = app, threading.Event()
        self.took: list[float] = []
        self.told: list[str] = []
        self.wrong: list[str] = []

    def run(self) -> None:
        """Until told to stop."""
        turn = 0
        try:
            while not self.over.is_set():
                seconds, errors = self.app.ask(PAGES[turn % len(PAGES)])
                self.took.append(seconds)
                held = [e for e in errors if "holds the database" in e or "in use by another query" in e]
                self.told += held
                self.wrong += [e for e in errors if e not in held]
                turn += 1
                self.over.wait(0.3)
        except BaseException as error:  # noqa: BLE001 - a thread's error is told by who joins it
            self.wrong.append(repr(error))


def command_line(home: Path, over: threading.Event, codes: list[int]) -> None:
    """`immunelab runs --json`, again and again."""
    while not over.is_set():
        line = [sys.executable, "-m", "immunelab", "runs", "--json", "--home", str(home)]
        codes.append(subprocess.run(line, cwd=ROOT, capture_output=True, check=False).returncode)
        over.wait(0.5)


def of_many(home: Path, specs: Sequence[RunSpec], worker: Sequence[str] | None, say: Say) -> dict[str, Any]:
    """Everyone at once until all jobs are done; what each of them met. `worker` starts another worker than ours."""
    store = Store(home, home / "no-showcase")
    store.sync(force=True)
    heard, told = os.pipe()
    forks = [fork(lambda: notebook(store.path)), fork(lambda: reader(home, told)), fork(lambda: reader(home, told))]
    os.close(told)
    began = time.monotonic()
    over, codes = threading.Event(), list[int]()
    run_ids: list[str] = []
    try:
        with App(home) as one, App(home) as two:
            visitors = [Visitor(one), Visitor(two)]
            shell = threading.Thread(target=command_line, args=(home, over, codes), daemon=True)
            for thread in (*visitors, shell):
                thread.start()
            run_ids = [jobs.submit([spec], home, command=worker)[0] for spec in specs]
            folders = [RunFolder.open(home, i) for i in run_ids]
            while not all(f.status().ended for f in folders):
                holds(time.monotonic() - began < 900, [f.status() for f in folders])
                time.sleep(0.2)
            took = time.monotonic() - began
            over.set()
            for visitor in visitors:
                visitor.over.set()
            for thread in (*visitors, shell):
                thread.join(60)
    finally:
        over.set()
        for pid in forks:
            kill(pid)
        for run_id in run_ids:
            status = RunFolder.open(home, run_id).recorded()
            processes.end(status.pid, status.create_time)
    with os.fdopen(heard) as pipe:
        reads = [json.loads(line) for line in pipe if line.endswith("\n")]
    figures = _checked(store, run_ids, reads, visitors, codes)
    say(f"many at once: {len(run_ids)} jobs, {figures['reads']} reads, {figures['pages']} pages in {took:.0f} s")
    return {"jobs": len(run_ids), "apps": 2, "seconds": round(took, 1)} | figures


def _checked(
    store: Store, run_ids: list[str], reads: list[dict[str, Any]], visitors: list[Visitor], codes: list[int]
) -> dict[str, Any]:
    statuses = [RunFolder.open(store.home, i).status() for i in run_ids]
    holds(all(s.status == "done" for s in statuses), statuses)
    starts, ends = [s.started_at or 0.0 for s in statuses], [s.ended_at or 0.0 for s in statuses]
    in_turn = all(end <= start + 0.05 for end, start in zip(ends, starts[1:], strict=False))
    holds(
        starts == sorted(starts) and in_turn,
        f"jobs for one device ran out of turn: {list(zip(starts, ends, strict=True))}",
    )
    store.sync(force=True)
    recorded = stored = 0
    for run_id in run_ids:
        of_journal = sorted(
            (e["phase"], e["step"], name)
            for e in RunFolder.open(store.home, run_id).entries()
            if e["kind"] == "points"
            for name in e["values"]
        )
        frame = store.frame("SELECT phase, step, name FROM points WHERE run_id = ? ORDER BY ALL", [run_id])
        of_store = list(frame.itertuples(index=False, name=None))
        holds(of_journal == of_store, f"{run_id}: {len(of_journal)} points on record, {len(of_store)} stored")
        recorded, stored = recorded + len(of_journal), stored + len(of_store)
    wrong = [w for v in visitors for w in v.wrong]
    holds(not wrong, wrong[:3])
    holds(not any(codes), f"the command line ended with {codes}")
    longest = max(r["read"] for r in reads)
    holds(longest <= MOST + SLACK, f"a read took {longest:.2f} s")
    pages = sorted(t for v in visitors for t in v.took)
    return {
        "points recorded": recorded,
        "points stored": stored,
        "lost": 0,
        "repeated": 0,
        "started in the order of submission": True,
        "reads": len(reads),
        "reads told who holds the file": sum(r["busy"] for r in reads),
        "longest read, s": round(longest, 2),
        "longest sync of a page, s": round(max(r["sync"] for r in reads), 2),
        "median read, ms": round(sorted(r["read"] for r in reads)[len(reads) // 2] * 1e3, 1),
        "pages": len(pages),
        "pages told who holds the file": sum(len(v.told) for v in visitors),
        "median page, s": round(pages[len(pages) // 2], 2),
        "longest page, drawing included, s": round(pages[-1], 2),
        "commands": len(codes),
        "commands that failed": sum(map(bool, codes)),
    }
