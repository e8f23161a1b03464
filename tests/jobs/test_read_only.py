"""A lab that is open for reading only: whatever would change it is refused below the pages, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import made_up
import pytest

from immunelab import corpus, jobs
from immunelab.errors import UserError
from immunelab.jobs import processes
from immunelab.runs import access
from immunelab.runs.access import ReadOnly
from immunelab.runs.journal import Journal, RunFolder
from immunelab.runs.spec import RunSpec
from immunelab.store import Store
from immunelab.store.question import QUESTIONS

SPEC = RunSpec(kind="attack", method="harmful-sft", knobs={"steps": 3}, device="cpu")
CHANGES: dict[str, Callable[[Path, str], object]] = {
    "submit": lambda home, run: jobs.submit([SPEC], home),
    "submit from warm": lambda home, run: jobs.submit([SPEC], home, from_warm=True),
    "stop": lambda home, run: jobs.stop(run, home),
    "resume": lambda home, run: jobs.resume(run, home),
    "delete": lambda home, run: jobs.delete(run, home),
    "drop checkpoints": lambda home, run: jobs.drop_checkpoints(run, home),
    "command": lambda home, run: jobs.start_command("pairs", ["pairs", "build"], home),
    "process": lambda home, run: processes.detached(["true"], home / "log.txt"),
    "create": lambda home, run: RunFolder.create(home, SPEC),
    "status": lambda home, run: RunFolder.open(home, run).write_status(status="done"),
    "labels": lambda home, run: RunFolder.open(home, run).write_labels(name="mine"),
    "stop request": lambda home, run: RunFolder.open(home, run).request_stop(),
    "clear stop": lambda home, run: RunFolder.open(home, run).clear_stop(),
    "journal": lambda home, run: Journal(RunFolder.open(home, run)),
    "corpus": lambda home, run: corpus.load(str(home)),
}


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run that says it is going, in a lab that is then open for reading only."""
    run_id = made_up.attack(home, 0, 1e-3, None, until=20)
    Store(home).sync(force=True)
    monkeypatch.setenv(access.SETTING, "1")
    return run_id


def files(home: Path) -> dict[str, bytes]:
    return {str(p.relative_to(home)): p.read_bytes() for p in home.rglob("*") if p.is_file() and "duckdb" not in p.name}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_refused_and_nothing_is_written(change: str, home: Path, run: str) -> None:
    before = files(home)
    with pytest.raises(ReadOnly, match="open for reading only, so "):
        CHANGES[change](home, run)
    assert files(home) == before


def test_a_run_whose_process_is_gone_is_left_as_it_stands(
    home: Path, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(access.SETTING)
    RunFolder.open(home, run).write_status(pid=2**22 + 1, create_time=1.0)
    monkeypatch.setenv(access.SETTING, "1")
    assert jobs.reconcile(home) == []
    assert RunFolder.open(home, run).recorded().status == "running"
    monkeypatch.setenv(access.SETTING, "0")
    assert jobs.reconcile(home) == [run]


def test_what_ships_can_be_read(home: Path, run: str) -> None:
    assert len(corpus.load("fable?hold-out=bane").rows) > 1000
    assert len(Store(home).frame("SELECT * FROM runs")) == 1


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_questions_to_start_from_are_answered(question: str, home: Path, run: str) -> None:
    Store(home).query(QUESTIONS[question])


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("SELECT 1", 1),
        ("FROM RUNS", 1),
        ("SELECT count(*) FROM main.runs", 1),
        ("WITH a AS (SELECT 1 AS x) SELECT * FROM a JOIN range(3) ON true", 3),
        ("WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < 4) FROM t", 4),
    ],
)
def test_queries_of_the_tables_are_answered(sql: str, rows: int, home: Path, run: str) -> None:
    assert len(Store(home).query(sql)) == rows


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM sources",
        "SELECT * FROM duckdb_settings()",
        "FROM duckdb_databases",
        "FROM pragma_database_list()",
        "SELECT current_setting('temp_directory')",
        "SELECT * FROM information_schema.tables",
        "SELECT 1; FROM duckdb_databases()",
        "SELECT 1 WHERE 1 IN (SELECT database_oid FROM duckdb_databases())",
        "FROM (WITH duckdb_databases AS (SELECT 1) FROM duckdb_databases), duckdb_databases",
        "FROM query('FROM sources')",
        "SHOW TABLES",
        "FROM (DESCRIBE runs)",
        "FROM '/etc/passwd'",
        "FROM read_text('/etc/passwd')",
        "COPY runs TO 'x.csv'",
        "ATTACH 'x' AS x",
        "SET threads = 1",
        "PRAGMA database_list",
    ],
)
def test_a_query_reads_the_shown_tables_alone(sql: str, home: Path, run: str) -> None:
    with pytest.raises(UserError):
        Store(home).query(sql)


@pytest.mark.parametrize(("value", "closed"), [("", False), ("0", False), ("1", True), ("yes", True), (" 1 ", True)])
def test_any_text_but_0_says_so(value: str, closed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(access.SETTING, value)
    assert access.read_only() is closed
