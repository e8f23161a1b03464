from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from recorded import record, spec

from immunelab.errors import UserError
from immunelab.runs.journal import Journal
from immunelab.store import Busy, Store, door, folders, ingest, migrations, queries, sync, tables

ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home", tmp_path / "no-showcase")


def count(store: Store, table: str) -> int:
    return int(store.frame(f"SELECT count(*) AS n FROM {table}")["n"][0])


@pytest.fixture
def openings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the door was opened for since."""
    seen: list[str] = []
    real = door._connect

    def connect(path: Path, deadline: float, read_only: bool) -> duckdb.DuckDBPyConnection:
        seen.append("read" if read_only else "write")
        return real(path, deadline, read_only)

    monkeypatch.setattr(door, "_connect", connect)
    return seen


@pytest.fixture
def held(store: Store) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the database open for writing."""
    store.sync(force=True)
    code = f"import duckdb; c = duckdb.connect({str(store.path)!r}); print('open', flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout
    assert child.stdout.readline() == "open\n"
    yield child
    child.kill()
    child.wait()


def test_everything_recorded_is_stored(store: Store) -> None:
    folder = record(store.home, spec())
    store.sync()
    counts = {t: count(store, t) for t in ("points", "layer_points", "scores", "examples", "checkpoints", "events")}
    assert counts == {"points": 40, "layer_points": 3, "scores": 6, "examples": 3, "checkpoints": 1, "events": 1}
    row = queries.runs(store).iloc[0]
    assert (row["run_id"], row["status"], row["learning_rate"], row["steps"]) == (folder.run_id, "done", 3e-4, 60)


def test_an_empty_home(store: Store) -> None:
    assert queries.runs(store).empty
    assert queries.attack_curves(store).empty
    assert queries.disk(store).empty


def test_a_second_sync_adds_nothing_and_writes_nothing(store: Store, openings: list[str]) -> None:
    record(store.home, spec())
    store.sync(force=True)
    time.sleep(0.11)  # a folder touched less than 0.1 s ago is looked at again
    store.sync(force=True)
    before = count(store, "points")
    openings.clear()
    store.sync(force=True)
    assert openings == []
    assert count(store, "points") == before


def test_a_new_process_that_finds_nothing_new_does_not_write(
    store: Store, openings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    record(store.home, spec())
    time.sleep(0.11)
    store.sync(force=True)
    monkeypatch.setattr(sync, "_homes", {})
    openings.clear()
    Store(store.home, store.showcase_folder).sync(force=True)
    assert set(openings) == {"read"}


def test_the_revision_changes_with_what_is_recorded(store: Store) -> None:
    record(store.home, spec())
    store.sync(force=True)
    time.sleep(0.11)  # a folder touched less than 0.1 s ago is looked at again
    store.sync(force=True)
    before = store.revision
    store.sync(force=True)
    assert store.revision == before
    record(store.home, spec())
    store.sync(force=True)
    assert store.revision != before


def test_sync_is_rate_limited_unless_forced(store: Store) -> None:
    folder = record(store.home, spec())
    store.sync()
    with Journal(folder) as j:
        j.points("attack", 99, {"loss/total": 1.0})
    store.sync()
    assert count(store, "points") == 40
    store.sync(force=True)
    assert count(store, "points") == 41


def test_looking_often_does_not_put_off_taking_in(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages ask many questions a second, and each looks for what is new."""
    now = [1000.0]
    monkeypatch.setattr(sync.time, "monotonic", lambda: now[0])
    store.sync(force=True)
    record(store.home, spec())
    for _ in range(30):
        now[0] += sync.EVERY / 10
        store.sync()
    assert len(queries.runs(store)) == 1


def test_appended_lines_changed_status_and_labels_arrive(store: Store) -> None:
    folder = record(store.home, spec(), status="running")
    store.sync(force=True)
    with Journal(folder) as j:
        j.points("attack", 21, {"loss/total": 21.0})
    folder.write_status(status="done", progress=1.0)
    folder.write_labels(name="mine", tags=("a", "b"))
    store.sync(force=True)
    row = queries.runs(store).iloc[0]
    assert (row["status"], row["progress"], row["name"], row["tags"]) == ("done", 1.0, "mine", ["a", "b"])
    assert count(store, "points") == 41


def test_a_stop_request_is_seen_without_the_worker(store: Store) -> None:
    folder = record(store.home, spec(), status="running")
    store.sync(force=True)
    folder.request_stop()
    store.sync(force=True)
    assert queries.runs(store)["status"].tolist() == ["stopping"]


def test_a_torn_line_waits_for_its_end(store: Store) -> None:
    folder = record(store.home, spec())
    whole = b'{"kind":"points","attempt":1,"phase":"attack","step":77,"at":1.0,"values":{"x":1.0}}\n'
    with folder.journal_path.open("ab") as file:
        file.write(whole[:30])
        file.flush()
        store.sync(force=True)
        assert count(store, "points") == 40
        file.write(whole[30:])
    store.sync(force=True)
    assert count(store, "points") == 41
    assert queries.problems(store).empty


def test_a_deleted_run_goes(store: Store) -> None:
    gone, kept = record(store.home, spec()), record(store.home, spec())
    store.sync(force=True)
    shutil.rmtree(gone.path)
    store.sync(force=True)
    for table in tables.PER_RUN:
        ids = set(store.frame(f"SELECT DISTINCT run_id FROM {table}")["run_id"])
        assert ids <= {kept.run_id}, table
    assert count(store, "points") == 40


def test_a_journal_that_became_shorter_is_read_anew(store: Store) -> None:
    folder = record(store.home, spec())
    store.sync(force=True)
    head = folder.journal_path.read_bytes().splitlines(keepends=True)[:5]
    folder.journal_path.write_bytes(b"".join(head))
    store.sync(force=True)
    assert count(store, "points") == 2 * sum(b'"points"' in line for line in head)


def test_ticks_are_capped_and_force_catches_up(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync, "TICK_BYTES", 2000)
    monkeypatch.setattr(sync, "CHUNK_BYTES", 1000)
    for _ in range(4):
        record(store.home, spec())
    store.sync()
    assert 0 < count(store, "points") < 160
    store.sync(force=True)
    assert count(store, "points") == 160


HOSTILE = [
    b"",
    b"null",
    b"[]",
    b"{}",
    b"\xff\xfe",
    b"\x00" * 40,
    b'"text"',
    b"{" * 50,
    b"[" * 200_000,
    b"1" * 5000,
    b'{"kind":"nope","attempt":1,"phase":"a","step":1,"at":1}',
    b'{"kind":"points","attempt":0,"phase":"a","step":1,"at":1,"values":{"x":1}}',
    b'{"kind":"points","attempt":1,"phase":"a","step":-1,"at":1,"values":{"x":1}}',
    b'{"kind":"points","attempt":1,"phase":"a","step":1e300,"at":1,"values":{"x":1}}',
    b'{"kind":"points","attempt":1,"phase":"a","step":1.5,"at":1,"values":{"x":1}}',
    b'{"kind":"points","attempt":1,"phase":"a","step":1,"at":1,"values":{"x":"abc"}}',
    b'{"kind":"points","attempt":1,"phase":"a","step":1,"at":1,"values":{"x":true}}',
    b'{"kind":"points","attempt":1,"phase":"a","step":1,"at":1,"values":{"x":[]}}',
    b'{"kind":"points","attempt":1,"phase":"a","step":1,"at":1,"values":[1]}',
    b'{"kind":"points","attempt":1,"phase":"a","step":1,"at":1,"values":{"":1}}',
    b'{"kind":"points","attempt":1,"phase":"a","step":1,"at":1,"values":{"\\ud800":1}}',
    b'{"kind":"points","attempt":1,"phase":"' + b"p" * 400 + b'","step":1,"at":1,"values":{"x":1}}',
    b'{"kind":"points","attempt":1,"phase":"a","step":1,"at":"now","values":{"x":1}}',
    b'{"kind":"points","attempt":1,"phase":"a","step":1,"at":1,"values":{"x":1' + b"0" * 400 + b"}}",
    b'{"kind":"layers","attempt":1,"phase":"a","step":1,"at":1,"values":{"x":1}}',
    b'{"kind":"score","attempt":1,"phase":"a","step":1,"at":1,"evaluation":"e","metric":"m","split":"s","score":1}',
    b'{"kind":"examples","attempt":1,"phase":"a","step":1,"at":1,"evaluation":"e","split":"s","rows":{"a":1}}',
    b'{"kind":"examples","attempt":1,"phase":"a","step":1,"at":1,"evaluation":"e","split":"s","rows":[1]}',
    b'{"kind":"checkpoint","attempt":1,"phase":"a","step":1,"at":1,"path":1,"sha256":"","bytes":1}',
    b'{"kind":"event","attempt":1,"phase":"a","step":1,"at":1,"event":"x","data":[]}',
    b'{"kind":["points"],"attempt":1,"phase":"a","step":1,"at":1}',
]


def test_hostile_lines_are_counted_and_skipped(store: Store) -> None:
    folder = record(store.home, spec())
    good = folder.journal_path.read_bytes().splitlines()
    mixed = [line for pair in zip(HOSTILE, good, strict=False) for line in pair] + good[len(HOSTILE) :]
    mixed += HOSTILE[len(good) :]
    folder.journal_path.write_bytes(b"\n".join(mixed) + b"\n")
    store.sync(force=True)
    assert count(store, "points") == 40
    assert count(store, "scores") == 6
    found = queries.problems(store)
    assert found["malformed"].iloc[0] == len(HOSTILE) - 1  # an empty line is nothing
    assert len(found) == ingest.PROBLEMS_KEPT
    assert found["problem"].str.len().min() > 3


def test_strange_texts_are_stored(store: Store) -> None:
    folder = record(store.home, spec())
    with Journal(folder) as j:
        rows = [{"id": 7, "prompt": "a\x00b", "answer": "<script>🙂", "expected": None, "score": "NaN", "topic": "t"}]
        j.examples("attack", 5, evaluation="e", split="test", rows=rows)
    store.sync(force=True)
    row = queries.examples(store, folder.run_id, step=5).iloc[0]
    assert (row["id"], row["prompt"], row["answer"], row["more"]) == ("7", "a\x00b", "<script>🙂", '{"topic": "t"}')


def test_a_line_that_is_too_long_does_not_stop_the_rest(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = record(store.home, spec())
    good = folder.journal_path.read_bytes()
    with folder.journal_path.open("ab") as file:
        file.write(b'{"kind":"' + b"x" * (9 << 20) + b'"}\n' + good)
    store.sync(force=True)
    assert count(store, "points") == 80
    assert queries.problems(store)["malformed"].iloc[0] == 2  # the piece of 8 MB, and the rest of it


def test_spoiled_folders_do_not_stop_the_rest(store: Store, tmp_path: Path) -> None:
    good = record(store.home, spec())
    bad_status, bad_tags, bad_spec, linked = (record(store.home, spec()) for _ in range(4))
    (bad_status.path / "status.json").write_text("{")
    (bad_tags.path / "tags.json").write_text('{"tags": [3]}')
    (bad_spec.path / "spec.json").write_bytes(b"\xff\xff")
    linked.journal_path.unlink()
    (tmp_path / "secret").write_text("secret\n")
    linked.journal_path.symlink_to(tmp_path / "secret")
    (store.home / "runs" / "link").symlink_to(tmp_path)
    (store.home / "runs" / "empty").mkdir()
    (store.home / "runs" / "file").touch()
    store.sync(force=True)
    rows = queries.runs(store).set_index("run_id")
    assert set(rows.index) == {good.run_id, bad_status.run_id, bad_tags.run_id, linked.run_id}
    assert rows["status"][bad_status.run_id] == "failed"
    assert "status.json" in rows["error"][bad_status.run_id]
    assert "tags.json" in rows["error"][bad_tags.run_id]
    assert "secret" not in store.frame("SELECT * FROM problems").to_csv()


@pytest.mark.slow
def test_a_held_file_skips_the_tick_and_names_the_holder(
    store: Store, held: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    record(store.home, spec())
    store._home.looked = -sync.EVERY
    waits: list[float] = []
    reading = door.reading
    monkeypatch.setattr(
        door, "reading", lambda path, wait=door.READ_WAIT, **more: waits.append(wait) or reading(path, wait, **more)
    )
    store.sync()
    assert waits
    assert max(waits) <= 0.05
    assert store.trouble == ""
    store._home.looked = store._home.fine = -sync.PATIENCE
    store.sync()
    assert str(held.pid) in store.trouble
    began = time.monotonic()
    with pytest.raises(Busy, match=str(held.pid)):
        queries.runs(store)
    assert waits[-1] == door.READ_WAIT <= time.monotonic() - began
    assert held.stdin
    held.stdin.close()
    held.wait()
    store.sync(force=True)
    assert store.trouble == ""
    assert count(store, "points") == 40


@pytest.mark.slow
def test_a_notebook_of_this_process_that_holds_the_file(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.sync(force=True)
    with duckdb.connect(str(store.path)), pytest.raises(Busy, match="This process"):
        list(queries.runs(store))
    assert queries.runs(store).empty


def test_a_failed_transaction_leaves_nothing_and_is_repeated(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.sync(force=True)
    record(store.home, spec())

    def fail(*_: object) -> None:
        raise RuntimeError("in the middle")

    with monkeypatch.context() as patched:
        patched.setattr(tables, "save_sources", fail)
        with pytest.raises(RuntimeError):
            store.sync(force=True)
    assert count(store, "points") == count(store, "runs") == 0
    store.sync(force=True)
    assert count(store, "points") == 40


def test_a_database_that_was_not_written_whole_does_not_appear(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk DuckDB closes without an error and leaves the tables in its log."""

    def into_the_log(connection: duckdb.DuckDBPyConnection) -> None:
        connection.execute("PRAGMA disable_checkpoint_on_shutdown")
        migrations.first(connection)

    record(store.home, spec())
    with monkeypatch.context() as patched:
        patched.setattr(migrations, "MIGRATIONS", [into_the_log])
        with pytest.raises(UserError, match="disk is full"):
            store.sync(force=True)
    assert not store.path.exists()
    store.sync(force=True)
    assert count(store, "points") == 40


@pytest.mark.slow
def test_threads_of_one_process(store: Store) -> None:
    folder = record(store.home, spec())
    wrong: list[BaseException] = []

    def look() -> None:
        try:
            for _ in range(8):
                with contextlib.suppress(Busy):  # on a busy machine, for those who wait behind the others
                    Store(store.home, store.showcase_folder).sync(force=True)
                    queries.points(store, [folder.run_id], ["loss/total"])
        except BaseException as error:  # noqa: BLE001
            wrong.append(error)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    with Journal(folder) as j:
        for step in range(21, 221):
            j.points("attack", step, {"loss/total": float(step)})
    for thread in threads:
        thread.join()
    assert wrong == []
    store.sync(force=True)
    assert store.frame("SELECT step FROM points WHERE name = 'loss/total' ORDER BY step")["step"].tolist() == list(
        range(1, 221)
    )


SYNCER = """
import sys, time
from immunelab.store import Store, Busy
store = Store(sys.argv[1], sys.argv[2])
while True:
    try:
        store.sync(force=True)
        print("synced", flush=True)
    except Busy:
        pass
    time.sleep(0.01)
"""


def syncer(store: Store) -> subprocess.Popen[str]:
    """A process that syncs all the time, and has done so once."""
    command = [sys.executable, "-c", SYNCER, str(store.home), str(store.showcase_folder)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert child.stdout
    assert child.stdout.readline() == "synced\n"
    return child


@pytest.mark.slow
def test_two_processes_sync_and_are_killed(store: Store) -> None:
    """Two apps on one home, killed at random moments while a run records: every row arrives exactly once."""
    chance = random.Random(0)
    folder = record(store.home, spec())
    step = 20
    children = [syncer(store), syncer(store)]
    try:
        with Journal(folder) as j:
            for _ in range(3):
                end = time.monotonic() + chance.uniform(0.2, 0.4)
                while time.monotonic() < end:
                    step += 1
                    j.points("attack", step, {"loss/total": float(step)})
                    time.sleep(0.001)
                victim = children.pop(0)
                assert victim.poll() is None  # it was syncing until now, and did not fail on its own
                victim.send_signal(signal.SIGKILL)
                victim.wait()
                children.append(syncer(store))
            assert [child.poll() for child in children] == [None, None]
    finally:
        for child in children:
            child.kill()
            child.wait()
    assert count(store, "points") > 40  # theirs: this process has not synced yet
    store.sync(force=True)
    stored = store.frame("SELECT step FROM points WHERE name = 'loss/total' ORDER BY step")["step"].tolist()
    assert stored == list(range(1, step + 1))


def test_an_older_schema_is_copied_and_migrated(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    record(store.home, spec())
    store.sync(force=True)

    def second(connection: duckdb.DuckDBPyConnection) -> None:
        connection.execute("ALTER TABLE runs ADD COLUMN mood VARCHAR DEFAULT 'calm'")

    monkeypatch.setattr(migrations, "MIGRATIONS", [*migrations.MIGRATIONS, second])
    monkeypatch.setattr(sync, "_homes", {})
    later = Store(store.home, store.showcase_folder)
    assert later.frame("SELECT mood FROM runs")["mood"].tolist() == ["calm"]
    assert later.frame("SELECT name FROM schema_versions ORDER BY number")["name"].tolist() == [
        "first",
        "variants",
        "second",
    ]
    with duckdb.connect(str(store.home / "immunelab.schema-2.backup.duckdb"), read_only=True) as backup:
        assert backup.execute("SELECT count(*) FROM points").fetchone() == (40,)


def test_a_failed_migration_changes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    record(store.home, spec())
    store.sync(force=True)

    def second(connection: duckdb.DuckDBPyConnection) -> None:
        connection.execute("DROP TABLE points")
        raise RuntimeError("in the middle")

    with monkeypatch.context() as patched:
        patched.setattr(migrations, "MIGRATIONS", [*migrations.MIGRATIONS, second])
        patched.setattr(sync, "_homes", {})
        with pytest.raises(RuntimeError):
            Store(store.home, store.showcase_folder).sync(force=True)
    assert count(store, "points") == 40


def test_a_newer_schema_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.sync(force=True)
    with duckdb.connect(str(store.path)) as connection:
        connection.execute("INSERT INTO schema_versions VALUES (7, 'later', 0)")
    monkeypatch.setattr(sync, "_homes", {})
    later = Store(store.home, store.showcase_folder)
    for look in (lambda: later.sync(force=True), lambda: queries.runs(later)):
        with pytest.raises(UserError, match="newer ImmuneLab"):
            look()


def test_rebuild_gives_the_same_rows(store: Store) -> None:
    folder = record(store.home, spec())
    with Journal(folder, 2) as j:
        j.event("resumed", from_step=10)
        j.points("attack", 11, {"loss/total": -1.0})
    store.sync(force=True)
    kept = [t for t in tables.PER_RUN if t != "sources"]
    before = {t: store.frame(f"SELECT * FROM {t} ORDER BY ALL").to_csv() for t in kept}
    with duckdb.connect(str(store.path)) as connection:
        connection.execute("DELETE FROM points")
    store.rebuild()
    assert {t: store.frame(f"SELECT * FROM {t} ORDER BY ALL").to_csv() for t in kept} == before


def test_a_spoiled_database_is_a_sentence_and_can_be_rebuilt(store: Store) -> None:
    record(store.home, spec())
    store.path.write_bytes(b"not a database" * 1000)
    store.sync()  # a page goes on as long as it can read
    assert "store rebuild" in store.trouble
    for look in (lambda: store.sync(force=True), lambda: queries.runs(store)):
        with pytest.raises(UserError, match="store rebuild"):
            look()
    store.rebuild()
    assert count(store, "points") == 40


def test_a_deleted_database_is_made_again(store: Store) -> None:
    record(store.home, spec())
    store.sync(force=True)
    store.path.unlink()
    assert len(queries.runs(store)) == 1


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root may write everywhere")
def test_a_home_that_cannot_be_written_is_a_sentence(store: Store) -> None:
    store.home.mkdir()
    store.home.chmod(0o500)
    with pytest.raises(UserError, match="IMMUNELAB_HOME"):
        store.sync(force=True)


def test_a_home_below_a_file_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="IMMUNELAB_HOME"):
        Store(tmp_path / "file" / "home", tmp_path).sync(force=True)


@pytest.mark.parametrize(
    "sql",
    [
        "DROP TABLE runs",
        "INSERT INTO runs (run_id) VALUES ('x')",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "COPY runs TO '/tmp/immunelab-test.csv'",
        "ATTACH '/tmp/immunelab-test.duckdb'",
        "INSTALL httpfs",
        "SET enable_external_access = true",
        "SELECT * FROM secret_frame",
        "SELEC",
        "SELECT * FROM nowhere",
        "SELECT 1; DROP TABLE runs",
        "EXPORT DATABASE '/tmp/immunelab-test'",
        "CALL pragma_version(1)",
    ],
)
def test_a_users_sql_only_reads_this_database(store: Store, sql: str) -> None:
    import pandas as pd

    secret_frame = pd.DataFrame({"a": [1]})  # noqa: F841 - SQL must not see it
    with pytest.raises(UserError):
        store.query(sql)
    assert not Path("/tmp/immunelab-test.csv").exists()


def test_a_users_sql(store: Store) -> None:
    record(store.home, spec())
    store.sync()
    assert store.query("SELECT count(*) AS n FROM points")["n"].tolist() == [40]
    with pytest.raises(UserError, match=r"more than 0\.1 s"):
        store.query("SELECT count(*) FROM range(10000000) a, range(10000000) b", seconds=0.1)
    assert store.query("SELECT 1 AS one")["one"].tolist() == [1]


def test_the_file_has_a_format_that_older_versions_read(store: Store) -> None:
    store.sync()
    tags = store.frame("SELECT tags['storage_version'] AS v FROM duckdb_databases() WHERE NOT internal")
    assert "v1.5" in tags["v"][0]


def test_a_look_at_a_thousand_runs_is_cheap(store: Store) -> None:
    for i in range(1000):
        (store.home / "runs" / f"run-{i:04d}").mkdir(parents=True)
    seconds = []
    for _ in range(3):
        began = time.process_time()  # what other programs do meanwhile is not counted
        assert len(folders.scan(store.home)) == 1000
        seconds.append(time.process_time() - began)
    assert min(seconds) < 0.5  # it is 10 ms; a look at each run's files would be more than this


@pytest.mark.slow
def test_imports_nothing_heavy() -> None:
    code = "import sys, immunelab.store, immunelab.jobs; print([m for m in ('torch', 'streamlit') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout == "[]\n"
