"""Recording a showcase: runs out of a store into the Parquet files that ship, under ids of their own."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from immunelab.bundled import ABOUT
from immunelab.errors import UserError, unknown
from immunelab.store.showcase import PREFIX, TABLES
from immunelab.store.sync import Store

PRIVATE = ("pid", "heartbeat")  # what only meant something where the run was made


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
