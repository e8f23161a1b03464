"""Sweeps on a cluster: submitit's local stand-in for Slurm, and a local Ray of two workers, with pretended runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from recorded import spec

from immunelab import cli, cluster, jobs
from immunelab.cluster import carrying
from immunelab.errors import UserError
from immunelab.jobs import processes, turns
from immunelab.journal import RunFolder
from immunelab.spec import RunSpec

WORKER = (sys.executable, str(Path(__file__).parent / "pretend_worker.py"))
CHILDREN = ("child", "boom")
NO_SUBMITIT = "submitit is not installed: make clusters"
NO_RAY = "ray is not installed: make clusters"


def family(steps: int = 2) -> list[RunSpec]:
    """A defense, an attack on it, one that fails, and an attack on the undefended model."""
    guard = spec(kind="immunize", method="seam", name="guard", knobs={"steps": steps})
    children = [spec(name=name, model="run:#0", seed=i, knobs={"steps": steps}) for i, name in enumerate(CHILDREN)]
    return [guard, *children, spec(name="alone", knobs={"steps": steps})]


def ended(home: Path, ids: list[str], using: Any, seconds: float = 90) -> list[str]:
    end = time.monotonic() + seconds
    runs = [RunFolder.open(home, i) for i in ids]
    while not all(r.status().ended for r in runs) or len(using.over(home)) < len(ids):
        assert time.monotonic() < end, [
            (r.status(), r.log_path.exists() and r.log_path.read_text()[-900:]) for r in runs
        ]
        cluster.settle(using, home)
        time.sleep(0.1)
    return [r.status().status for r in runs]


@pytest.fixture(params=["slurm", "ray", "ray-apart"])
def using(request: pytest.FixtureRequest) -> Iterator[Any]:
    made: cluster.Executor
    if request.param == "slurm":
        pytest.importorskip("submitit", reason=NO_SUBMITIT)
        made = cluster.Slurm(cluster.Options(minutes=5), cluster="local", command=WORKER)
    else:
        pytest.importorskip("ray", reason=NO_RAY)
        made = cluster.Ray(cluster.Options(at_once=2, apart=request.param == "ray-apart"), command=WORKER)
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


def control_patience() -> float:
    """The seconds after which a run that nobody carries on this machine counts as interrupted."""
    return jobs.control.UNSTARTED


def test_each_job_has_device_locks_of_its_own(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = turns.queue(home, "cpu", "a-run", 1.0)
    monkeypatch.setenv(turns.LINE, "another-run")
    assert turns.tickets(home, "cpu") == []
    assert turns.queue(home, "cpu", "another-run", 2.0).parent != here.parent
    assert turns.standing(home, "another-run")
    monkeypatch.delenv(turns.LINE)
    assert turns.tickets(home, "cpu") == [here]


def test_slurm_is_asked_for_what_was_wanted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submitit = pytest.importorskip("submitit", reason=NO_SUBMITIT)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    using = cluster.Slurm(cluster.Options(partition="gpu", minutes=90, gpus=1, cpus=4, at_once=8))
    asked = using._executor(home, "12_0")._executor
    assert isinstance(asked, submitit.SlurmExecutor)
    text = asked._make_submission_file_text("echo", "id")
    for line in ("--partition=gpu", "--time=90", "--gpus-per-node=1", "--cpus-per-task=4",
                 "--dependency=afterany:12_0"):  # fmt: skip
        assert f"#SBATCH {line}" in text
    assert asked.parameters["array_parallelism"] == 8


@pytest.mark.parametrize(
    ("more", "missing", "words"),
    [
        (["--executor", "slrum"], "", "executor called 'slrum'. Did you mean 'slurm'"),
        (["--executor", "slurm"], "submitit", "pip install submitit"),
        (["--executor", "ray"], "ray", "pip install ray"),
        (["--executor", "slurm", "--minutes", "0"], "", "minutes is a whole number from 1, and got 0"),
    ],
)
def test_what_is_missing_is_a_sentence(
    more: list[str], missing: str, words: str, home: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
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
