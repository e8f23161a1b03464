"""Spoiled journals, specs, statuses and labels for the readers, as many as there is time for.

    python benchmarks/fuzz.py --seconds 60

Mutates good documents: bits, bytes, pieces, fields. A reader may take the bytes, or refuse them with a `UserError`
(a journal line: with one of `REFUSALS`); anything else ends the run with the bytes that did it. `read` is one input's
trip through all readers, and can be handed to a coverage-guided fuzzer as it is.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from immunelab.errors import UserError
from immunelab.runs.spec import RunSpec
from immunelab.runs.status import Labels, Status
from immunelab.store import folders, ingest

REFUSALS = (ValueError, TypeError, KeyError, OverflowError, RecursionError)  # as `ingest.parse` says
HEAD: dict[str, Any] = {"attempt": 1, "phase": "attack", "step": 3, "at": 1.5}
ROWS = [{"id": "a", "prompt": "p", "answer": "b", "expected": "c", "score": 0.5}]
SEEDS: list[dict[str, Any]] = [
    {"kind": "points", **HEAD, "values": {"loss/total": 1.5, "norm": "NaN"}},
    {"kind": "layers", **HEAD, "values": {"cosine": [0.5, "Infinity"]}},
    {"kind": "score", **HEAD, "evaluation": "e", "metric": "m", "split": "all", "score": 0.5, "n": 9, "stderr": 0.1},
    {"kind": "examples", **HEAD, "evaluation": "e", "split": "test", "rows": ROWS},
    {"kind": "checkpoint", **HEAD, "path": "checkpoints/step-000003", "sha256": "ab", "bytes": 7},
    {"kind": "event", **HEAD, "event": "resumed", "data": {"from_step": 2}},
    {"kind": "attack", "method": "harmful-sft", "knobs": {"steps": 9, "learning_rate": 1e-3}, "seed": 1, "name": "x"},
    {"status": "running", "run_id": "r", "pid": 5, "create_time": 1.5, "attempt": 1, "step": 3, "progress": 0.5},
    {"name": "mine", "tags": ["a", "b"], "note": "two\nlines", "archived": False},
]
FIELDS = {name for seed in SEEDS for name in seed}
ODD = [b"\x00", b"\xff", b"\\ud800", b"1e999", b"-1", b"9" * 40, b"NaN", b"null", b"[", b"{", b'"', b"\\u0000", b"\n"]


def read(data: bytes) -> int:
    """Take bytes through every reader, and what they take into Arrow; returns how many readers took them."""
    taken = 0
    with contextlib.suppress(*REFUSALS):
        rows: dict[str, ingest.Cells] = {}
        ingest.parse("run", 0, data, lambda table, row: rows.setdefault(table, []).append(row))
        for table, cells in rows.items():  # outside of the readers' own promise: what they take must be storable
            _storable(lambda table=table, cells=cells: ingest.as_arrow(ingest.SCHEMAS[table], cells))
        taken += 1
    text = data.decode("utf-8", "surrogatepass") if _decodes(data) else data.decode("latin-1")
    with contextlib.suppress(UserError):
        spec = RunSpec.from_json(text)
        _storable(lambda: folders.as_arrow([folders._of_spec(spec)]))
        taken += 1
    with contextlib.suppress(UserError):
        status = Status.from_json(text)
        _storable(lambda: folders.as_arrow([folders._of_status(status)]))
        taken += 1
    with contextlib.suppress(UserError):
        labels = Labels.from_json(text)
        _storable(lambda: folders.as_arrow([{"name": labels.name, "note": labels.note, "tags": list(labels.tags)}]))
        taken += 1
    return taken


class Unstorable(BaseException):
    """A reader took what the database can't hold. No `Exception`, so that nothing here takes it for a refusal."""


def _storable(made: Callable[[], object]) -> None:
    try:
        made()
    except Exception as error:
        raise Unstorable(f"{type(error).__name__}: {error}") from error


def _decodes(data: bytes) -> bool:
    with contextlib.suppress(UnicodeDecodeError):
        data.decode("utf-8", "surrogatepass")
        return True
    return False


def spoiled(chance: random.Random) -> bytes:
    """A good document with something wrong."""
    seed = dict(chance.choice(SEEDS))
    if chance.random() < 0.5:
        other = chance.choice(SEEDS)
        seed[chance.choice(sorted(FIELDS))] = chance.choice([*other.values(), other, [other], 10**400, -1, 1e308, None])
    data = bytearray(json.dumps(seed).encode())
    for _ in range(chance.choice([0, 1, 1, 2, 5])):
        at = chance.randrange(len(data) + 1)
        how = chance.randrange(4)
        if how == 0:
            data[at:at] = chance.choice(ODD)
        elif how == 1:
            del data[at : at + chance.randrange(1, 9)]
        elif how == 2:
            data[at:at] = data[chance.randrange(len(data) + 1) :][: chance.randrange(30)]
        elif at < len(data):
            data[at] ^= 1 << chance.randrange(8)
    return bytes(data)


def main() -> None:
    """Until the time is over, or something other than a refusal comes out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    chance, end, count, taken = random.Random(chosen.seed), time.monotonic() + chosen.seconds, 0, 0
    while time.monotonic() < end:
        data = spoiled(chance)
        try:
            taken += bool(read(data))
        except BaseException:
            print(f"input {count}: {data!r}")
            raise
        count += 1
    print(f"{count:,} inputs in {chosen.seconds:g} s: {taken:,} taken by a reader, {count - taken:,} refused by all")


if __name__ == "__main__":
    main()
