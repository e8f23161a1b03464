"""Journal lines → rows. A line that does not fit is counted and skipped with the reason; it never stops the rest."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from immunelab.runs.journal import LARGEST_LINE, RunFolder, lines

LONGEST_NAME = 300  # characters of a scalar, layer series, metric, split, …
PROBLEMS_KEPT = 20  # of one journal in one look; the rest is only counted
_row = [("run_id", pa.string()), ("attempt", pa.int32()), ("phase", pa.string()), ("step", pa.int64())]
_stamp = [("unix_time", pa.float64()), ("position", pa.int64())]
_names = [("evaluation", pa.string()), ("metric", pa.string()), ("split", pa.string())]
_texts = [(name, pa.string()) for name in ("id", "prompt", "answer", "expected")]
SCHEMAS: dict[str, pa.Schema] = {
    "points": pa.schema([*_row, ("name", pa.string()), ("value", pa.float64()), *_stamp]),
    "layer_points": pa.schema([*_row, ("name", pa.string()), ("layer", pa.int32()), ("value", pa.float64()), *_stamp]),
    "scores": pa.schema(
        [*_row, *_names, ("score", pa.float64()), ("n", pa.int64()), ("stderr", pa.float64()), *_stamp]
    ),
    "examples": pa.schema(
        [*_row, _names[0], _names[2], *_texts, ("score", pa.float64()), ("more", pa.string()), *_stamp]
    ),
    "checkpoints": pa.schema([*_row, ("path", pa.string()), ("sha256", pa.string()), ("bytes", pa.int64()), *_stamp]),
    "events": pa.schema([*_row, ("event", pa.string()), ("data", pa.string()), *_stamp]),
    "problems": pa.schema(
        [("run_id", pa.string()), ("position", pa.int64()), ("problem", pa.string()), ("line", pa.string())]
    ),
    "restarts": pa.schema([*_row[:2], ("phase", pa.string()), ("kind", pa.string()), ("first_step", pa.int64())]),
}
Cells = list[tuple[Any, ...]]
Add = Callable[[str, tuple[Any, ...]], None]


class Rows:
    """Rows of all tables from any number of journals, and how many lines of each journal were malformed."""

    def __init__(self) -> None:
        self.cells: dict[str, Cells] = {table: [] for table in SCHEMAS}
        self.malformed: dict[str, int] = {}
        self._restarts: dict[tuple[str, int, str, str], int] = {}

    def read(self, folder: RunFolder, start: int, most: int) -> int:
        """Take in the whole lines of a journal from byte `start`, about `most` bytes; returns where to go on."""
        end = start
        try:
            for position, line in lines(folder.journal_path, start, most):
                end = position + len(line) + (len(line) < LARGEST_LINE)
                if line:
                    self._take(folder.run_id, position, line)
        except OSError as error:  # a link, a folder, a file of someone else
            self._problem(folder.run_id, end, b"", error)
        return end

    def _take(self, run_id: str, position: int, line: bytes) -> None:
        taken: dict[str, Cells] = {}
        try:
            parse(run_id, position, line, lambda table, row: taken.setdefault(table, []).append(row))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            self._problem(run_id, position, line, error)
            return
        for table, rows in taken.items():
            self.cells[table] += rows
            self._restarted(table, rows)

    def arrow(self) -> dict[str, pa.Table]:
        """The tables that have rows, as Arrow."""
        self.cells["restarts"] = [(*key, first) for key, first in self._restarts.items()]
        return {name: as_arrow(SCHEMAS[name], cells) for name, cells in self.cells.items() if cells}

    def _problem(self, run_id: str, position: int, line: bytes, error: Exception) -> None:
        count = self.malformed[run_id] = self.malformed.get(run_id, 0) + 1
        if count <= PROBLEMS_KEPT:
            reason = f"lacks {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
            start = line[:200].decode("utf-8", "replace")
            self.cells["problems"].append((run_id, position, _storable(reason[:200]), _storable(start)))

    def _restarted(self, table: str, rows: Cells) -> None:
        """Remember where a later attempt begins: from there on, its rows stand instead of the earlier ones."""
        run_id, attempt, phase, step = rows[0][:4]
        if attempt < 2:
            return
        if table != "events":
            keys = [((run_id, attempt, phase, table), step)]
        elif rows[0][4] == "resumed":
            keys = [((run_id, attempt, phase or "*", "*"), step + 1)]  # its `from_step` still counts
        elif rows[0][4] == "started":  # again from the beginning
            keys = [((run_id, attempt, "*", "*"), 0)]
        else:
            return
        for key, first in keys:
            self._restarts[key] = min(first, self._restarts.get(key, first))


def as_arrow(schema: pa.Schema, cells: Cells) -> pa.Table:
    """Tuples in the order of a schema as an Arrow table."""
    columns = zip(*cells, strict=True) if cells else [[] for _ in schema]
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)


def parse(run_id: str, position: int, line: bytes, add: Add) -> None:
    """One journal line as rows; ValueError, TypeError, KeyError, OverflowError or RecursionError if it is none."""
    if len(line) >= LARGEST_LINE:
        raise ValueError(f"a line of more than {LARGEST_LINE >> 20} MB")
    text = line.decode("utf-8")
    entry = json.loads(text)
    if not isinstance(entry, dict):
        raise TypeError(f"holds a JSON {type(entry).__name__}, not an object")
    if "\\ud" in text or "\\uD" in text:
        json.dumps(entry, ensure_ascii=False).encode("utf-8")  # half of a surrogate pair can't be stored
    kind = entry["kind"]
    head = (run_id, _whole(entry["attempt"], 1, 2**31), _name(entry["phase"], 0), _whole(entry["step"], 0, 2**53))
    stamp = (_number(entry["at"]), position)
    if kind == "points":
        for name, value in _members(entry["values"]):
            add("points", (*head, _name(name), _number(value), *stamp))
    elif kind == "layers":
        for name, series in _members(entry["values"]):
            for layer, value in enumerate(_list(series)):
                add("layer_points", (*head, _name(name), layer, _number(value), *stamp))
    elif kind == "score":
        where = (_name(entry["evaluation"]), _name(entry["metric"]), _name(entry["split"]))
        n = _whole(entry["n"], 0, 2**53)
        add("scores", (*head, *where, _number(entry["score"]), n, _number(entry["stderr"]), *stamp))
    elif kind == "examples":
        _examples(entry, head, stamp, add)
    elif kind == "checkpoint":
        size = _whole(entry["bytes"], 0, 2**62)
        add("checkpoints", (*head, _name(entry["path"]), _name(entry["sha256"], 0), size, *stamp))
    elif kind == "event":
        data = json.dumps(dict(_members(entry["data"])))
        add("events", (*head, _name(entry["event"]), data, *stamp))
    else:
        raise ValueError(f"unknown kind {kind!r:.60}")


def _examples(entry: dict[str, Any], head: tuple[Any, ...], stamp: tuple[Any, ...], add: Add) -> None:
    where = (_name(entry["evaluation"]), _name(entry["split"]))
    for row in _list(entry["rows"]):
        cells = dict(_members(row))
        texts = [cells.pop(name, None) for name in ("id", "prompt", "answer", "expected")]
        score = cells.pop("score", None)
        more = json.dumps(cells) if cells else None
        value = None if score is None else _number(score)
        add("examples", (*head, *where, *(None if t is None else str(t) for t in texts), value, more, *stamp))


def _number(value: Any) -> float:
    if isinstance(value, str):
        if value not in ("NaN", "Infinity", "-Infinity"):
            raise TypeError(f"{value!r:.60} is not a number")
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r:.60} is not a number")
    return float(value)


def _whole(value: Any, low: int, high: int) -> int:
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value < high:
        raise ValueError(f"{value!r:.60} is not a whole number from {low}")
    return value


def _name(value: Any, least: int = 1) -> str:
    if not isinstance(value, str) or not least <= len(value) <= LONGEST_NAME:
        raise ValueError(f"{value!r:.60} is not a name of {least} to {LONGEST_NAME} characters")
    return value


def _members(value: Any) -> Any:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r:.60} is not an object")
    return value.items()


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r:.60} is not a list")
    return value


def _storable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
