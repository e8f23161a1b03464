from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from recorded import spec
from waiting import until as arrives

from immunelab import jobs
from immunelab.errors import UserError
from immunelab.jobs import control, failures, preflight, processes, queue
from immunelab.jobs.demand import demand
from immunelab.runs.journal import RunFolder, Status
from immunelab.store import Store, queries

pytestmark = pytest.mark.slow
WORKER = (sys.executable, str(Path(__file__).parents[1] / "pretend_worker.py"))
LATE = """
import pathlib, runpy, sys, time
while not (pathlib.Path(sys.argv[-1]) / "up").exists():
    time.sleep(0.02)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
SLOW = (sys.executable, "-c", LATE, WORKER[1])  # the same, but it comes up only when the home has a file `up`


class Lab:
    """A home whose workers pretend."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def submit(self, *names: str, steps: int = 2, **fields: Any) -> list[str]:
        specs = [spec(name=name, knobs={"steps": steps}, **fields) for name in names]
        return jobs.submit(specs, self.home, command=WORKER)

    def __getitem__(self, run_id: str) -> RunFolder:
        return RunFolder.open(self.home, run_id)

    def status(self, run_id: str) -> Status:
        return self[run_id].status()

    def wait(self, run_ids: list[str], until: Callable[[Status], bool] = lambda s: s.ended) -> list[str]:
        arrives(
            lambda: all(until(self.status(i)) for i in run_ids),
            lambda: [(self.status(i), self[i].log_path.read_text()[-2000:]) for i in run_ids],
        )
        return [self.status(i).status for i in run_ids]

    def let(self, what: str) -> None:
        """Let runs that are held `go`, or slow workers come `up`."""
        (self.home / what).touch()

    def stop(self, run_id: str, **fields: Any) -> Status:
        return jobs.stop(run_id, self.home, command=WORKER, **fields)

    def reconcile(self) -> list[str]:
        return jobs.reconcile(self.home, command=WORKER)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path / "home")
    yield made
    for folder in (tmp_path / "home" / "runs").glob("2*"):
        status = RunFolder(folder).recorded()
        if status.pid != os.getpid():
            processes.end(status.pid, status.create_time)


def begun(status: Status) -> bool:
    return status.status == "running" and (status.step or 0) >= 1


# Runs from start to end


def test_a_list_runs_in_order_in_one_process(lab: Lab) -> None:
    chain = [spec("immunize", knobs={"steps": 2}), spec(model="run:#0", knobs={"steps": 2}), spec(knobs={"steps": 2})]
    ids = jobs.submit(chain, lab.home, command=WORKER)
    assert lab.wait(ids) == ["done"] * 3
    statuses = [lab.status(i) for i in ids]
    assert len({s.pid for s in statuses}) == 1
    assert [s.started_at for s in statuses] == sorted(s.started_at or 0 for s in statuses)
    child = lab[ids[1]].spec()
    assert (child.model, child.parent, child.parent_hash) == (f"run:{ids[0]}", ids[0], lab[ids[0]].spec().hash)
    last = statuses[-1]
    assert (last.device, last.progress, last.eta_seconds, last.error) == ("cpu", 1.0, None, "")
    assert last.seconds is not None
    assert 0.04 <= last.seconds <= (last.ended_at or 0) - (last.started_at or 0) + 0.1
    assert last.peak_memory is not None
    assert last.peak_memory > 1e6
    assert last.commit
    for i in ids:
        log = lab[i].log_path.read_text()
        assert f"hello from {i}\n" in log
        assert "hello from a child\n" in log
        assert sum(f"hello from {other}" in log for other in ids) == 1


def test_the_worker_survives_in_a_session_of_its_own(lab: Lab) -> None:
    (run,) = lab.submit("held at 1")
    lab.wait([run], begun)
    pid = lab.status(run).pid
    assert pid is not None
    assert os.getsid(pid) == pid != os.getsid(0)
    lab.stop(run, wait=True)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("boom", "ValueError: boom"),
        ("sentence", "non-finite loss/total at step 12 (nan): lower the learning rate or clip."),
        ("memory", "lower batch_size"),
        ("host-memory", "lower batch_size"),
        ("full", "disk is full (/x/model.safetensors): free some space"),
        ("forbidden", "Not allowed to write (/x)"),
        ("wrong", "RuntimeError: execute returned 'perhaps'"),
    ],
)
def test_failures_are_sentences(tmp_path: Path, name: str, words: str) -> None:
    from pretend_worker import execute

    (run,) = jobs.submit([spec(name=name)], tmp_path, start=False)
    assert jobs.work([run], tmp_path, execute) == 1
    folder = RunFolder.open(tmp_path, run)
    assert folder.status().status == "failed"
    assert words in folder.status().error
    log = folder.log_path.read_text()
    assert "Error" in log
    assert ("Traceback" in log) == (name != "sentence")
    assert not (folder.path / ".reserve").exists()


def test_a_failed_run_takes_its_children_along_and_nobody_else(lab: Lab) -> None:
    specs = [spec(name="boom"), spec(model="run:#0"), spec(model="run:#1"), spec(knobs={"steps": 1})]
    ids = jobs.submit(specs, lab.home, command=WORKER)
    assert lab.wait(ids) == ["failed", "failed", "failed", "done"]
    assert f"{ids[0]} that this one starts from is failed (ValueError: boom)" in lab.status(ids[1]).error


def test_out_of_memory_is_known_by_what_it_says() -> None:
    assert failures.out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes"))
    assert failures.out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"))
    assert not failures.out_of_memory(RuntimeError("shape mismatch"))
    assert failures.sentence(KeyError()).startswith("KeyError (log.txt")
    assert "disk is full" in failures.sentence(OSError(errno.EDQUOT, "quota"))


def test_work_leaves_alone_what_is_not_waiting(tmp_path: Path) -> None:
    def never(folder: RunFolder, attempt: int, resume: bool) -> str:
        raise AssertionError("it must not run")

    done, carried = jobs.submit([spec(), spec()], tmp_path, start=False)
    RunFolder.open(tmp_path, done).write_status(status="done")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as another:
        since = psutil.Process(another.pid).create_time()
        RunFolder.open(tmp_path, carried).write_status(pid=another.pid, create_time=since, host=processes.HOST)
        assert jobs.work([done, carried], tmp_path, never) == 1
        assert RunFolder.open(tmp_path, carried).status().status == "queued"


# Submitting


@pytest.mark.parametrize("model", ["run:#0", "run:#1", "run:#x", "run:#-1", "run:nope", "run:../../etc", "run:#²"])
def test_a_reference_that_does_not_fit_writes_nothing(tmp_path: Path, model: str) -> None:
    with pytest.raises(UserError):
        jobs.submit([spec(model=model)], tmp_path)
    assert not (tmp_path / "runs").exists()


def test_an_unfinished_parent_is_refused(tmp_path: Path) -> None:
    (parent,) = jobs.submit([spec("immunize")], tmp_path, start=False)
    jobs.submit([spec(model=f"run:{parent}")], tmp_path, start=False)  # still queued: the child will wait
    RunFolder.open(tmp_path, parent).write_status(status="stopped")
    with pytest.raises(UserError, match="stopped"):
        jobs.submit([spec(model=f"run:{parent}")], tmp_path, start=False)


def test_a_foreign_parent_hash_is_not_believed(tmp_path: Path) -> None:
    (run,) = jobs.submit([spec(parent_hash="0" * 16)], tmp_path, start=False)
    assert RunFolder.open(tmp_path, run).spec().hash == spec().hash


def test_finished_runs_are_found_and_reused(lab: Lab) -> None:
    guard = spec("immunize", knobs={"steps": 1})
    ids = jobs.submit([guard, spec(model="run:#0", knobs={"steps": 1})], lab.home, command=WORKER)
    lab.wait(ids)
    assert jobs.plan([guard], lab.home)[0].run_id == ids[0]
    assert jobs.plan([spec("immunize", seed=1)], lab.home)[0].state == "new"
    again = [guard, spec(model="run:#0", knobs={"steps": 1}), spec(model="run:#0", seed=9, knobs={"steps": 1})]
    reused = jobs.submit(again, lab.home, reuse=True, command=WORKER)
    assert reused[:2] == ids
    assert lab[reused[2]].spec().parent == ids[0]
    lab.wait(reused)
    assert jobs.drop_checkpoints(ids[0], lab.home) == 0
    assert jobs.plan(again, lab.home)[0].state == "new"  # there are no weights to start from
    assert jobs.plan([guard], lab.home)[0].run_id == ids[0]


def test_a_worker_that_cannot_be_started_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No run was started"):
        jobs.submit([spec()], tmp_path, command=["/no/such/program"])
    assert not list((tmp_path / "runs").iterdir())


def test_our_own_worker_starts(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m immunelab.jobs` comes up, says what is wrong with a run, and ends."""
    monkeypatch.setattr(preflight, "check", lambda *_, **__: None)
    (run,) = jobs.submit([spec("attack", method="no-such-attack", corpus="no-such-corpus")], lab.home)
    assert lab.wait([run]) == ["failed"]
    assert "no-such" in lab.status(run).error


# Stopping


def test_stop_saves_and_resume_goes_on_without_gaps_or_repeats(lab: Lab) -> None:
    (run,) = lab.submit("held at 3", steps=30)
    lab.wait([run], lambda s: s.step == 3)
    lab.stop(run)
    assert lab.status(run).status in ("stopping", "stopped")
    assert lab.wait([run]) == ["stopped"]
    assert list(lab[run].checkpoints.iterdir())
    before = lab.status(run)
    assert jobs.resume(run, lab.home, command=WORKER) == run
    assert lab.wait([run]) == ["done"]
    after = lab.status(run)
    assert after.attempt == 2
    assert (after.seconds or 0) > (before.seconds or 0)
    assert after.started_at == before.started_at
    store = Store(lab.home, lab.home / "none")
    store.sync(force=True)
    assert queries.points(store, [run], ["loss/total"])["step"].tolist() == list(range(1, 31))
    with pytest.raises(UserError, match="done"):
        jobs.resume(run, lab.home)


def test_stopping_one_run_leaves_the_others_of_its_worker(lab: Lab) -> None:
    ids = lab.submit("held at 1", "second", "third")
    lab.wait(ids[:1], begun)
    lab.stop(ids[2])
    lab.stop(ids[0])
    assert lab.wait(ids) == ["stopped", "done", "stopped"]
    assert lab.status(ids[2]).started_at is None
    assert lab.status(ids[2]).message == "stopped before it began"


def test_a_hung_run_is_ended_by_force_and_its_siblings_go_on(lab: Lab) -> None:
    done, hung, waiting, unwanted = ids = lab.submit("", "hang", "", "")
    lab.wait([hung], begun)
    lab.stop(unwanted)
    first = lab.status(hung).pid
    status = lab.stop(hung, force_after=0.3, wait=True)
    assert status.status == "stopped"
    assert "by force" in status.message
    assert lab.wait(ids) == ["done", "stopped", "done", "stopped"]
    assert lab.status(waiting).pid != first == lab.status(done).pid


def test_without_a_deadline_nothing_is_forced(lab: Lab) -> None:
    (run,) = lab.submit("hang")
    lab.wait([run], begun)
    lab.stop(run, force_after=None)
    time.sleep(0.2)
    assert lab.reconcile() == []
    assert lab.status(run).status == "stopping"


def test_stopping_what_has_no_worker_or_has_ended(tmp_path: Path) -> None:
    queued, done = jobs.submit([spec(), spec()], tmp_path, start=False)
    assert jobs.stop(queued, tmp_path).status == "stopped"
    RunFolder.open(tmp_path, done).write_status(status="done")
    assert jobs.stop(done, tmp_path).status == "done"


def test_a_terminated_worker_has_the_last_word(lab: Lab) -> None:
    ids = lab.submit("hang", "")
    lab.wait(ids[:1], begun)
    os.kill(lab.status(ids[0]).pid or 0, signal.SIGTERM)
    assert lab.wait(ids[:1]) == ["interrupted"]
    assert "signal" in lab.status(ids[0]).message
    arrives(lambda: lab.reconcile() or lab.status(ids[1]).status != "queued")
    assert lab.status(ids[1]).status == "interrupted"


# Crashes


def test_kill_9_is_interrupted_and_resumes(lab: Lab) -> None:
    ids = lab.submit("held at 15", "", steps=40)
    lab.wait(ids[:1], lambda s: s.step == 15)
    pid = lab.status(ids[0]).pid
    assert pid is not None
    assert lab.reconcile() == []
    os.kill(pid, signal.SIGKILL)
    lost: list[str] = []
    arrives(lambda: lost.extend(lab.reconcile()) or len(lost) == 2)
    assert sorted(lost) == sorted(ids)
    arrives(lambda: lab.reconcile() == [] and not psutil.pid_exists(pid))  # reaped
    assert [lab.status(i).status for i in ids] == ["interrupted"] * 2
    lab.let("go")
    jobs.resume(ids[0], lab.home, command=WORKER)
    assert lab.wait(ids[:1]) == ["done"]
    store = Store(lab.home, lab.home / "none")
    store.sync(force=True)
    assert queries.points(store, ids[:1], ["loss/total"])["step"].tolist() == list(range(1, 41))
    assert [json.loads(d)["from_step"] for d in queries.events(store, ids[0])["data"]] == [0, 10]


def test_a_reused_pid_is_not_the_worker(tmp_path: Path) -> None:
    (run,) = jobs.submit([spec()], tmp_path, start=False)
    folder = RunFolder.open(tmp_path, run)
    folder.write_status(status="running", pid=os.getpid(), create_time=12345.0, host=processes.HOST)
    assert jobs.reconcile(tmp_path) == [run]
    assert folder.status().status == "interrupted"
    assert jobs.reconcile(tmp_path) == []


def test_a_zombie_is_not_alive(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    born = psutil.Process(child.pid).create_time()
    arrives(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE)
    assert processes.process(child.pid, born) is None
    child.wait()


def test_a_run_on_another_machine_is_judged_by_its_heartbeat(tmp_path: Path) -> None:
    (run,) = jobs.submit([spec()], tmp_path, start=False)
    folder = RunFolder.open(tmp_path, run)
    folder.write_status(status="running", pid=1, create_time=1.0, host="elsewhere", heartbeat=time.time())
    assert jobs.reconcile(tmp_path) == []
    folder.write_status(heartbeat=time.time() - 1000)
    assert jobs.reconcile(tmp_path) == [run]


def test_a_run_that_nobody_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run,) = jobs.submit([spec()], tmp_path, start=False)
    assert jobs.reconcile(tmp_path) == []
    monkeypatch.setattr(control, "UNSTARTED", 0.0)
    assert jobs.reconcile(tmp_path) == [run]
    assert "no process was started" in RunFolder.open(tmp_path, run).status().message


def test_a_heartbeat_shows_life(lab: Lab) -> None:
    (run,) = lab.submit("hang")
    lab.wait([run], begun)
    first = lab.status(run).heartbeat or 0
    lab.wait([run], lambda s: (s.heartbeat or 0) > first)
    assert (lab.status(run).seconds or 0) > 0


# Deleting


def test_delete(lab: Lab) -> None:
    (run,) = lab.submit("held at 1")
    lab.wait([run], begun)
    with pytest.raises(UserError, match="stop it first"):
        jobs.delete(run, lab.home)
    with pytest.raises(UserError, match="already"):
        jobs.resume(run, lab.home)
    lab.stop(run, wait=True)
    (lab[run].checkpoints / "big").write_bytes(b"x" * 5000)
    assert jobs.delete(run, lab.home) > 5000
    assert list((lab.home / "runs").iterdir()) == []
    for call in (jobs.delete, jobs.stop, jobs.resume, jobs.duplicate):
        with pytest.raises(UserError, match="no run"):
            call("../../etc", lab.home)  # type: ignore[operator]


def test_a_folder_deleted_under_a_running_worker(lab: Lab) -> None:
    import shutil

    ids = lab.submit("held at 1", "")
    lab.wait(ids[:1], begun)
    path = lab[ids[0]].path
    while path.exists():  # the worker may write into it at that very moment
        shutil.rmtree(path, ignore_errors=True)
    lab.let("go")
    assert lab.wait(ids[1:]) == ["done"]


def test_duplicate_is_the_spec(tmp_path: Path) -> None:
    (run,) = jobs.submit([spec(seed=7)], tmp_path, start=False)
    assert jobs.duplicate(run, tmp_path) == spec(seed=7)


# Devices


def test_lists_take_turns_in_the_order_of_submission(lab: Lab) -> None:
    first = lab.submit("held at 1", "")
    lab.wait(first[:1], begun)
    second = lab.submit("", steps=1)
    third = lab.submit("", steps=1)
    lab.wait([*second, *third], lambda s: "waiting for cpu" in s.message)
    lab.let("go")
    ids = [*first, *second, *third]
    assert lab.wait(ids) == ["done"] * 4
    started = [lab.status(i).started_at or 0 for i in ids]
    ended = [lab.status(i).ended_at or 0 for i in ids]
    assert started == sorted(started)
    assert all(end <= start + 0.01 for end, start in zip(ended, started[1:], strict=False))


def test_a_worker_that_starts_slowly_keeps_its_place(lab: Lab) -> None:
    first = jobs.submit([spec(knobs={"steps": 2})], lab.home, command=SLOW)
    second = lab.submit("", steps=2)
    lab.wait(second, lambda s: "waiting" in s.message)
    lab.let("up")
    assert lab.wait([*first, *second]) == ["done", "done"]
    assert (lab.status(first[0]).ended_at or 0) <= (lab.status(second[0]).started_at or 0) + 0.01
    arrives(lambda: queue.tickets(lab.home, "cpu") == [])  # given back just after the last word


def test_a_run_stopped_before_its_worker_came_up_blocks_nobody(lab: Lab) -> None:
    both = jobs.submit([spec(), spec(knobs={"steps": 1})], lab.home, command=SLOW)
    lab.stop(both[0])
    lab.let("up")
    assert lab.wait(both) == ["stopped", "done"]
    arrives(lambda: queue.tickets(lab.home, "cpu") == [])


def test_a_dead_process_frees_its_device(lab: Lab) -> None:
    (hung,) = lab.submit("hang")
    lab.wait([hung], begun)
    (waiting,) = lab.submit("", steps=1)
    lab.wait([waiting], lambda s: "waiting" in s.message)
    os.kill(lab.status(hung).pid or 0, signal.SIGKILL)
    assert lab.wait([waiting]) == ["done"]
    arrives(lambda: queue.tickets(lab.home, "cpu") == [])


def test_a_waiting_run_can_be_stopped(lab: Lab) -> None:
    (hung,) = lab.submit("hang")
    lab.wait([hung], begun)
    (waiting,) = lab.submit("")
    lab.wait([waiting], lambda s: "waiting" in s.message)
    lab.stop(waiting)
    assert lab.wait([waiting]) == ["stopped"]
    arrives(lambda: queue.tickets(lab.home, "cpu") == [])
    assert len(queue.holders(lab.home, "cpu")) == 1


def test_spoiled_tickets_are_dropped(tmp_path: Path) -> None:
    place = tmp_path / "locks" / "device-cpu"
    place.mkdir(parents=True)
    for i, text in enumerate(["", "[]", "{}", '{"pid": "x", "create_time": 1}', '{"pid": 1, "create_time": 1}']):
        (place / f"{i}.json").write_text(text)
    assert queue.tickets(tmp_path, "cpu") == []
    assert not list(place.iterdir())


# Side by side


def overlap(lab: Lab, first: str, second: str) -> bool:
    """Whether two ended runs were under way at one time."""
    a, b = lab.status(first), lab.status(second)
    assert a.started_at
    assert b.started_at
    return max(a.started_at, b.started_at) < min(a.ended_at or 0, b.ended_at or 0)


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMMUNELAB_PLACES", "2")


@pytest.mark.usefixtures("two")
def test_independent_runs_go_side_by_side_and_no_more_than_there_are_places(lab: Lab) -> None:
    ids = lab.submit("held at 1", "held at 1", "")
    lab.wait(ids[:2], begun)
    assert lab.status(ids[2]).status == "queued"
    lab.let("go")
    assert lab.wait(ids) == ["done"] * 3
    assert overlap(lab, ids[0], ids[1])
    started = [lab.status(i).started_at or 0 for i in ids]
    ended = [lab.status(i).ended_at or 0 for i in ids]
    assert started[2] >= min(ended[:2]) - 0.01  # it had to wait for one of them
    assert len({lab.status(i).pid for i in ids}) == 2
    arrives(lambda: queue.holders(lab.home, "cpu") == [])


@pytest.mark.usefixtures("two")
def test_a_run_that_waits_for_its_parent_does_not_hold_up_the_others(lab: Lab) -> None:
    parent = spec("immunize", name="held at 1", knobs={"steps": 2})
    child = spec(model="run:#0", knobs={"steps": 1})
    ids = jobs.submit([parent, child, *[spec(seed=i, knobs={"steps": 1}) for i in range(3)]], lab.home, command=WORKER)
    assert lab.wait(ids[2:]) == ["done"] * 3
    lab.let("go")
    assert lab.wait(ids[:2]) == ["done"] * 2
    assert all(overlap(lab, ids[0], i) for i in ids[2:])
    assert (lab.status(ids[1]).started_at or 0) >= (lab.status(ids[0]).ended_at or 0) - 0.01


@pytest.mark.usefixtures("two")
def test_a_large_model_has_the_processor_to_itself(lab: Lab, tmp_path: Path) -> None:
    model = tmp_path / "large"
    model.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (model / name).write_text("{}")
    with (model / "model.safetensors").open("wb") as file:
        file.truncate(200 << 20)
    specs = [spec(knobs={"steps": 30}), spec(model=str(model), knobs={"steps": 10}), spec(seed=1, knobs={"steps": 30})]
    ids = jobs.submit(specs, lab.home, command=WORKER)
    assert lab.wait(ids) == ["done"] * 3
    assert not overlap(lab, ids[0], ids[1])
    assert not overlap(lab, ids[1], ids[2])
    assert demand(specs[0], lab.home).share == 1
    assert demand(specs[1], lab.home).share == 2


@pytest.mark.usefixtures("two")
def test_a_killed_worker_loses_its_run_and_none_of_the_list(lab: Lab) -> None:
    ids = lab.submit("held at 1", "hang", "", "")
    lab.wait(ids[:2], begun)
    os.kill(lab.status(ids[1]).pid or 0, signal.SIGKILL)
    arrives(lambda: ids[1] in lab.reconcile())
    lab.let("go")
    assert lab.wait([ids[0], *ids[2:]], lambda s: s.status == "done") == ["done"] * 3
    assert lab.status(ids[1]).status == "interrupted"


def test_a_run_starts_beside_others_only_where_its_memory_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMMUNELAB_PLACES", "2")
    (tmp_path / "locks").mkdir()
    free = [10]
    monkeypatch.setattr(queue.psutil, "virtual_memory", lambda: SimpleNamespace(available=free[0]))
    asked: list[int] = []

    def waiting(ahead: int) -> None:
        asked.append(ahead)
        free[0] = 100  # somebody has left

    first = queue.join(tmp_path, "cpu", "first", 1.0)
    second = queue.join(tmp_path, "cpu", "second", 2.0)
    with (
        queue.turn(tmp_path, "cpu", first, waiting, memory=50),  # alone it starts whatever it takes
        queue.turn(tmp_path, "cpu", second, waiting, memory=50),
    ):
        assert asked == [1]
        assert queue.holders(tmp_path, "cpu") == [first, second]
    assert queue.holders(tmp_path, "cpu") == queue.tickets(tmp_path, "cpu") == []


@pytest.mark.parametrize("wrong", ["0", "-1", "two", "1.5"])
def test_a_number_of_places_is_one(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    monkeypatch.setenv("IMMUNELAB_PLACES", wrong)
    with pytest.raises(UserError, match="IMMUNELAB_PLACES"):
        queue.places("cpu")
    assert queue.places("cuda:0") == 1
    monkeypatch.delenv("IMMUNELAB_PLACES")
    assert queue.places("cpu") == queue.cores() >= 1


def test_devices_are_those_that_torch_can_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(queue, "_torch_has_cuda", lambda: True)
    monkeypatch.setattr(queue.platform, "system", lambda: "Linux")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert jobs.devices() == ["cuda:0", "cuda:1", "cpu"]
    assert jobs.resolve_device("auto", tmp_path) == "cuda:0"
    queue.join(tmp_path, "cuda:0", "x", 1.0)
    assert jobs.resolve_device("auto", tmp_path) == "cuda:1"
    assert jobs.resolve_device("cuda") == "cuda:0"
    monkeypatch.setattr(queue, "_torch_has_cuda", lambda: False)
    assert jobs.devices() == ["cpu"]
    assert jobs.resolve_device() == "cpu"
    with pytest.raises(UserError, match="without CUDA"):
        jobs.resolve_device("cuda:0")
    with pytest.raises(UserError, match="device"):
        jobs.resolve_device("../../x")


def test_a_cuda_build_is_told_from_its_version_file() -> None:
    assert queue.CUDA_BUILD.search("debug = False\ncuda: Optional[str] = '12.8'\nhip: Optional[str] = None\n")
    assert not queue.CUDA_BUILD.search("debug = False\ncuda: Optional[str] = None\nhip: Optional[str] = None\n")
