"""Reads JSONL, JSON, CSV, TSV and Parquet files, and Hub data sets, into plain records."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from immunelab.errors import UserError, hub_reason

Record = dict[str, Any]
LARGEST = 1 << 30  # bytes of one file, because records are held in memory
LONGEST_LINE = 1 << 20  # bytes of a line of JSONL


def read(path: Path) -> list[Record]:
    """All records of a file, read by its ending; a UserError names the file, and the line if known."""
    ending = path.suffix.lower()
    if ending not in READERS:
        raise UserError(f"The file {path} ends in {ending or 'nothing'!r}; data are read from {', '.join(READERS)}.")
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"The file {path} is larger than {LARGEST >> 30} GB: take a part of it.")
        found = READERS[ending](path)
    except OSError as error:
        raise UserError(f"The data file {path} can't be read: {error.strerror or error}.") from None
    except UnicodeDecodeError:
        raise UserError(f"The data file {path} is not UTF-8 text; save it as UTF-8.") from None
    if not found:
        raise UserError(f"The data file {path} holds no records.")
    return found


def _jsonl(path: Path) -> list[Record]:
    found = []
    with path.open("rb") as file:
        number = 0
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            if len(line) > LONGEST_LINE:
                raise UserError(f"{path}, line {number}: longer than {LONGEST_LINE >> 20} MB.")
            if line.strip():
                found.append(_object(line.decode("utf-8-sig"), f"{path}, line {number}"))
    return found


def _object(text: str, place: str) -> Record:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not JSON ({error!s:.200}).") from None
    if not isinstance(data, dict):
        raise UserError(f"{place}: not a JSON object, but a {type(data).__name__}.")
    return data


def _json(path: Path) -> list[Record]:
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error!s:.200}); one object a line is JSONL.") from None
    if not isinstance(data, list) or not all(isinstance(record, dict) for record in data):
        raise UserError(f"{path} is not a JSON list of objects.")
    return data


def _separated(delimiter: str) -> Callable[[Path], list[Record]]:
    def read(path: Path) -> list[Record]:
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = csv.DictReader(file, delimiter=delimiter, strict=True)
                found = list(rows)
        except csv.Error as error:
            raise UserError(f"{path} is not a table with a header line: {error}.") from None
        for number, row in enumerate(found, 2):
            if None in row or None in row.values():
                raise UserError(f"{path}, record {number}: the number of cells differs from that of the header line.")
        return found

    return read


def _parquet(path: Path) -> list[Record]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        rows: list[Record] = parquet.read_table(path).to_pylist()
    except pa.ArrowException as error:
        raise UserError(f"{path} is not a Parquet file: {error!s:.200}.") from None
    return rows


READERS: dict[str, Callable[[Path], list[Record]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".parquet": _parquet,
}


def from_hub(name: str, config: str = "", part: str = "train", revision: str = "") -> list[Record]:
    """The records of one part of a Hub data set, downloaded or from the cache; code that comes with it never runs."""
    import datasets

    try:
        found = datasets.load_dataset(name, config or None, split=part, revision=revision or None)
    except Exception as error:  # the Hub's libraries raise all kinds of errors
        if isinstance(error, MemoryError):
            raise
        said = " ".join(str(error).split())[:200]
        raise UserError(
            f"The data set {name!r} can't be loaded: {hub_reason(error, name, 'datasets/') or f'{said}.'} "
            'A copy of its file works too: file = "NAME.parquet" beside the adapter.'
        ) from None
    return [dict(record) for record in found]
