"""Recorded runs that ship with the project, taken from Parquet files into any store; `record_showcase` writes them.

Shipped runs carry ids of their own (`showcase-…`), so they never collide with the runs they were recorded from. A
folder in the showcase's folder is a further part of it, recorded on its own: of another model.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from immunelab.bundled import ABOUT
from immunelab.errors import UserError

PREFIX = "showcase-"
TABLES = ("runs", "points", "layer_points", "scores", "examples", "checkpoints", "events")
ADDED = ("events",)  # what older showcases lack
PIECE = 200_000  # rows


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
