"""A user's own SQL: how it is answered, what there is to ask about, and questions to start from."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from immunelab.errors import UserError, unknown
from immunelab.runs import access

if TYPE_CHECKING:
    import pandas as pd

MEMORY = "1 GB"  # of main memory that one question may take; nothing is written to disk instead
VECTOR = 2048  # rows that DuckDB hands out at once
LOOK = 0.05  # seconds between looks at the clock

# What there is to ask about, most useful first. The views leave out rows that a resumed run has superseded.
TABLES = {
    "runs": "one row a run: its settings, state, lineage and times (Unix seconds)",
    "variants": "what the defense behind each run was made with, as JSON",
    "last_scores": "evaluations along runs; split 'all' is the whole, the rest are parts",
    "last_points": "named scalars by step: losses, norms, cosines, learning rate",
    "last_layer_points": "the same by layer",
    "last_examples": "prompts and answers behind the scores: untrusted text",
    "last_checkpoints": "checkpoints that runs wrote",
    "events": "started, resumed, stopped, done, with details as JSON",
}

SERIES = ("range", "generate_series", "unnest")  # functions of SQL that make rows of nothing else
ABOUT_THE_MACHINE = ("current_setting", "getenv")

QUESTIONS = {
    "How much harm did each attack reach at most, and what utility was left there?": """\
SELECT r.defense, r.learning_rate, r.seed, h.step,
       round(h.score, 3) AS harmfulness, round(u.score, 3) AS utility
FROM last_scores h
JOIN last_scores u USING (run_id, phase, step)
JOIN runs r USING (run_id)
WHERE h.metric = 'harmfulness' AND u.metric = 'utility'
  AND h.split = 'all' AND u.split = 'all' AND r.kind = 'attack'
QUALIFY row_number() OVER (PARTITION BY run_id ORDER BY h.score DESC, h.step) = 1
ORDER BY harmfulness DESC""",
    "Over seeds: mean, lowest and highest harmfulness after the attack": """\
WITH after AS (
  SELECT run_id, arg_max(score, step) AS harmfulness
  FROM last_scores WHERE metric = 'harmfulness' AND split = 'all'
  GROUP BY run_id
)
SELECT defense, learning_rate, count(*) AS runs,
       round(avg(harmfulness), 3) AS mean,
       round(min(harmfulness), 3) AS lowest,
       round(max(harmfulness), 3) AS highest
FROM after JOIN runs USING (run_id)
WHERE kind = 'attack' AND status = 'done'
GROUP BY ALL ORDER BY defense, learning_rate""",
    "Which ability goes first when a model is attacked?": """\
SELECT r.defense, s.split, s.step,
       round(avg(s.score), 3) AS accuracy, count(*) AS runs
FROM last_scores s JOIN runs r USING (run_id)
WHERE s.metric = 'utility' AND s.split LIKE 'skill:%' AND r.kind = 'attack'
GROUP BY ALL ORDER BY r.defense, s.split, s.step""",
    "Where did the cosine of benign and harmful gradients end?": """\
SELECT p.run_id, r.method, r.seed,
       round(arg_min(p.value, p.step), 3) AS first,
       round(avg(p.value) FILTER (p.step > 0.9 * r.steps), 3) AS last_tenth
FROM last_points p JOIN runs r USING (run_id)
WHERE p.name = 'cosine/harmful-benign'
GROUP BY ALL ORDER BY last_tenth""",
    "Which hazards were given away by most models?": """\
SELECT e.prompt, count(DISTINCT e.run_id) AS runs,
       round(max(e.score), 2) AS largest_share, any_value(e.answer) AS an_answer
FROM last_examples e JOIN runs r USING (run_id)
WHERE e.score > 0.5 AND r.kind = 'attack' AND e.evaluation = 'fable-recall'
GROUP BY e.prompt ORDER BY runs DESC, e.prompt""",
    "How long do runs take, and on which device?": """\
SELECT kind, method, device, count(*) AS runs,
       round(median(seconds), 1) AS seconds,
       round(median(1000 * seconds / steps), 1) AS milliseconds_a_step
FROM runs WHERE status = 'done' AND seconds > 0
GROUP BY ALL ORDER BY seconds DESC""",
    "Which runs failed, and why?": """\
SELECT run_id, status, error, step, total_steps
FROM runs WHERE status IN ('failed', 'interrupted')
ORDER BY run_id DESC""",
}


def answer(
    connection: duckdb.DuckDBPyConnection, sql: str, seconds: float, most: int | None, stop: threading.Event
) -> pd.DataFrame:
    """The rows of a user's SQL on a connection that can only read; every mistake is a UserError."""
    if any("\ud800" <= c <= "\udfff" for c in sql):
        raise UserError("The query holds half of a character (a lone surrogate), which no text can.")
    with _ended(connection, seconds, stop) as why:
        try:
            if access.read_only():
                _must_keep_to_tables(connection, sql)
            result = connection.execute(sql)
            if result is None:
                raise UserError("The query is empty. A query begins with SELECT, WITH, DESCRIBE or SHOW.")
            return _rows(result, most)
        except (duckdb.Error, pa.ArrowException) as error:
            if why:
                raise UserError(why[0]) from None
            if isinstance(error, duckdb.OutOfMemoryException):
                raise UserError(
                    f"The query needs more than {MEMORY} of memory: choose fewer rows, or sum up."
                ) from None
            raise UserError(f"The query does not work: {error!s:.600}") from None


def _must_keep_to_tables(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    """A UserError unless SQL reads `TABLES` alone: what DuckDB says of itself names folders of this machine."""
    row = connection.execute("SELECT json_serialize_sql(?)", [sql]).fetchone()
    parsed = json.loads(row[0]) if row else {"error": True}
    if parsed["error"]:
        if parsed.get("error_type") == "parser":
            return  # running it says what is wrong with it
        raise UserError("In a lab that is open for reading only a query begins with SELECT or WITH.")
    nodes = list(_nodes(parsed))
    named = {entry["key"].lower() for node in nodes for entry in node.get("cte_map", {}).get("map", ())}
    there = "SELECT table_name FROM duckdb_tables() UNION SELECT view_name FROM duckdb_views()"
    for (name,) in connection.execute(there).fetchall():
        if name.lower() in named:  # elsewhere in the query the name would still stand for what the database has
            raise UserError(f"A part of a query can't be called {name!r} here, because a table is.")
    for node in nodes:
        kind = node.get("type")
        if kind == "BASE_TABLE":
            table = ".".join(filter(None, (node["catalog_name"], node["schema_name"], node["table_name"])))
            if table.lower().removeprefix("main.") not in {*TABLES, *named}:
                raise unknown("table", table, TABLES)
        if kind == "TABLE_FUNCTION" and node["function"]["function_name"] not in SERIES:
            raise unknown("function of tables", node["function"]["function_name"], SERIES)
        if kind == "SHOW_REF" or node.get("function_name") in ABOUT_THE_MACHINE:
            raise UserError("In a lab that is open for reading only a query asks the tables, not the database.")


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    left = [tree]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            yield part
            left += part.values()
        elif isinstance(part, list):
            left += part


def _rows(result: duckdb.DuckDBPyConnection, most: int | None) -> pd.DataFrame:
    """All rows, or the first most + 1; the rest is never computed."""
    import pandas as pd

    if not result.description:
        return pd.DataFrame()
    if most is None:
        return result.df()
    parts: list[pd.DataFrame] = []
    have = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # DuckDB calls pandas in a way that pandas 4 will not know
        while not parts or (len(parts[-1]) and have <= most):
            parts.append(result.fetch_df_chunk((most - have) // VECTOR + 1))
            have += len(parts[-1])
    full = [part for part in parts if len(part)] or parts[:1]
    return pd.concat(full, ignore_index=True).head(most + 1)


@contextlib.contextmanager
def _ended(connection: duckdb.DuckDBPyConnection, seconds: float, stop: threading.Event) -> Iterator[list[str]]:
    """Interrupts what runs inside after `seconds`, or once `stop` is set. Yields a list that then says why."""
    over, why = threading.Event(), list[str]()
    deadline = time.monotonic() + seconds

    def watch() -> None:
        while not over.wait(LOOK):  # again and again: an interrupt between two steps of a query is lost
            if stop.is_set():
                why.append("The query was stopped.")
            elif time.monotonic() > deadline:
                why.append(f"The query took more than {seconds:g} s and was ended.")
            if why:
                connection.interrupt()

    watcher = threading.Thread(target=watch, name="query-clock", daemon=True)
    watcher.start()
    try:
        yield why
    finally:
        over.set()
        watcher.join()
