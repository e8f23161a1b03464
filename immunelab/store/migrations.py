"""The schema, as a list of numbered functions. A change is a new function at the end; old ones are never edited.

Tables that grow have no index: a row comes from one journal line, `position` is that line's byte in the file, and the
rows and the new offset are committed together. Measured against primary keys on 4 million points: file 63 instead of
391 MB, a tick of 800 rows 22 instead of 58 ms. Tables with one row a run are kept unique by deleting and inserting in
one transaction, which unlike `INSERT OR REPLACE` leaves no dead rows behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import duckdb

from immunelab.errors import UserError

ROW = "run_id VARCHAR, attempt INTEGER, phase VARCHAR, step BIGINT"  # what every journal line has
STAMP = "unix_time DOUBLE, position BIGINT"


def first(connection: duckdb.DuckDBPyConnection) -> None:
    """Runs, what they recorded, and how far their journals have been read."""
    for statement in (
        """CREATE TABLE runs (
            run_id VARCHAR, showcase BOOLEAN, kind VARCHAR, method VARCHAR,
            status VARCHAR, attempt INTEGER, phase VARCHAR, step BIGINT, total_steps BIGINT, progress DOUBLE,
            eta_seconds DOUBLE, message VARCHAR, error VARCHAR,
            name VARCHAR, tags VARCHAR[], note VARCHAR, archived BOOLEAN, grp VARCHAR,
            model VARCHAR, base_model VARCHAR, corpus VARCHAR, seed BIGINT, device VARCHAR,
            parent VARCHAR, root VARCHAR, ancestors VARCHAR[], immunized_by VARCHAR, defense VARCHAR,
            learning_rate DOUBLE, steps BIGINT, batch_size BIGINT, samples BIGINT, harmful_share DOUBLE,
            optimizer VARCHAR, schedule VARCHAR, precision VARCHAR,
            spec VARCHAR, spec_hash VARCHAR, versions VARCHAR, code VARCHAR,
            queued_at DOUBLE, started_at DOUBLE, ended_at DOUBLE, heartbeat DOUBLE, seconds DOUBLE,
            peak_memory BIGINT, pid BIGINT)""",
        f"CREATE TABLE points ({ROW}, name VARCHAR, value DOUBLE, {STAMP})",
        f"CREATE TABLE layer_points ({ROW}, name VARCHAR, layer INTEGER, value DOUBLE, {STAMP})",
        f"""CREATE TABLE scores ({ROW}, evaluation VARCHAR, metric VARCHAR, split VARCHAR,
            score DOUBLE, n BIGINT, stderr DOUBLE, {STAMP})""",
        f"""CREATE TABLE examples ({ROW}, evaluation VARCHAR, split VARCHAR,
            id VARCHAR, prompt VARCHAR, answer VARCHAR, expected VARCHAR, score DOUBLE, more VARCHAR, {STAMP})""",
        f"CREATE TABLE checkpoints ({ROW}, path VARCHAR, sha256 VARCHAR, bytes BIGINT, {STAMP})",
        f"CREATE TABLE events ({ROW}, event VARCHAR, data VARCHAR, {STAMP})",
        "CREATE TABLE problems (run_id VARCHAR, position BIGINT, problem VARCHAR, line VARCHAR)",
        "CREATE TABLE sources (run_id VARCHAR, position BIGINT, size BIGINT, signature BIGINT, malformed BIGINT)",
        "CREATE TABLE showcases (version VARCHAR, imported_at DOUBLE)",
        # From `first_step` on, rows of this phase and kind from earlier attempts no longer count ('*' is any).
        "CREATE TABLE restarts (run_id VARCHAR, attempt INTEGER, phase VARCHAR, kind VARCHAR, first_step BIGINT)",
    ):
        connection.execute(statement)
    for table in ("points", "layer_points", "scores", "examples", "checkpoints"):
        connection.execute(
            f"""CREATE VIEW last_{table} AS SELECT t.* FROM {table} t WHERE NOT EXISTS (
                SELECT 1 FROM restarts r WHERE r.run_id = t.run_id AND r.attempt > t.attempt
                AND (r.phase = t.phase OR r.phase = '*') AND r.kind IN ('{table}', '*') AND r.first_step <= t.step)"""
        )


def variants(connection: duckdb.DuckDBPyConnection) -> None:
    """What the defense behind each run was made with: a view, since a run may be read before the one it descends from.

    `variant` is JSON: the knobs of the immunization, with its dtype and attention, which older specs leave out.
    """
    connection.execute(
        """CREATE VIEW variants AS WITH made AS MATERIALIZED (
               SELECT run_id AS immunized_by, CAST(json_merge_patch(
                   spec -> '$.knobs',
                   json_object('dtype', coalesce(spec ->> '$.dtype', 'fp32'),
                               'attention', coalesce(spec ->> '$.attention', 'auto'))
               ) AS VARCHAR) AS variant FROM runs WHERE kind = 'immunize'
           ) SELECT run_id, defense, variant FROM runs LEFT JOIN made USING (immunized_by)"""
    )


Migration = Callable[[duckdb.DuckDBPyConnection], None]
MIGRATIONS: list[Migration] = [first, variants]


def version(connection: duckdb.DuckDBPyConnection) -> int:
    """The number of the last migration that a database has seen; 0 for an empty one."""
    known = connection.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = 'schema_versions'").fetchone()
    if not known:
        return 0
    row = connection.execute("SELECT max(number) FROM schema_versions").fetchone()
    return int(row[0]) if row and row[0] is not None else 0


def check(found: int, where: object) -> bool:
    """Whether a database is up to date; a UserError if a newer ImmuneLab wrote it."""
    if found > len(MIGRATIONS):
        raise UserError(
            f"The database {where} was written by a newer ImmuneLab (schema {found}; this one knows "
            f"{len(MIGRATIONS)}). Update ImmuneLab, or choose another folder with IMMUNELAB_HOME."
        )
    return found == len(MIGRATIONS)


def migrate(connection: duckdb.DuckDBPyConnection) -> None:
    """Run what is missing, in order, and record it. The caller's transaction makes it all or nothing."""
    connection.execute("CREATE TABLE IF NOT EXISTS schema_versions (number INTEGER, name VARCHAR, migrated_at DOUBLE)")
    for number, step in enumerate(MIGRATIONS[version(connection) :], start=version(connection) + 1):
        step(connection)
        connection.execute("INSERT INTO schema_versions VALUES (?, ?, ?)", [number, step.__name__, time.time()])
