from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from recorded import record, spec

from immunelab.errors import UserError
from immunelab.runs import journal
from immunelab.runs.journal import Journal, RunFolder, Status, lines


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path, spec())


def test_home_is_the_argument_then_the_environment_then_lab(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IMMUNELAB_HOME", raising=False)
    assert journal.home() == tmp_path / "lab"
    monkeypatch.setenv("IMMUNELAB_HOME", str(tmp_path / "there"))
    assert journal.home() == tmp_path / "there"
    assert journal.home("here") == tmp_path / "here"


def test_a_new_folder_is_queued_and_reads_back(tmp_path: Path) -> None:
    parent = RunFolder.create(tmp_path, spec("immunize"))
    child = RunFolder.create(tmp_path, spec(parent=parent))
    assert RunFolder.open(tmp_path, child.run_id).spec() == spec(parent=parent)
    assert child.status().status == "queued"
    assert [a.run_id for a in child.lineage()] == [parent.run_id]
    assert "harmful-sft" in child.run_id
    assert not [p for p in (tmp_path / "runs").iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("name", ["../x", "..", "", "/etc/passwd", "a/../../b", "x" * 300, "a\0b", ".new-run", "nope"])
def test_open_refuses_paths_and_strangers(tmp_path: Path, folder: RunFolder, name: str) -> None:
    (tmp_path / "spec.json").write_text("{}")
    with pytest.raises(UserError, match="no run"):
        RunFolder.open(tmp_path, name)


def test_open_names_near_matches(tmp_path: Path, folder: RunFolder) -> None:
    with pytest.raises(UserError, match=folder.run_id):
        RunFolder.open(tmp_path, folder.run_id[:-1])


def test_status_changes_keep_the_rest_and_stopping_is_derived(folder: RunFolder) -> None:
    folder.write_status(status="running", step=3)
    folder.write_status(step=4, eta_seconds=math.inf)
    assert (folder.status().status, folder.status().step, folder.status().eta_seconds) == ("running", 4, None)
    folder.request_stop(force_after=0.0)
    assert folder.status().status == "stopping"
    assert folder.recorded().status == "running"
    time.sleep(0.01)
    assert folder.overdue()
    folder.write_status(status="done")
    assert folder.status().status == "done"
    folder.clear_stop()
    assert not folder.stop_requested()


def test_a_plain_stop_file_is_a_request_without_a_deadline(folder: RunFolder) -> None:
    (folder.path / "stop").touch()
    assert folder.stop_requested()
    assert not folder.overdue()


SPOILED = [
    "",
    "[]",
    "{}",
    '{"status": "flying"}',
    '{"status": 3}',
    '{"status": "done", "step": "x"}',
    "[" * 100_000,
    '{"status": "done", "pid": 1e400}',
    '{"status": "done", "versions": []}',
    '{"status": "done", "step": true}',
]


@pytest.mark.parametrize("text", SPOILED)
def test_a_spoiled_status_is_a_sentence(folder: RunFolder, text: str) -> None:
    (folder.path / "status.json").write_text(text)
    with pytest.raises(UserError):
        folder.status()


def test_links_and_pipes_are_not_read(folder: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text('{"name": "secret"}')
    (folder.path / "tags.json").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="no plain file"):
        folder.labels()
    os.mkfifo(folder.journal_path)
    with pytest.raises(OSError, match="not seekable"):  # at once, instead of waiting for a writer
        list(folder.entries())


def test_a_later_versions_status_is_read() -> None:
    assert Status.from_json('{"status": "done", "colour": "blue"}').status == "done"


def test_labels(folder: RunFolder) -> None:
    assert folder.labels() == journal.Labels()
    folder.write_labels(name="héllo", tags=("a", "b"))
    folder.write_labels(note="two\nlines")
    assert folder.labels() == journal.Labels(name="héllo", tags=("a", "b"), note="two\nlines")
    for wrong in ({"name": "x" * 201}, {"name": "a\x00"}, {"tags": ("\ud800",)}, {"tags": ("t",) * 51}):
        with pytest.raises(UserError):
            folder.write_labels(**wrong)
    assert folder.labels().name == "héllo"


def test_entries_are_what_was_written(folder: RunFolder) -> None:
    with Journal(folder, attempt=2) as j:
        j.points("attack", 1, {"a": 1.5, "b": math.nan, "c": -math.inf})
        j.layers("attack", 1, {"cosine": [0.5, math.inf]})
        j.event("resumed", from_step=7, phase="attack")
    points, layers, event = folder.entries()
    assert points["values"] == {"a": 1.5, "b": "NaN", "c": "-Infinity"}
    assert (points["kind"], points["attempt"], points["phase"], points["step"]) == ("points", 2, "attack", 1)
    assert abs(points["at"] - time.time()) < 10
    assert layers["values"] == {"cosine": [0.5, "Infinity"]}
    assert (event["step"], event["data"]["from_step"]) == (7, 7)


def test_numpy_scalars_are_floats(folder: RunFolder) -> None:
    import numpy as np

    with Journal(folder) as j:
        j.points("attack", 1, {"a": np.float32(0.5), "b": np.float64(2)})
    assert next(folder.entries())["values"] == {"a": 0.5, "b": 2.0}


def test_long_examples_take_several_lines(folder: RunFolder) -> None:
    rows = [{"id": str(i), "prompt": "é" * 50_000, "answer": "", "expected": "", "score": 1.0} for i in range(9)]
    with Journal(folder) as j:
        j.examples("attack", 0, evaluation="e", split="test", rows=rows)
    found = list(folder.entries())
    assert len(found) > 1
    assert [row for entry in found for row in entry["rows"]] == rows


def test_a_torn_last_line_is_ignored_and_then_ended(folder: RunFolder) -> None:
    with Journal(folder) as j:
        j.points("attack", 1, {"a": 1.0})
    with folder.journal_path.open("ab") as file:
        file.write(b'{"kind":"points","attempt":1,"pha')
    assert len(list(folder.entries())) == 1
    with Journal(folder, attempt=2) as j:
        j.points("attack", 1, {"a": 2.0})
    assert [e["attempt"] for e in folder.entries()] == [1, 2]


def test_lines_have_positions_and_resume_from_them(folder: RunFolder) -> None:
    folder.journal_path.write_bytes(b"one\n\nthree\ntorn")
    assert list(lines(folder.journal_path)) == [(0, b"one"), (4, b""), (5, b"three")]
    assert list(lines(folder.journal_path, 5)) == [(5, b"three")]
    assert list(lines(folder.journal_path, 0, most=1)) == [(0, b"one")]


def test_a_huge_line_is_read_in_pieces(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "LARGEST_LINE", 10)
    folder.journal_path.write_bytes(b"x" * 25 + b"\nnext\n")
    found = list(lines(folder.journal_path))
    assert found == [(0, b"x" * 10), (10, b"x" * 10), (20, b"x" * 5), (26, b"next")]


def test_a_line_is_one_write(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    real = os.write
    with Journal(folder) as j:
        monkeypatch.setattr(os, "write", lambda file, data: written.append(data) or real(file, data))
        j.points("attack", 1, {"a": 1.0})
    assert len(written) == 1
    assert written[0].endswith(b"\n")


def test_a_full_disk_is_an_error_and_the_next_line_stays_whole(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    with Journal(folder) as j:
        monkeypatch.setattr(os, "write", lambda file, data: real(file, data[:10]))
        with pytest.raises(OSError, match="No space"):
            j.points("attack", 1, {"a": 1.0})
        monkeypatch.setattr(os, "write", real)
        j.points("attack", 2, {"a": 2.0})
    assert [e["step"] for e in folder.entries()] == [2]


def test_overhead_of_points(folder: RunFolder) -> None:
    values = {f"loss/term-{i}": 0.123456789 * i for i in range(20)}
    with Journal(folder) as j:
        times = []
        for _ in range(5):
            start = time.process_time()  # what other programs do meanwhile is not counted
            for step in range(500):
                j.points("attack", step, values)
            times.append((time.process_time() - start) / 500)
    assert min(times) < 150e-6  # it is 15 µs; the bound leaves room for slow machines


WRITER = """
import sys
from immunelab.runs.journal import Journal
with Journal(sys.argv[1], int(sys.argv[2])) as j:
    for step in range(10**9):
        j.points("attack", step, {"a": float(step), "b": 1.0})
        sys.stdout.write(f"{step}\\n"); sys.stdout.flush()
"""


@pytest.mark.slow
def test_kill_9_loses_no_acknowledged_line(folder: RunFolder) -> None:
    for attempt in (1, 2, 3):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder.path), str(attempt)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        assert child.stdout
        for _ in range(200 * attempt):
            child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        acknowledged = 200 * attempt + len(child.stdout.read().splitlines()) - 1
        child.wait()
        steps = [e["step"] for e in folder.entries() if e["attempt"] == attempt]
        assert steps == list(range(len(steps)))
        assert len(steps) >= acknowledged


def test_recorded_runs_are_valid_json_lines(tmp_path: Path) -> None:
    folder = record(tmp_path, spec())
    for line in folder.journal_path.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(name))
