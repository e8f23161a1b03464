"""Recorded runs that ship with the project: out of a store into Parquet files, and back into any store.

Shipped runs carry ids of their own (`showcase-…`), so they never collide with the runs they were recorded from. A
folder in the showcase's folder is a further part of it, recorded on its own: of another model.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from immunelab import bundled
from immunelab.errors import UserError, unknown

if TYPE_CHECKING:
    from immunelab.store.sync import Store

PREFIX = "showcase-"
TABLES = ("runs", "points", "layer_points", "scores", "examples", "checkpoints", "events")
ADDED = ("events",)  # what older showcases lack
PRIVATE = ("pid", "heartbeat")  # what only meant something where the run was made
ABOUT = "showcase.json"
SETTING = "IMMUNELAB_SHOWCASE"
PIECE = 200_000  # rows


def shipped_folder() -> Path:
    """Where the shipped runs lie, whether or not there are any. `IMMUNELAB_SHOWCASE` names another folder, as
    `immunelab showcase build --to` writes one; with `none` a new home starts empty, and need not read them first.
    """
    asked = os.environ.get(SETTING, "")
    if asked == "none":
        return Path(os.devnull)
    if asked and not (Path(asked) / ABOUT).is_file():
        raise UserError(f"{SETTING} is {asked[:200]!r}: neither none nor a folder with a {ABOUT}.")
    return Path(asked) if asked else bundled.data() / "showcase"


def parts(folder: Path) -> list[Path]:
    """The folders that hold recorded runs: the showcase's own, and those in it."""
    return [about.parent for about in (folder / ABOUT, *sorted(folder.glob(f"*/{ABOUT}"))) if about.is_file()]


def version(folder: Path) -> str:
    """The version of the recorded runs in a folder, all parts of it; empty where there are none."""
    found = []
    for part in parts(folder):
        try:
            found.append(str(json.loads((part / ABOUT).read_text(encoding="utf-8"))["version"]))
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{part / ABOUT} is not what `immunelab showcase build` writes.") from None
    return " ".join(found)


def export(store: Store, run_ids: Sequence[str], folder: Path) -> dict[str, Any]:
    """Write runs and all that they recorded (last attempts) as Parquet, and `showcase.json` about them.

    Checkpoints are listed, their files are not copied. A UserError names a run that is not in the store, or not done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = dict(store.frame("SELECT run_id, status FROM runs").itertuples(index=False, name=None))
    for run_id in run_ids:
        if run_id not in known:
            raise unknown("run", run_id, known)
        if known[run_id] != "done":
            raise UserError(f"The run {run_id} is {known[run_id]}, and a showcase shows finished runs only.")
    digest = hashlib.sha256()
    rows: dict[str, int] = {}
    for table in TABLES:
        batch = _rows(store, table, list(run_ids))
        pq.write_table(batch, folder / f"{table}.parquet", compression="zstd", compression_level=15)
        digest.update((folder / f"{table}.parquet").read_bytes())
        rows[table] = batch.num_rows
    about = {"version": digest.hexdigest()[:16], "made": time.strftime("%Y-%m-%d", time.gmtime()), "rows": rows}
    (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return about


def import_(connection: duckdb.DuckDBPyConnection, folder: Path, version: str) -> None:
    """Put the runs of a folder, all parts of it, in place of any other showcase, in the caller's transaction."""
    for table in TABLES:
        of_showcase = "showcase" if table == "runs" else f"starts_with(run_id, '{PREFIX}')"
        connection.execute(f"DELETE FROM {table} WHERE {of_showcase}")
        for part in parts(folder):
            file = part / f"{table}.parquet"
            if table in ADDED and not file.exists():
                continue
            try:
                source = pq.ParquetFile(file)
            except (OSError, pa.ArrowException) as error:
                raise UserError(f"The showcase file {file} cannot be read: {error!s:.200}") from None
            # In pieces: two million recorded answers in one take twice as long, and the memory.
            connection.register(
                "batch", pa.RecordBatchReader.from_batches(source.schema_arrow, source.iter_batches(PIECE))
            )
            connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM batch")
            connection.unregister("batch")
    connection.execute("DELETE FROM showcases")
    connection.execute("INSERT INTO showcases VALUES (?, ?)", [version, time.time()])


def _rows(store: Store, table: str, run_ids: list[str]) -> pa.Table:
    """A table's rows of some runs, in a fixed order, under the ids that they ship with."""
    # Of events only those ship that say what a run was: that a provider's defense acted.
    sources = {"runs": "runs", "events": "(SELECT * FROM events WHERE event = 'provider')"}
    source = sources.get(table, f"last_{table}")
    everything = store.arrow(f"SELECT * FROM {source} WHERE list_contains(?, run_id) ORDER BY ALL", [run_ids])
    if table != "runs":
        return _replaced(everything, "run_id", [shown(i) for i in everything["run_id"].to_pylist()])
    batch = everything.drop_columns(list(PRIVATE))
    # A run may come from one that is not shipped: all ids that occur are renamed, in texts too.
    ids = {i for name in ("run_id", "parent", "root", "immunized_by") for i in batch[name].to_pylist() if i}
    ids |= {i for chain in batch["ancestors"].to_pylist() for i in chain or ()}
    for name in ("run_id", "parent", "root", "immunized_by", "model", "base_model", "spec"):
        batch = _replaced(batch, name, [_renamed(text, ids) for text in batch[name].to_pylist()])
    chains = [[shown(i) for i in chain or ()] for chain in batch["ancestors"].to_pylist()]
    batch = _replaced(batch, "ancestors", chains)
    for name in ("message", "note"):
        batch = _replaced(batch, name, [""] * batch.num_rows)
    return _replaced(batch, "showcase", [True] * batch.num_rows)


def shown(run_id: str) -> str:
    """The id under which a run ships."""
    return run_id if run_id.startswith(PREFIX) else PREFIX + run_id


def _renamed(text: str | None, ids: set[str]) -> str | None:
    for run_id in ids if text else ():
        if text and run_id in text and shown(run_id) not in text:
            text = text.replace(run_id, shown(run_id))
    return text


def _replaced(batch: pa.Table, name: str, values: list[Any]) -> pa.Table:
    at = batch.schema.get_field_index(name)
    field = batch.schema.field(at)
    return batch.set_column(at, field, pa.array(values, field.type))
