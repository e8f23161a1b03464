"""How rows get into the tables and out of them. Every function works inside its caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import duckdb
import pyarrow as pa

RECORDED = ("points", "layer_points", "scores", "examples", "checkpoints", "events", "problems", "restarts")
PER_RUN = (*RECORDED, "sources", "runs")


class Source(NamedTuple):
    """How far a run folder has been read."""

    position: int  # bytes of the journal whose rows are stored
    size: int  # bytes it had at the last look: more than `position` while its last line is unfinished
    signature: int


def sources(connection: duckdb.DuckDBPyConnection, run_ids: list[str] | None = None) -> dict[str, Source]:
    """How far each run has been read; only the given ones, or all."""
    where, params = ("", []) if run_ids is None else (" WHERE list_contains(?, run_id)", [run_ids])
    found = connection.execute("SELECT run_id, position, size, signature FROM sources" + where, params).fetchall()
    return {run_id: Source(*rest) for run_id, *rest in found}


def showcase_version(connection: duckdb.DuckDBPyConnection) -> str:
    """The version of the shipped runs that are stored; empty if there are none."""
    found = connection.execute("SELECT version FROM showcases").fetchone()
    return str(found[0]) if found else ""


def save_sources(connection: duckdb.DuckDBPyConnection, now: dict[str, Source], malformed: dict[str, int]) -> None:
    """Record how far runs have been read, and how many more lines of each were malformed."""
    if not now:
        return
    cells = [[*now], *(list(column) for column in zip(*now.values(), strict=True)), [malformed.get(r, 0) for r in now]]
    batch = pa.table(cells, names=["run_id", "position", "size", "signature", "malformed"])
    connection.register("batch", batch)
    connection.execute(
        """CREATE OR REPLACE TEMP TABLE fresh AS SELECT b.run_id, b.position, b.size, b.signature,
           b.malformed + coalesce(s.malformed, 0) AS malformed FROM batch b LEFT JOIN sources s USING (run_id)"""
    )
    connection.unregister("batch")
    delete(connection, list(now), ("sources",))
    connection.execute("INSERT INTO sources BY NAME SELECT * FROM fresh")


def insert(connection: duckdb.DuckDBPyConnection, table: str, batch: pa.Table) -> None:
    """Add rows; a restart only if an earlier or equal first step is not known yet."""
    connection.register("batch", batch)
    new = ""
    if table == "restarts":
        new = (
            " b WHERE NOT EXISTS (SELECT 1 FROM restarts r WHERE r.run_id = b.run_id AND r.attempt = b.attempt"
            " AND r.phase = b.phase AND r.kind = b.kind AND r.first_step <= b.first_step)"
        )
    connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM batch{new}")
    connection.unregister("batch")


def delete(connection: duckdb.DuckDBPyConnection, run_ids: list[str], tables: Sequence[str]) -> None:
    """Remove what these runs of the home have in the tables; shipped runs are never touched."""
    for table in tables if run_ids else ():
        own = " AND NOT showcase" if table == "runs" else ""
        connection.execute(f"DELETE FROM {table} WHERE list_contains(?, run_id){own}", [run_ids])
