"""Reads data files in the shapes that people have, and Hub data sets, into plain records.

JSON Lines, JSON, CSV, TSV and Parquet, each also as `.gz`; a folder or a pattern such as `part-*.jsonl` stands for all
its files in the order of their names; `hf://datasets/OWNER/NAME/FILE` for one file of a Hub data set.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from immunelab.errors import UserError, hub_reason

Record = dict[str, Any]
LARGEST = 1 << 30  # bytes of all files of one source, unpacked, because records are held in memory
LONGEST_LINE = 1 << 20  # bytes of a line of JSONL, and of a cell of a table
HUB = "hf://datasets/"
DELIMITERS = (",", ";", "\t", "|")
MISSING = ("nan", "NaN")  # what a table's writer leaves where there was no text


def files(place: Path) -> list[Path]:
    """The files that a path, a folder or a pattern stands for; a UserError if there are none."""
    pattern = any(sign in place.name for sign in "*?[") and not place.exists()
    if not pattern and not place.is_dir():
        return [place]
    inside = place.parent.glob(place.name) if pattern else place.iterdir()
    found = sorted(p for p in inside if p.is_file() and _ending(p) in READERS and not p.name.startswith("."))
    if not found:
        raise UserError(f"{place} stands for no data file; data are read from {', '.join(READERS)}, also as .gz.")
    return found


def read(place: Path) -> tuple[list[Record], str]:
    """All records of a file, folder or pattern, and the SHA-256 of the files; UserErrors name file and line."""
    found: list[Record] = []
    digest = hashlib.sha256()
    size = 0
    for path in files(place):
        if _ending(path) not in READERS:
            what = path.suffix or "nothing"
            raise UserError(f"The file {path} ends in {what!r}; data are read from {', '.join(READERS)}, also as .gz.")
        try:
            raw = _unpacked(path, LARGEST - size)
        except OSError as error:  # gzip's own errors are some
            raise UserError(f"The data file {path} can't be read: {error.strerror or error}.") from None
        size += len(raw)
        digest.update(raw)
        found += READERS[_ending(path)](raw, path)
    if not found:
        raise UserError(f"The data file {place} holds no records.")
    return found, digest.hexdigest()


def _ending(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def _unpacked(path: Path, most: int) -> bytes:
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        try:
            raw = file.read(most + 1)
        except EOFError:
            raise UserError(f"The data file {path} is cut short: its .gz has no end.") from None
    if len(raw) > most:
        raise UserError(f"{path} holds more than {LARGEST >> 30} GB: take a part of it.")
    return raw


def _text(raw: bytes, path: Path) -> str:
    """UTF-8 with or without a mark at its start; a UserError says which encoding it looks like instead."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        marks = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
        looks = marks.get(raw[:2], "Windows-1252 or Latin-1")
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(
            f"The data file {path}, line {line}, is not UTF-8 text; it looks like {looks}: save it as UTF-8."
        ) from None


def parsed(text: str) -> Any:
    """JSON, in which NaN and the infinities, which Python writes and JSON does not know, are null."""
    return json.loads(text, parse_constant=lambda _: None)


def _lines(raw: bytes, path: Path) -> list[Record]:
    found = []
    for number, line in enumerate(io.BytesIO(raw), 1):
        if len(line) > LONGEST_LINE:
            raise UserError(f"{path}, line {number}: longer than {LONGEST_LINE >> 20} MB.")
        if not line.strip():
            continue
        try:
            data = parsed(_text(line, path))
        except UserError:
            _text(raw, path)  # names the line of the file
            raise
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: not JSON ({error!s:.200}).") from None
        if not isinstance(data, dict):
            raise UserError(f"{path}, line {number}: not a JSON object, but a {type(data).__name__}.")
        found.append(data)
    return found


def _json(raw: bytes, path: Path) -> list[Record]:
    """A list of objects, an object that holds one such list, or one object a line whatever the file is called."""
    text = _text(raw, path)
    try:
        data = parsed(text)
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith("{") and "\n" in text.strip():
            return _lines(raw, path)
        raise UserError(f"{path} is not JSON ({error!s:.200}).") from None
    if isinstance(data, dict):
        lists = [value for value in data.values() if isinstance(value, list) and value]
        data = lists[0] if len(lists) == 1 and all(isinstance(r, dict) for r in lists[0]) else [data]
    if not isinstance(data, list) or not all(isinstance(record, dict) for record in data):
        raise UserError(f"{path} is not a JSON list of objects.")
    return data


def _table(raw: bytes, path: Path) -> list[Record]:
    """CSV, whose cells are set apart by whichever of comma, semicolon, tab and bar its header line has most of."""
    text = _text(raw, path)
    header = text.split("\n", 1)[0]
    return _cells(text, path, max(DELIMITERS, key=header.count))


def _tabs(raw: bytes, path: Path) -> list[Record]:
    """TSV: a quote is a plain character, as in GLUE's files, unless each cell with one is quoted by the rules."""
    text = _text(raw, path)
    lines = [line for line in text.splitlines() if line]
    width = len(lines[0].split("\t")) if lines else 0
    cells = [line.split("\t") for line in lines]
    plain = all(len(row) == width for row in cells)
    quoted = [cell for row in cells for cell in row if '"' in cell]
    if plain and not all(_by_the_rules(cell) for cell in quoted):
        return [_present(dict(zip(cells[0], row, strict=True))) for row in cells[1:]]
    return _cells(text, path, "\t")


def _by_the_rules(cell: str) -> bool:
    return len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', "")


def _cells(text: str, path: Path, delimiter: str) -> list[Record]:
    with _long_cells():
        try:
            found = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
        except csv.Error as error:
            raise UserError(f"{path} is not a table with a header line: {error}.") from None
    for number, row in enumerate(found, 2):
        if None in row or None in row.values():
            raise UserError(f"{path}, record {number}: the number of cells differs from that of the header line.")
    return [_present(row) for row in found]


@contextmanager
def _long_cells() -> Iterator[None]:
    before = csv.field_size_limit(LONGEST_LINE)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _present(row: dict[str, str]) -> Record:
    return {key: None if value in MISSING else value for key, value in row.items()}


def _parquet(raw: bytes, path: Path) -> list[Record]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        rows: list[Record] = parquet.read_table(pa.BufferReader(raw)).to_pylist()
    except pa.ArrowException as error:
        raise UserError(f"{path} is not a Parquet file: {error!s:.200}.") from None
    return rows


READERS: dict[str, Callable[[bytes, Path], list[Record]]] = {
    ".jsonl": _lines,
    ".ndjson": _lines,
    ".json": _json,
    ".csv": _table,
    ".tsv": _tabs,
    ".parquet": _parquet,
}


def from_hub(name: str, config: str = "", part: str = "train", revision: str = "") -> list[Record]:
    """The records of one part of a Hub data set, downloaded or from the cache; code that comes with it never runs."""
    import datasets

    try:
        found = datasets.load_dataset(name, config or None, split=part, revision=revision or None)
    except Exception as error:  # noqa: BLE001 - the Hub's libraries raise all kinds of errors
        raise _not_there(name, error) from None
    return [dict(record) for record in found]


def file_of_hub(address: str, revision: str = "") -> Path:
    """Where a copy of `hf://datasets/OWNER/NAME/FILE` is on this machine, downloaded or from the cache."""
    import huggingface_hub

    owner, _, rest = address.removeprefix(HUB).partition("/")
    name, _, file = rest.partition("/")
    if not (owner and name and file):
        raise UserError(f"A file on the Hub is {HUB}OWNER/NAME/FILE, and got {address!r:.200}.")
    name, _, at = name.partition("@")
    try:
        found = huggingface_hub.hf_hub_download(
            f"{owner}/{name}", file, repo_type="dataset", revision=revision or at or None
        )
    except Exception as error:  # noqa: BLE001 - the Hub's libraries raise all kinds of errors
        raise _not_there(f"{owner}/{name}", error) from None
    return Path(found)


def _not_there(name: str, error: Exception) -> BaseException:
    if isinstance(error, MemoryError):
        return error
    said = " ".join(str(error).split())[:200]
    return UserError(
        f"The data set {name!r} can't be loaded: {hub_reason(error, name, 'datasets/') or f'{said}.'} "
        'A copy of its file works too: file = "NAME.parquet" beside the adapter.'
    )
