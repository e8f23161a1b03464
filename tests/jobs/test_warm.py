"""Workers forked from a process that has torch loaded: they start in a moment, and are workers like any other."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from waiting import until

from immunelab import jobs
from immunelab.jobs import processes, warm, warm_process
from immunelab.runs.journal import RunFolder
from immunelab.runs.spec import RunSpec

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="This system has no fork."),
]


@pytest.fixture
def kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home whose warm process is ended afterwards."""
    monkeypatch.setenv(warm.WARM, "1")
    yield home
    named = home / "locks" / "warm.json"
    if named.exists():
        processes.end(*json.loads(named.read_text()))


def attack(world: Path, seed: int, steps: int = 2) -> RunSpec:
    return RunSpec(
        kind="attack",
        method="harmful-sft",
        corpus=str(world),
        knobs={"steps": steps, "learning_rate": 1e-4, "samples": 4, "batch_size": 2},
        seed=seed,
        device="cpu",
        evaluate_every=steps,
    )


def over(home: Path, run_ids: list[str]) -> list[RunFolder]:
    found = [RunFolder.open(home, i) for i in run_ids]
    until(lambda: all(f.status().ended for f in found))
    return found


def test_the_second_list_starts_from_what_the_first_one_left(kept: Path, tiny_world: Path) -> None:
    first = jobs.submit([attack(tiny_world, 0)], kept, from_warm=True)
    pid, since = json.loads((kept / "locks" / "warm.json").read_text())
    assert RunFolder.open(kept, first[0]).recorded().pid == pid, "while it loads it stands for its workers"
    assert [f.status().status for f in over(kept, first)] == ["done"]
    second = jobs.submit([attack(tiny_world, seed) for seed in (1, 2)], kept, from_warm=True)
    worker = RunFolder.open(kept, second[0]).recorded()
    assert worker.pid != pid
    assert [f.status().status for f in over(kept, second)] == ["done", "done"]
    assert json.loads((kept / "locks" / "warm.json").read_text()) == [pid, since], "one process serves a home"
    logs = [f.log_path.read_text() for f in over(kept, second)]
    assert not any("Traceback" in log for log in logs)


def test_its_worker_is_stopped_and_killed_alone(kept: Path, tiny_world: Path) -> None:
    long = attack(tiny_world, 0, steps=5000)
    (run_id,) = jobs.submit([long], kept, from_warm=True)
    folder = RunFolder.open(kept, run_id)
    until(lambda: (folder.status().step or 0) > 1)
    pid, since = json.loads((kept / "locks" / "warm.json").read_text())
    worker = folder.recorded().pid
    assert worker is not None
    assert psutil.Process(worker).ppid() == pid
    os.kill(worker, signal.SIGKILL)
    until(lambda: bool(jobs.reconcile(kept)) or folder.status().status == "interrupted")
    assert folder.status().status == "interrupted"
    assert processes.process(pid, since), "the process that it came from goes on"


def request(home: Path, run_ids: list[str]) -> Path:
    """A request that waits for the warm process."""
    warm.requests(home).mkdir(parents=True)
    file = warm.requests(home) / "1.json"
    log = str(home / "runs" / run_ids[0] / "log.txt")
    file.write_text(json.dumps({"runs": run_ids, "log": log, "workers": 1, "code": 0, "env": dict(os.environ)}))
    return file


def test_a_request_that_was_made_of_a_dead_process_starts_nothing(home: Path, tiny_world: Path) -> None:
    (run_id,) = jobs.submit([attack(tiny_world, 0)], home, start=False)
    file = request(home, [run_id])
    warm_process._name_workers(home, file)
    assert not file.exists()
    assert RunFolder.open(home, run_id).recorded().pid is None


def test_where_nothing_can_be_loaded_ordinary_workers_start(
    home: Path, tiny_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run_id,) = jobs.submit([attack(tiny_world, 0)], home, start=False)
    folder = RunFolder.open(home, run_id)
    folder.write_status(**processes.own())
    request(home, [run_id])
    monkeypatch.setattr(warm_process.queue, "holders", lambda *_: [])
    monkeypatch.setattr(processes, "yield_to_others", lambda: None)

    def broken() -> None:
        raise ImportError("torch is broken")

    monkeypatch.setattr(warm_process, "_load", broken)
    assert warm_process.serve(home) == 1
    assert [f.status().status for f in over(home, [run_id])] == ["done"]


def test_without_it_ordinary_workers_start(home: Path, tiny_world: Path) -> None:
    assert not warm.possible()  # the tests' environment says so
    assert warm.start(home, ["a"], home / "log.txt", 1) == []
    assert not (home / "locks" / "warm.json").exists()
