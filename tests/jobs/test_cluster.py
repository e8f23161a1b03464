"""Sweeps on a cluster: submitit's local stand-in for Slurm, and a local Ray of two workers, with pretended runs."""

from __future__ import annotations

import io
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from recorded import record, spec
from waiting import PATIENCE

from immunelab import cli, jobs
from immunelab.errors import UserError
from immunelab.jobs import cluster, processes, queue
from immunelab.jobs.cluster import carrying, parcels
from immunelab.runs.journal import RunFolder
from immunelab.runs.spec import RunSpec

pytestmark = pytest.mark.slow

WORKER = (sys.executable, str(Path(__file__).parents[1] / "pretend_worker.py"))
CHILDREN = ("child", "boom")
NO_SUBMITIT = "submitit is not installed: make clusters"
NO_RAY = "ray is not installed: make clusters"


def family(steps: int = 2) -> list[RunSpec]:
    """A defense, an attack on it, one that fails, and an attack on the undefended model."""
    guard = spec(kind="immunize", method="seam", name="guard", knobs={"steps": steps})
    children = [spec(name=name, model="run:#0", seed=i, knobs={"steps": steps}) for i, name in enumerate(CHILDREN)]
    return [guard, *children, spec(name="alone", knobs={"steps": steps})]


def ended(home: Path, ids: list[str], using: Any) -> list[str]:
    end = time.monotonic() + PATIENCE
    runs = [RunFolder.open(home, i) for i in ids]
    while not all(r.status().ended for r in runs) or len(using.over(home)) < len(ids):
        assert time.monotonic() < end, [
            (r.status(), r.log_path.exists() and r.log_path.read_text()[-900:]) for r in runs
        ]
        cluster.settle(using, home)
        time.sleep(0.1)
    return [r.status().status for r in runs]


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """One Ray of two slots for all tests, because starting it takes most of the time."""
    made = cluster.Ray(cluster.Options(at_once=2))
    made.join()
    yield
    made.close()


@pytest.fixture(params=["slurm", "ray", "ray-apart"])
def using(request: pytest.FixtureRequest) -> Iterator[Any]:
    made: cluster.Executor
    if request.param == "slurm":
        pytest.importorskip("submitit", reason=NO_SUBMITIT)
        made = cluster.Slurm(cluster.Options(minutes=5), cluster="local", command=WORKER)
    else:
        pytest.importorskip("ray", reason=NO_RAY)
        request.getfixturevalue("local_ray")
        made = cluster.Ray(cluster.Options(apart=request.param == "ray-apart"), command=WORKER)
    yield made
    made.close()


def test_a_family_of_runs_and_the_same_command_again(using: Any, home: Path) -> None:
    specs = family()
    ids = jobs.submit(specs, home, reuse=True, go_on=True, begin=using.begin)
    assert ended(home, ids, using) == ["done", "done", "failed", "done"]
    guard, child, boom, alone = (RunFolder.open(home, i).status() for i in ids)
    assert "boom" in boom.error
    assert child.started_at >= guard.ended_at  # type: ignore[operator]
    assert len({s.pid for s in (guard, child, boom, alone)}) == 4  # a worker process each
    assert not list((home / "locks").glob("lines/*"))
    again = jobs.submit(specs, home, reuse=True, go_on=True, begin=using.begin)
    assert again == ids
    assert ended(home, ids, using) == ["done", "done", "failed", "done"]
    assert [RunFolder.open(home, i).status().attempt for i in ids] == [1, 1, 2, 1]


def until(true: Callable[[], object], using: Any, home: Path) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        cluster.settle(using, home)
        time.sleep(0.05)


def at(run: RunFolder) -> int:
    return run.status().step or 0


def test_stop_resume_and_a_killed_worker(using: Any, home: Path) -> None:
    specs = [spec(name="long", knobs={"steps": 300_000}), spec(name="hang", knobs={"steps": 40})]
    ids = jobs.submit(specs, home, reuse=True, go_on=True, begin=using.begin)
    long, hang = (RunFolder.open(home, i) for i in ids)
    until(lambda: at(long) > 15 and at(hang), using, home)
    assert sum(entry["kind"] == "points" for entry in long.entries()) > 5  # the journal is here while it runs
    long.write_labels(note="seen while it ran")
    psutil.Process(hang.status().pid).kill()
    until(lambda: hang.status().ended, using, home)
    assert hang.status().status == "interrupted"
    assert "killed" in hang.status().message
    assert long.status().status == "running"
    jobs.stop(long.run_id, home, PATIENCE)
    assert ended(home, ids, using) == ["stopped", "interrupted"]
    stopped_at = at(long)
    assert (long.checkpoints / f"step-{stopped_at:06d}").is_dir()
    assert [p.state for p in jobs.plan(specs, home)] == ["unfinished"] * 2

    jobs.submit(specs[:1], home, reuse=True, go_on=True, begin=using.begin)
    until(lambda: at(long) > stopped_at, using, home)
    resumed = [e for e in long.entries() if e["kind"] == "event" and e["event"] == "resumed"]
    assert [e["step"] for e in resumed] == [stopped_at]
    assert long.status().attempt == 2
    assert long.labels().note == "seen while it ran"
    jobs.stop(long.run_id, home, PATIENCE)
    assert ended(home, ids[:1], using) == ["stopped"]


def test_a_run_that_does_not_stop_is_ended_by_its_node(using: Any, home: Path) -> None:
    ids = jobs.submit([spec(name="hang", knobs={"steps": 40})], home, begin=using.begin)
    hang = RunFolder.open(home, ids[0])
    until(lambda: at(hang), using, home)
    jobs.stop(ids[0], home, 0.1)
    assert ended(home, ids, using) == ["stopped"]
    assert not psutil.pid_exists(hang.status().pid or 0)


def test_a_parent_that_fails_takes_its_children_only(home: Path) -> None:
    pytest.importorskip("submitit", reason=NO_SUBMITIT)
    using = cluster.Slurm(cluster.Options(minutes=5), cluster="local", command=WORKER)
    specs = family()
    specs[0] = spec(kind="immunize", method="seam", name="memory", knobs={"steps": 2})
    ids = jobs.submit(specs, home, begin=using.begin)
    assert ended(home, ids, using) == ["failed", "failed", "failed", "done"]
    assert ids[0] in RunFolder.open(home, ids[1]).status().error


class Held:
    """A cluster that never calls a run up, and then loses its jobs."""

    outlives = True

    def __init__(self) -> None:
        self.folders: list[RunFolder] = []
        self.lost = False

    def begin(self, home: Path, folders: list[RunFolder]) -> None:
        self.folders += folders
        for folder in folders:
            carrying.in_line(folder, "slurm:7_0")

    def over(self, home: Path) -> list[cluster.Over]:
        return [cluster.Over(folder, "node lost") for folder in self.folders] if self.lost else []

    def close(self) -> None: ...


def test_a_run_in_a_clusters_line_is_neither_lost_nor_handed_over_twice(home: Path) -> None:
    held = Held()
    specs = family()
    ids = jobs.submit(specs, home, begin=held.begin)  # type: ignore[arg-type]
    for i in ids:
        RunFolder.open(home, i).write_status(queued_at=time.time() - 10 * control_patience())
    assert jobs.reconcile(home) == []
    assert [p.state for p in jobs.plan(specs, home)] == ["under way"] * 4
    assert jobs.submit(specs, home, reuse=True, go_on=True, begin=held.begin) == ids  # type: ignore[arg-type]
    assert len(held.folders) == 4
    assert jobs.stop(ids[3], home).status == "stopped"  # recalled at once: no process has to be waited for
    assert jobs.work([ids[3]], home, execute=lambda *_, **__: "done") == 1  # its job comes up, and leaves it alone
    assert RunFolder.open(home, ids[3]).status().status == "stopped"
    assert cluster.settle(held, home) == []  # type: ignore[arg-type]
    held.lost = True
    assert cluster.settle(held, home) == ids[:3]  # type: ignore[arg-type]
    assert RunFolder.open(home, ids[0]).status().status == "interrupted"
    assert [p.state for p in jobs.plan(specs, home)] == ["unfinished"] * 4


def test_a_job_that_was_cancelled_while_nobody_looked_is_handed_over_anew(home: Path) -> None:
    pytest.importorskip("submitit", reason=NO_SUBMITIT)
    specs = [spec(name="alone", knobs={"steps": 2})]

    def line(home: Path, folders: Sequence[RunFolder]) -> None:
        carrying.in_line(folders[0], "slurm:4711_0")

    ids = jobs.submit(specs, home, begin=line)
    assert [p.state for p in jobs.plan(specs, home)] == ["under way"]
    using = cluster.Slurm(cluster.Options(), cluster="local", command=WORKER)  # of a later command
    assert cluster.settle(using, home) == ids  # neither a process nor a result
    assert jobs.submit(specs, home, reuse=True, go_on=True, begin=using.begin) == ids
    assert ended(home, ids, using) == ["done"]


def test_runs_in_the_line_of_a_command_that_is_gone_are_not_waited_for(home: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    born = processes.born(gone.pid)

    def line(home: Path, folders: Sequence[RunFolder]) -> None:
        for folder in folders:
            carrying.in_line(folder, f"ray:{processes.HOST}", pid=gone.pid, create_time=born)

    ids = jobs.submit([spec()], home, begin=line)
    assert jobs.reconcile(home) == []
    gone.communicate()
    assert jobs.reconcile(home) == ids
    assert RunFolder.open(home, ids[0]).status().status == "interrupted"


def test_a_node_that_does_not_see_the_home_says_so(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrying, "VISIBLE", 0.0)
    with pytest.raises(UserError, match=r"must share the disk of --home .* --apart sends the folders"):
        carrying.carry("a-run", str(home / "elsewhere"))


def test_a_parcel_is_the_folder_and_leaves_labels_alone(home: Path) -> None:
    there = record(home, spec(), steps=20)
    there.write_labels(note="theirs")
    (there.checkpoints / "step-000020").mkdir()
    (there.checkpoints / "step-000020" / "model.safetensors").write_bytes(b"new" * 1000)
    (there.path / ".reserve").write_bytes(b"0")
    here = RunFolder(home / "runs" / "elsewhere")
    (here.checkpoints / "step-000020").mkdir(parents=True)
    (here.checkpoints / "step-000020" / "stale").touch()
    parcels.unpack(parcels.pack(there), here)
    names = {str(p.relative_to(here.path)) for p in here.path.rglob("*") if p.is_file()}
    assert names == {
        "spec.json",
        "lineage.json",
        "status.json",
        "journal.jsonl",
        "checkpoints/step-000020/model.safetensors",
    }
    for name in names:
        assert (here.path / name).read_bytes() == (there.path / name).read_bytes()


def test_a_damaged_parcel_changes_nothing(home: Path) -> None:
    folder = record(home, spec())
    before = {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match="damaged"):
        parcels.unpack(parcels.pack(folder)[:-30], folder)
    hostile = io.BytesIO()
    with zipfile.ZipFile(hostile, "w") as found:
        found.writestr("../../../outside.txt", "x")
        found.writestr("/etc/outside.txt", "x")
    parcels.unpack(hostile.getvalue(), folder)
    assert before.items() <= {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file()}.items()
    assert [p.parent for p in home.parent.rglob("outside.txt")] == [folder.path]


def test_news_is_what_was_added_and_no_end_is_believed(home: Path) -> None:
    there, here = record(home, spec(), status="running"), RunFolder.create(home, spec(seed=1))
    here.journal_path.write_bytes(there.journal_path.read_bytes()[:50])
    gazette = parcels.Gazette(there)
    gazette.told["journal.jsonl"] = 50
    there.write_status(heartbeat=1.0, step=7, host="node7")
    parcels.read(here, gazette.news())
    assert here.journal_path.read_bytes() == there.journal_path.read_bytes()
    assert (here.status().step, here.status().host) == (7, "ray/node7")
    assert processes.alive(here.status())  # by the time of this machine
    assert gazette.news() == []
    there.write_status(status="done")
    parcels.read(here, gazette.news())
    assert here.status().status == "running"
    with there.journal_path.open("ab") as file:
        file.write(b"{}\n")
    gazette.news()  # lost on its way
    with there.journal_path.open("ab") as file:
        file.write(b"[]\n")
    whole = here.journal_path.read_bytes()
    parcels.read(here, gazette.news())
    assert here.journal_path.read_bytes() == whole  # no gap: the parcel at the end mends it


def control_patience() -> float:
    """The seconds after which a run that nobody carries on this machine counts as interrupted."""
    return jobs.control.UNSTARTED


def test_each_job_has_device_locks_of_its_own(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = queue.join(home, "cpu", "a-run", 1.0)
    monkeypatch.setenv(queue.LINE, "another-run")
    assert queue.tickets(home, "cpu") == []
    assert queue.join(home, "cpu", "another-run", 2.0).parent != here.parent
    assert queue.ticket_of(home, "another-run")
    monkeypatch.delenv(queue.LINE)
    assert queue.tickets(home, "cpu") == [here]


def test_slurm_is_asked_for_what_was_wanted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submitit = pytest.importorskip("submitit", reason=NO_SUBMITIT)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    using = cluster.Slurm(cluster.Options(partition="gpu", minutes=90, gpus=1, cpus=4, at_once=8))
    asked = using._executor(home, "12_0")._executor
    assert isinstance(asked, submitit.SlurmExecutor)
    text = asked._make_submission_file_text("echo", "id")
    for line in (
        "--partition=gpu",
        "--time=90",
        "--gpus-per-node=1",
        "--cpus-per-task=4",
        "--dependency=afterany:12_0",
    ):
        assert f"#SBATCH {line}" in text
    assert asked.parameters["array_parallelism"] == 8


@pytest.mark.parametrize(
    ("more", "missing", "words"),
    [
        (["--executor", "slrum"], "", "executor called 'slrum'. Did you mean 'slurm'"),
        (["--executor", "slurm"], "submitit", "pip install submitit"),
        (["--executor", "ray"], "ray", "pip install ray"),
        (["--gpus", "2"], "", "--gpus means nothing to the executor local"),
        (["--executor", "slurm", "--apart"], "", "use --executor ray"),
        (["--executor", "ray", "--address", "10.0.0.5:6379", "--at-once", "2"], "", "--at-once is for a Ray that is"),
        (["--executor", "slurm", "--minutes", "0"], "", "minutes is a whole number from 1, and got 0"),
    ],
)
def test_what_is_missing_is_a_sentence(
    more: list[str],
    missing: str,
    words: str,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, missing or "not-a-package", None)
    file = home / "small.toml"
    file.write_text('[[attack]]\nmethod = "harmful-sft"\n', encoding="utf-8")
    assert cli.main(["sweep", str(file), "--home", str(home), *more]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (home / "runs").exists()


def test_without_slurm_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit", reason=NO_SUBMITIT)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError, match="There is no sbatch here"):
        cluster.Slurm(cluster.Options())


def test_a_machine_is_never_taken_for_a_cluster() -> None:
    assert ":" not in processes.HOST
