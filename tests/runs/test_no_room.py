"""A full disk, a read-only home, no permission: a run stops with a sentence and keeps what it has."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from recorded import record, spec

from immunelab import jobs
from immunelab.cli import main
from immunelab.errors import UserError
from immunelab.runs import journal
from immunelab.runs.journal import Journal, RunFolder
from immunelab.store import Store, queries

ROOT = Path(__file__).resolve().parents[2]


def namespaces() -> bool:
    """Whether a test may mount a small disk of its own, as root or in a user namespace."""
    tool = shutil.which("unshare")
    return bool(tool) and subprocess.run([tool, "-rm", "true"], capture_output=True, check=False).returncode == 0


alone = pytest.mark.skipif(not namespaces(), reason="No namespaces here (unshare -rm), so no disk to fill.")


def on_a_disk(script: str, size: str, place: Path) -> str:
    """What a Python program prints that runs with a disk of its own of this size as its working directory."""
    place.mkdir(parents=True, exist_ok=True)
    line = f'mount -t tmpfs -o size={size} none "{place}" && cd "{place}" && exec "{sys.executable}" -c "$SCRIPT"'
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", line],
        env=os.environ | {"SCRIPT": script, "PYTHONPATH": paths, "IMMUNELAB_HOME": str(place / "lab")},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


FILLS = """
from pathlib import Path
from recorded import spec
from immunelab import jobs
from immunelab.runs.journal import Journal, RunFolder
from immunelab.store import Store

home = Path("lab").absolute()
(first, second) = jobs.submit([spec(), spec()], home, start=False)

def execute(folder, attempt, resume):
    with Journal(folder, attempt) as journal:
        if folder.run_id == second:
            journal.points("attack", 1, {"loss/total": 1.0})
            return "done"
        for step in range(1, 10**6):
            journal.points("attack", step, {"loss/total": 1.0})
            print("x" * 1000)
    return "done"

jobs.work([first, second], home, execute)
for run in (first, second):
    status = RunFolder.open(home, run).status()
    print(status.status, "|", status.error)
steps = [e["step"] for e in RunFolder.open(home, first).entries()]
assert steps == list(range(1, len(steps) + 1)) and len(steps) > 100, steps[-3:]
print(len(steps), "lines are whole")
try:
    Store(home, home / "none").sync(force=True)
    print("synced")
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.slow
@alone
def test_a_full_disk_ends_a_run_with_a_sentence_and_keeps_its_record(tmp_path: Path) -> None:
    first, _second, lines, store = on_a_disk(FILLS, "12m", tmp_path / "disk").splitlines()
    assert first.startswith("failed | The disk is full")
    assert "resume the run" in first
    assert lines.endswith("lines are whole")
    assert store == "synced" or store.startswith("UserError")


READ_ONLY = """
import subprocess, sys
from pathlib import Path
from recorded import record, spec
from immunelab import jobs
from immunelab.cli import main
from immunelab.errors import UserError
from immunelab.store import Store, queries

home = Path("lab").absolute()
folder = record(home, spec())
Store(home, home / "none").sync(force=True)
subprocess.run(["mount", "-o", "remount,ro", str(Path.cwd())], check=True)

def told(action):
    try:
        action()
    except UserError as error:
        return str(error)
    raise AssertionError("nothing was refused")

for action in (
    lambda: jobs.submit([spec()], home), lambda: jobs.delete(folder.run_id, home),
    lambda: jobs.resume(folder.run_id, home), lambda: jobs.drop_checkpoints(folder.run_id, home),
    lambda: jobs.stop(folder.run_id, home),
):
    text = told(action)
    assert "IMMUNELAB_HOME" in text or "done" in text, text
store = Store(home, home / "none")
store.sync()  # a page goes on reading
assert len(queries.runs(store)) == 1
assert jobs.reconcile(home) == []
print("all told")
"""


@pytest.mark.slow
@alone
def test_a_read_only_home_can_be_read_and_says_why_nothing_else_works(tmp_path: Path) -> None:
    assert on_a_disk(READ_ONLY, "30m", tmp_path / "disk") == "all told\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM])
def test_what_the_system_refuses_is_a_sentence(
    number: int, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = record(home, spec(), status="interrupted")

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number), "somewhere")

    monkeypatch.setattr(journal, "replace_file", refuse)
    with pytest.raises(UserError, match=r"free some space|mend the permissions"):
        jobs.resume(folder.run_id, home)
    monkeypatch.setattr(Path, "rename", refuse)
    assert main(["delete", folder.run_id, "--yes"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert folder.path.is_dir()


def test_a_log_that_cannot_be_written_does_not_cost_the_run_its_last_word(tmp_path: Path) -> None:
    (run_id,) = jobs.submit([spec()], tmp_path, start=False)
    folder = RunFolder.open(tmp_path, run_id)
    folder.log_path.mkdir()  # can't be opened

    def execute(folder: RunFolder, attempt: int, resume: bool) -> str:
        with Journal(folder, attempt) as j:
            j.points("attack", 1, {"loss/total": 1.0})
        raise ValueError("boom")

    assert jobs.work([run_id], tmp_path, execute) == 1
    assert folder.status().error == "ValueError: boom"
    store = Store(tmp_path, tmp_path / "none")
    store.sync(force=True)
    assert queries.runs(store)["status"].tolist() == ["failed"]


def test_rebuilding_from_the_command_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A spoiled database stops nobody for long: the journals are the truth."""
    for _ in range(2):
        record(home, spec())
    assert main(["sql", "select count(*) as n from points where not starts_with(run_id, 'showcase')", "--json"]) == 0
    before = capsys.readouterr().out
    (home / "immunelab.duckdb").write_bytes(b"spoiled" * 5000)
    assert main(["runs"]) == 2
    assert "immunelab store rebuild" in capsys.readouterr().err
    assert main(["store", "rebuild"]) == 0
    assert "journals of 2 runs" in capsys.readouterr().out
    assert main(["sql", "select count(*) as n from points where not starts_with(run_id, 'showcase')", "--json"]) == 0
    assert capsys.readouterr().out == before


def test_memory_that_runs_out_in_torch_is_answered_with_what_to_lower(tmp_path: Path) -> None:
    import torch

    (run_id,) = jobs.submit([spec()], tmp_path, start=False)
    assert jobs.work([run_id], tmp_path, lambda *_, **__: str(torch.empty(2**55))) == 1
    assert "lower batch_size" in RunFolder.open(tmp_path, run_id).status().error
