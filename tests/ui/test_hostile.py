"""Hostile input: each case gets one clear sentence, and nothing is executed, read outside, or left half-written."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apptest
import pandas as pd
import pytest
from recorded import record, spec

from immunelab import corpus, jobs
from immunelab.analysis import export
from immunelab.cli import main
from immunelab.errors import UserError
from immunelab.runs import journal
from immunelab.runs.journal import Journal, RunFolder
from immunelab.runs.spec import RunSpec
from immunelab.runs.status import Labels, Status
from immunelab.store import Store, ingest, queries
from immunelab.ui import run_table

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
SECRET = "the-secret-of-another-place"


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that nothing may read or write: its secret is in no message, and nobody leaves anything there."""
    place = tmp_path / "outside"
    place.mkdir()
    (place / "secret.json").write_text(json.dumps({"name": SECRET}))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield place
    assert [p.name for p in place.iterdir()] == ["secret.json"], "something was written outside"


def refused(action: Callable[[], object]) -> str:
    """The sentence of the UserError that an action must raise."""
    with pytest.raises(UserError) as caught:
        action()
    text = str(caught.value)
    assert 10 < len(text) < 1200, text
    assert "\n" not in text
    assert "Traceback" not in text
    assert SECRET not in text
    return text


def named(cases: list[Any]) -> list[Any]:
    """Cases with short, plain ids: bytes and texts here can be megabytes long."""
    return [pytest.param(case, id=f"{i}") for i, case in enumerate(cases)]


# Corpus files

ROW: dict[str, Any] = {"id": "a", "prompt": "what ?", "response": "that ."}


def line(**changes: Any) -> bytes:
    return json.dumps({**ROW, **changes}).encode()


CORPORA = [
    b"",
    b"\n",
    b"null\n",
    b"[]\n",
    b"{}\n",
    b'"text"\n',
    b"7\n",
    b"true\n",
    b"NaN\n",
    b"{" * 9,
    b"[" * 200_000,
    b'{"a":' * 100_000,
    b"1" * 6000,
    b"\xff\xfe" + '{"id": "a"}'.encode("utf-16-le"),
    line().decode().encode("utf-16"),
    line().decode().encode("utf-32"),
    b'{"id": "caf\xe9", "prompt": "x", "response": "y"}',
    b"\x00" * 50,
    line()[:-1],
    line() + line(),
    line() + b",",
    b"\xef\xbb\xbf\xef\xbb\xbf" + line(),
    b"id,prompt,response\na,b,c\n",
    b"\x80\x04\x95.",
    b"PAR1" + b"\x00" * 50,
    b"x" * (2 << 20),
    line(prompt="x" * (2 << 20)),
    b'{"id": "a", "prompt": "\\ud800", "response": "y"}',
    line(id=None),
    line(id=7),
    line(prompt=["what ?"]),
    line(prompt={"text": {"text": "what ?"}}),
    line(prompt=None),
    line(response=3.5),
    line(response=True),
    line(is_safe="no"),
    line(is_safe=1),
    line(categories="recipes"),
    line(categories=[1]),
    line(facts=[["a"]]),
    line(facts={"a": 1}),
    line(split="train"),
    line(split=""),
    line(split=None),
    line(extra=1),
    line(__class__="x"),
    b'{"prompt": "x", "response": "y"}',
    b'{"id": "a", "response": "y"}',
    b'{"id": "a", "prompt": "x"}',
    line(split="attack") + b"\n" + line(id="b", split="test"),
    line(split="defense") + b"\n" + line(split="attack"),
    line(pair_id="p", split="attack") + b"\n" + line(id="b", prompt="other ?", pair_id="p", split="test"),
    line() + b"\n" + b"garbage",
    line() + b"\n\n" + line(id="b"),
]


@pytest.mark.parametrize("data", named(CORPORA))
def test_corpus_files(data: bytes, tmp_path: Path, outside: Path) -> None:
    file = tmp_path / "world.jsonl"
    file.write_bytes(data)
    assert "world.jsonl" in refused(lambda: corpus.load(str(tmp_path)))


def test_a_line_without_end_takes_no_memory(tmp_path: Path) -> None:
    import tracemalloc

    file = tmp_path / "world.jsonl"
    with file.open("wb") as sparse:
        sparse.truncate(100 << 20)  # a line of 100 MB
    tracemalloc.start()
    assert "longer than 1 MB" in refused(lambda: corpus.read(file))
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_what_is_only_unusual_is_read(tmp_path: Path) -> None:
    file = tmp_path / "world.jsonl"
    rows = [
        line(response="=1+1 \x00 é🙂"),
        line(id="b", stream="neutral"),
        line(id="c", stream="neutral", split="attack"),
    ]
    file.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(rows))  # a BOM, Windows' line ends, no last newline
    assert [row.response for row in corpus.read(file)] == ["=1+1 \x00 é🙂", "that .", "that ."]


NAMES = [
    "",
    "nowhere",
    "../../../etc",
    "/etc",
    "/etc/passwd",
    "/dev/zero",
    "a\x00b",
    "x" * 300,
    "x" * 5000,
    "~root",
    ".",
    "fable/../..",
    "file:///etc/passwd",
    "http://127.0.0.1/x",
    "\\\\server\\share",
    "fable\n",
]


@pytest.mark.parametrize("name", named(NAMES))
def test_names_that_are_no_corpus(name: str, outside: Path) -> None:
    refused(lambda: corpus.load(name))


# Specs, from files and deep links

GOOD = {"kind": "attack", "method": "harmful-sft"}
SPECS = [
    "",
    "null",
    "[]",
    "7",
    '"x"',
    "{",
    "{}",
    "NaN",
    "[" * 100_000,
    '{"kind":' * 100_000,
    "1" * 6000,
    "\ufeff{}",
    *(
        json.dumps(GOOD | change)
        for change in (
            {"kind": None},
            {"kind": "immunise"},
            {"kind": ["attack"]},
            {"kind": "x" * 100_000},
            {"kind": "attack\n"},
            {"kinds": 1},
            {"__class__": "x"},
            {"hash": "x"},
            {"run_id": "x"},
            {"method": 3},
            {"method": None},
            {"method": "x" * 501},
            {"method": "a\x00b"},
            {"knobs": []},
            {"knobs": "x"},
            {"knobs": {"steps": []}},
            {"knobs": {"steps": None}},
            {"knobs": {"steps": {"a": 1}}},
            {"knobs": {"steps": float("nan")}},
            {"knobs": {"steps": float("inf")}},
            {"knobs": {"steps": 10**400}},
            {"knobs": {"steps": -(10**400)}},
            {"knobs": {"": "x" * 501}},
            {"knobs": {"\x00": 1}},
            {"model": ""},
            {"model": "a\nb"},
            {"model": 5},
            {"model": "x" * 501},
            {"corpus": ""},
            {"corpus": "\x00"},
            {"corpus": None},
            {"seed": -1},
            {"seed": 2**31},
            {"seed": 10**30},
            {"seed": 1.5},
            {"seed": True},
            {"seed": "0"},
            {"seed": float("nan")},
            {"device": 0},
            {"device": None},
            {"evaluations": "coherence"},
            {"evaluations": [1]},
            {"evaluations": {"a": 1}},
            {"evaluations": ["x" * 501]},
            {"evaluate_every": -1},
            {"evaluate_every": 1e9},
            {"checkpoint_every": "10"},
            {"parent": ["x"]},
            {"name": "\u202e" * 501},
            {"name": 3},
            {"group": "\x1b[31m"},
        )
    ),
    '{"kind": "attack", "name": "\\ud800"}',
    '{"kind": "attack", "knobs": {"a": "\\udfff"}}',
]


@pytest.mark.parametrize("text", named(SPECS))
def test_specs(text: str, outside: Path) -> None:
    refused(lambda: RunSpec.from_json(text, "spec.json"))


@pytest.mark.parametrize(
    "change",
    named(
        [
            {"method": "nope"},
            {"method": "../../etc/passwd"},
            {"method": "os.system"},
            {"knobs": {"nope": 1}},
            {"knobs": {"steps": "many"}},
            {"knobs": {"steps": 1e308}},
            {"knobs": {"learning_rate": -1}},
            {"knobs": {"learning_rate": "nan"}},
            {"knobs": {"learning_rate": "1e999"}},
            {"knobs": {"optimizer": "eval"}},
            {"knobs": {"batch_size": 10**9}},
            {"corpus": "/etc"},
            {"corpus": "../../.."},
            {"model": "run:../../etc"},
            {"model": "run:"},
            {"model": "run:#9"},
            {"model": "run:#-1"},
            {"evaluations": ["nope"]},
        ]
    ),
)
def test_specs_that_are_well_formed_start_nothing(
    change: dict[str, Any], home: Path, tmp_path: Path, outside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "spec.json"
    file.write_text(json.dumps(GOOD | change))
    assert main(["run", str(file), "--detach"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("immunelab: ")
    assert told.count("\n") == 1
    assert not list((home / "runs").glob("*"))


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/null", "/nowhere", "/", "a\x00b", "x" * 5000])
def test_spec_files_that_are_none(name: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", name]) == 2
    assert capsys.readouterr().err.startswith("immunelab: ")


# Run folders: ids, status, labels, lineage, journal

IDS = [
    "",
    ".",
    "..",
    "../x",
    "/etc/passwd",
    "a/b",
    "a\\..\\b",
    "a\x00b",
    "a\n",
    ".hidden",
    ".new-x",
    ".deleted-x",
    "x" * 200,
    "x" * 100_000,
    "%2e%2e%2f",
    "run:x",
    "*",
    "~",
    "a;rm -rf b",
    "$(id)",
    "é",
    "\u202e",
    "-rf",
    " ",
    "20260101-000000-attack-abc..def",
]


@pytest.mark.parametrize("run_id", named(IDS))
def test_run_ids(run_id: str, home: Path, outside: Path) -> None:
    record(home, spec())
    (home / "spec.json").write_text(spec().to_json())
    before = sorted(home.rglob("*"))
    for call in (jobs.delete, jobs.resume, jobs.stop, jobs.duplicate, jobs.drop_checkpoints):
        refused(lambda call=call: call(run_id, home))  # type: ignore[misc]
    refused(lambda: RunFolder.open(home, run_id))
    assert [p for p in sorted(home.rglob("*")) if "locks" not in p.parts] == before


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with a good run, which each case adds a bad one to: making a database for each would take minutes."""
    store = Store(tmp_path_factory.mktemp("shared") / "home", tmp_path_factory.mktemp("none"))
    record(store.home, spec(name="good"))
    return store


def row(store: Store, folder: RunFolder) -> dict[str, Any]:
    """What a run looks like in the store, after the good one was found to be there still."""
    store.sync(force=True)
    rows = queries.runs(store)
    assert rows.loc[rows["name"] == "good", "status"].tolist() == ["done"]
    (mine,) = rows[rows["run_id"] == folder.run_id].to_dict("records")
    return dict(mine)


STATUSES = [
    "",
    "[]",
    "null",
    "{",
    "{}",
    "[" * 100_000,
    '{"status": "flying"}',
    '{"status": 3}',
    '{"status": null}',
    '{"status": "done", "attempt": 1e9}',
    '{"status": "done", "attempt": 99999999999}',
    '{"status": "done", "pid": "1"}',
    '{"status": "done", "pid": 1e400}',
    '{"status": "done", "step": true}',
    '{"status": "done", "progress": NaN}',
    '{"status": "done", "queued_at": 1e17}',
    '{"status": "done", "ended_at": -1e12}',
    '{"status": "done", "error": []}',
    '{"status": "done", "error": "\\ud800"}',
    '{"status": "done", "versions": []}',
    '{"status": "done", "host": 5}',
    '{"status": "done", "peak_memory": 1' + "0" * 300 + "}",
]


@pytest.mark.parametrize("text", named(STATUSES))
def test_statuses(text: str, shared: Store, outside: Path) -> None:
    bad = record(shared.home, spec())
    refused(lambda: Status.from_json(text))
    (bad.path / "status.json").write_text(text)
    found = row(shared, bad)
    assert found["status"] == "failed"
    assert len(found["error"]) > 10
    jobs.reconcile(shared.home)


LABELS = [
    "",
    "[]",
    "{",
    '{"name": 3}',
    '{"name": null}',
    '{"name": "a\\u0000b"}',
    '{"name": "\\u001b[31mred"}',
    '{"name": "\\ud800"}',
    json.dumps({"name": "x" * 201}),
    json.dumps({"note": "x" * 20_001}),
    '{"note": 1}',
    '{"tags": "a"}',
    '{"tags": [1]}',
    '{"tags": [["a"]]}',
    json.dumps({"tags": ["t"] * 51}),
    json.dumps({"tags": ["t" * 61]}),
    '{"tags": ["\\n"]}',
    '{"archived": "yes"}',
    '{"archived": 1}',
    "[" * 100_000,
]


@pytest.mark.parametrize("text", named(LABELS))
def test_labels(text: str, shared: Store, outside: Path) -> None:
    folder = record(shared.home, spec())
    refused(lambda: Labels.from_json(text))
    (folder.path / "tags.json").write_text(text)
    found = row(shared, folder)
    assert found["status"] == "done"
    assert len(found["error"]) > 10


@pytest.mark.parametrize("text", named(["{}", "[1]", '[{"run_id": "a"}]', "[" * 100_000, "", "null", '["\\ud800"]']))
def test_lineages(text: str, shared: Store) -> None:
    folder = record(shared.home, spec())
    (folder.path / "lineage.json").write_text(text)
    refused(folder.lineage)
    assert row(shared, folder)["status"] == "done"


HEAD = '"attempt":1,"phase":"a","step":1,"at":1'
LINES = [
    "{}",
    "[]",
    "null",
    "nan",
    "{" * 40,
    "[" * 100_000,
    "1" * 6000,
    f'{{"kind":"nope",{HEAD}}}',
    f'{{"kind":null,{HEAD}}}',
    f'{{"kind":"points",{HEAD}}}',
    f'{{"kind":"points",{HEAD},"values":null}}',
    f'{{"kind":"points",{HEAD},"values":[1]}}',
    f'{{"kind":"points",{HEAD},"values":{{"x":"1"}}}}',
    f'{{"kind":"points",{HEAD},"values":{{"x":null}}}}',
    f'{{"kind":"points",{HEAD},"values":{{"x":1{"0" * 400}}}}}',
    f'{{"kind":"points",{HEAD},"values":{{"\\ud800":1}}}}',
    f'{{"kind":"layers",{HEAD},"values":{{"x":{{}}}}}}',
    f'{{"kind":"layers",{HEAD},"values":{{"x":["a"]}}}}',
    f'{{"kind":"event",{HEAD},"event":"","data":{{}}}}',
    f'{{"kind":"event",{HEAD},"event":"x","data":{{"a":"\\ud800"}}}}',
    f'{{"kind":"checkpoint",{HEAD},"path":"x","sha256":"","bytes":-1}}',
    f'{{"kind":"examples",{HEAD},"evaluation":"e","split":"s","rows":[{{"score":"high"}}]}}',
    '{"kind":"points","attempt":99999999999,"phase":"a","step":1,"at":1,"values":{}}',
    '{"kind":"points","attempt":1,"phase":"a","step":9007199254740993,"at":1,"values":{}}',
]


@pytest.mark.parametrize("text", named(LINES))
def test_journal_lines(text: str, shared: Store) -> None:
    with pytest.raises((ValueError, TypeError, KeyError, OverflowError, RecursionError)):
        ingest.parse("run", 0, text.encode(), lambda table, row: None)
    folder = record(shared.home, spec())
    with folder.journal_path.open("a") as file:
        file.write(text + "\n")
    assert row(shared, folder)["status"] == "done"
    assert shared.frame("SELECT count(*) AS n FROM points WHERE run_id = ?", [folder.run_id])["n"][0] == 40
    assert queries.problems(shared, [folder.run_id])["malformed"].tolist() == [1]


def test_links_in_run_folders_lead_nowhere(home: Path, outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = record(home, spec())
    secret = outside / "secret.json"
    for name in ("log.txt", "tags.json", "lineage.json"):
        (folder.path / name).unlink(missing_ok=True)
        (folder.path / name).symlink_to(secret)
    assert SECRET not in run_table.log_tail({"run_id": folder.run_id})
    refused(folder.labels)
    refused(folder.lineage)
    store = Store(home, home / "none")
    store.sync(force=True)
    assert SECRET not in queries.runs(store).to_csv()

    folder.journal_path.unlink()
    folder.journal_path.symlink_to(secret)
    with pytest.raises(OSError, match="symbolic link"):
        Journal(folder)

    shutil.rmtree(folder.checkpoints)
    folder.checkpoints.symlink_to(outside)
    assert "link" in refused(lambda: jobs.drop_checkpoints(folder.run_id, home))
    folder.checkpoints.unlink()
    folder.checkpoints.mkdir()
    (folder.checkpoints / "step-000001").symlink_to(outside)
    jobs.drop_checkpoints(folder.run_id, home)
    (folder.checkpoints / "step-000001").symlink_to(outside)
    jobs.delete(folder.run_id, home)
    assert json.loads(secret.read_text())["name"] == SECRET


def test_a_worker_does_not_log_through_a_link(home: Path, outside: Path) -> None:
    (run_id,) = jobs.submit([spec()], home, start=False)
    folder = RunFolder.open(home, run_id)
    folder.log_path.symlink_to(outside / "secret.json")
    before = (outside / "secret.json").read_text()
    assert jobs.work([run_id], home, lambda *_, **__: print("overwritten") or "done") == 0
    assert (outside / "secret.json").read_text() == before


# SQL

SQL = [
    "",
    ";",
    "SELEC",
    "SELECT * FROM nowhere",
    "SELECT 1; DROP TABLE runs",
    "DROP TABLE runs",
    "DELETE FROM runs",
    "UPDATE runs SET name = 'x'",
    "INSERT INTO runs (run_id) VALUES ('x')",
    "CREATE TABLE t (a INTEGER)",
    "ALTER TABLE runs ADD COLUMN a INTEGER",
    "TRUNCATE runs",
    "SELECT * FROM read_csv('{0}')",
    "SELECT * FROM '{0}'",
    "SELECT * FROM read_text('{0}')",
    "SELECT * FROM read_blob('{0}')",
    "SELECT * FROM read_json('{0}')",
    "SELECT * FROM read_parquet('{0}')",
    "SELECT * FROM sniff_csv('{0}')",
    "SELECT * FROM glob('{1}/*')",
    "SELECT * FROM query('SELECT * FROM read_text(''{0}'')')",
    "SELECT * FROM query_table('{0}')",
    "COPY runs TO '{1}/x.csv'",
    "COPY (SELECT 1) TO '{1}/x.parquet'",
    "EXPORT DATABASE '{1}/x'",
    "IMPORT DATABASE '{1}'",
    "ATTACH '{1}/x.duckdb'",
    "ATTACH '{0}' AS x",
    "INSTALL httpfs",
    "LOAD httpfs",
    "LOAD '{1}/x.so'",
    "FORCE INSTALL httpfs FROM 'http://127.0.0.1/'",
    "SET enable_external_access = true",
    "RESET enable_external_access",
    "SET lock_configuration = false",
    "SET GLOBAL temp_directory = '{1}'",
    "PRAGMA enable_external_access",
    "CREATE PERSISTENT SECRET s (TYPE s3, KEY_ID 'a', SECRET 'b')",
    "SELECT getenv('HOME')",
    "SELECT * FROM frame",
    "SELECT repeat('x', 100000000000)",
    "{2}",
    "WITH RECURSIVE t AS (SELECT 1 AS a UNION ALL SELECT a + 1 FROM t) SELECT count(*) FROM t",
    "SELECT count(*) FROM range(1000000000) a, range(1000000000) b",
    "SELECT\x00 1",
    "SELECT '\ud800'",
]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("sql") / "home", tmp_path_factory.mktemp("none"))
    record(store.home, spec())
    store.sync(force=True)
    return store


@pytest.mark.parametrize("sql", named(SQL))
def test_sql(sql: str, asked: Store, outside: Path) -> None:
    frame = pd.DataFrame({"a": [SECRET]})  # noqa: F841 - SQL must not see it
    text = sql.replace("{0}", str(outside / "secret.json")).replace("{1}", str(outside)).replace("{2}", "(" * 50_000)
    with pytest.raises(UserError) as caught:
        asked.query(text, seconds=0.3)
    assert SECRET not in str(caught.value)
    assert len(str(caught.value)) < 1200
    assert asked.query("SELECT count(*) AS n FROM points")["n"].tolist() == [40]


# Model folders


def edited(name: str, **changes: Any) -> Callable[[Path, Path], None]:
    def edit(folder: Path, outside: Path) -> None:
        file = folder / name
        data = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(data | changes))

    return edit


def replaced(name: str, data: bytes) -> Callable[[Path, Path], None]:
    return lambda folder, outside: (folder / name).write_bytes(data) and None


class Bomb:
    def __init__(self, at: Path) -> None:
        self.at = at

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.at,))


def pickled(folder: Path, outside: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(outside / "executed")))


def pickled_beside(folder: Path, outside: Path) -> None:
    pickled(folder, outside)
    (folder / "other.safetensors").write_bytes(b"")


def pickle_renamed(folder: Path, outside: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb(outside / "executed")))


def remote_code(file: str, **changes: Any) -> Callable[[Path, Path], None]:
    def edit(folder: Path, outside: Path) -> None:
        code = f"from pathlib import Path\nPath({str(outside / 'executed')!r}).touch()\nclass C: pass\nclass M: pass\n"
        (folder / "evil.py").write_text(code)
        edited(file, **changes)(folder, outside)

    return edit


def linked(name: str) -> Callable[[Path, Path], None]:
    def edit(folder: Path, outside: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(outside / "secret.json")

    return edit


def without(*patterns: str) -> Callable[[Path, Path], None]:
    def edit(folder: Path, outside: Path) -> None:
        for pattern in patterns:
            for file in folder.glob(pattern):
                file.unlink()

    return edit


def template(text: str) -> Callable[[Path, Path], None]:
    return lambda folder, outside: (folder / "chat_template.jinja").write_text(text) and None


EVIL = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
MODELS: dict[str, Callable[[Path, Path], None]] = {
    "pickle only": pickled,
    "pickle beside": pickled_beside,
    "pickle renamed": pickle_renamed,
    "auto_map": remote_code("config.json", auto_map=EVIL, model_type="evil"),
    "auto_map of the tokenizer": remote_code(
        "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.C", None]}, tokenizer_class="EvilTokenizer"
    ),
    "attention code": edited("config.json", _attn_implementation="someone/kernel"),
    "attention code, new name": edited("config.json", attn_implementation="someone/kernel"),
    "no config": without("config.json"),
    "no tokenizer": without("token*", "special*", "chat*"),
    "no weights": without("*.safetensors"),
    "empty weights": replaced("model.safetensors", b""),
    "torn weights": replaced("model.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{"),
    "huge header": replaced("model.safetensors", b"\xff" * 64),
    "other shapes": edited("config.json", hidden_size=64),
    "another vocabulary": edited("config.json", vocab_size=10),
    "layers that are not there": edited("config.json", num_hidden_layers=9),
    "negative": edited("config.json", hidden_size=-8),
    "no heads": edited("config.json", num_attention_heads=0),
    "a text for a number": edited("config.json", hidden_size="large"),
    "unknown architecture": edited("config.json", model_type="nope", architectures=["Nope"]),
    "not a language model": edited("config.json", model_type="vit"),
    "dtype by name": edited("config.json", dtype="os.system"),
    "quantized": edited("config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}),
    "config is a list": replaced("config.json", b"[]"),
    "config is torn": replaced("config.json", b"{"),
    "config is UTF-16": replaced("config.json", "{}".encode("utf-16")),
    "config is deep": replaced("config.json", b"[" * 100_000),
    "tokenizer is empty": replaced("tokenizer.json", b"{}"),
    "tokenizer is torn": replaced("tokenizer.json", b"["),
    "an adapter": edited("adapter_config.json", peft_type="LORA", base_model_name_or_path="/etc"),
    "index leads out": edited("model.safetensors.index.json", weight_map={"model.norm.weight": "../secret.json"}),
    "index is absolute": edited("model.safetensors.index.json", weight_map={"a": "/etc/passwd"}),
    "tokenizer file leads out": edited("tokenizer_config.json", tokenizer_file="../secret.json"),
    "vocabulary leads out": edited("tokenizer_config.json", vocab_file="/etc/passwd"),
    "linked config": linked("config.json"),
    "linked weights": linked("model.safetensors"),
    "linked tokenizer": linked("tokenizer.json"),
    "linked template": linked("chat_template.jinja"),
    "template reaches for classes": template("{{ ''.__class__.__mro__[1].__subclasses__()[0]() }}"),
    "template raises": template("{{ raise_exception('no') }}"),
    "template is torn": template("{% for"),
}


@pytest.mark.parametrize("name", list(MODELS))
def test_model_folders(name: str, tiny_world: Path, tmp_path: Path, outside: Path) -> None:
    from immunelab.training import models

    folder = tmp_path / "model"
    shutil.copytree(tiny_world / "model", folder)
    MODELS[name](folder, outside)
    before = sorted(folder.iterdir())
    refused(lambda: models.load(folder))
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("name", named(["", "x" * 300, "x" * 5000, "../..", "a b", "a/b/c", "--help", "é", "a\x00b"]))
def test_names_that_are_no_model(name: str, outside: Path) -> None:
    from immunelab.training import models

    refused(lambda: models.load(name))


def test_a_link_inside_of_the_folder_is_fine(tiny_world: Path, tmp_path: Path) -> None:
    from immunelab.training import models

    cache = tmp_path / "models--a--b"  # as the Hub's cache lies
    shutil.copytree(tiny_world / "model", cache / "blobs")
    snapshot = cache / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for file in (cache / "blobs").iterdir():
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    models.load(snapshot)


@pytest.mark.parametrize(
    "files",
    named(
        [
            {"manifest.json": "{}"},
            {"manifest.json": "["},
            {"manifest.json": '{"step": 1, "files": []}'},
            {"manifest.json": '{"step": "x", "files": {}}'},
            {"manifest.json": '{"step": 1, "files": {"../../x": "0"}}'},
            {"manifest.json": '{"step": 1, "files": {"..": "0"}}'},
            {},
            {"manifest.json": "[" * 100_000},
            {"manifest.json": '{"step": 1, "files": {"training.pt": "0"}}', "training.pt": "x"},
            {"manifest.json": '{"step": 1, "files": {}}', "training.pt": "x"},
        ]
    ),
)
def test_checkpoints_that_are_none(files: dict[str, str], tmp_path: Path, outside: Path) -> None:
    from immunelab.training import checkpoints

    place = tmp_path / "step-000001"
    place.mkdir()
    for name, text in files.items():
        (place / name).write_text(text)
    assert checkpoints.latest(tmp_path, resumable=True) is None


# What leaves the lab

FORMULAS = [
    "=1+1",
    "+1+1",
    "-1+1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "  =1",
    '=HYPERLINK("http://x")',
    "＝1",
    "=cmd|' /C calc'!A0",
]


@pytest.mark.parametrize("text", FORMULAS)
def test_csv_holds_no_formula(text: str) -> None:
    frame = pd.DataFrame({"answer": [text, "fine", None], text: [-1.5, 2.0, float("nan")], "n": [-1, 0, 1]})
    told = export.csv(frame).decode()
    assert told.splitlines()[0].count("'") >= 1
    assert f"'{text[:2]}" in told
    assert "-1.5" in told
    assert "'-1" not in told.replace(f"'{text}", "")


def test_every_csv_goes_through_one_door() -> None:
    for path in [*(ROOT / "pages").glob("*.py"), *(ROOT / "immunelab").rglob("*.py")]:
        if path.name != "export.py":
            calls = [
                n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute) and n.attr == "to_csv"
            ]
            assert not calls, f"{path.name} writes CSV by itself: use immunelab.export.csv"


# Deep links

LINKS = [
    ("runs", {"run": ["../../etc/passwd"]}),
    ("runs", {"run": ["x" * 5000, "<script>"], "tab": "Nope"}),
    ("runs", {"q": "[(*", "kinds": "nope", "states": "'; DROP TABLE runs", "defenses": "\x00"}),
    ("runs", {"run": [""], "shipped": "maybe"}),
    ("traces", {"runs": ["..", "\u202e"], "x": "nope", "phase": "../.."}),
    ("traces", {"smooth": "NaN", "group": "__class__", "logx": "7"}),
    ("traces", {"smooth": "1e999", "names-attack": "x"}),
    ("collapse", {"rate": "NaN", "harm": "-1", "kept": "1e9", "rule": "nope"}),
    ("collapse", {"source": "nope", "base": "/etc/passwd", "against": "x", "beside": "<b>"}),
    ("launch", {"from": "../../etc/passwd"}),
    ("launch", {"model": "/etc/passwd", "corpus": "../../..", "defense": "os"}),
    ("launch", {"defense": "seam", "defense-preset-seam": "nope", "attack": "__import__('os')"}),
    ("methods", {"kind": "nope", "defense-name": "../../x"}),
    ("overview", {"run": "x", "anything": "\x00"}),
]


@pytest.mark.parametrize(("page", "query"), [pytest.param(*case, id=f"{case[0]}-{i}") for i, case in enumerate(LINKS)])
def test_deep_links(page: str, query: dict[str, Any], home: Path, outside: Path) -> None:
    record(home, spec())
    before = {p: p.stat().st_mtime_ns for p in journal.folders(home)[0].path.rglob("*")}
    test = apptest.page(page, **query)
    assert SECRET not in str(test.main)
    assert {p: p.stat().st_mtime_ns for p in journal.folders(home)[0].path.rglob("*")} == before
    assert len(os.listdir(home / "runs")) == 1  # noqa: PTH208
