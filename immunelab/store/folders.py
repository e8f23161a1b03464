"""Run folders → one row each of the `runs` table, and a cheap look at what has changed."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from immunelab.errors import UserError
from immunelab.runs import numerics
from immunelab.runs.journal import RUN_ID, Ancestor, Labels, RunFolder, Status
from immunelab.runs.spec import RunSpec

KNOBS: dict[str, pa.DataType] = {
    "learning_rate": pa.float64(),
    "steps": pa.int64(),
    "batch_size": pa.int64(),
    "samples": pa.int64(),
    "harmful_share": pa.float64(),
    "optimizer": pa.string(),
    "schedule": pa.string(),
    "precision": pa.string(),
}
_texts = ("kind", "method", "status", "phase", "message", "error", "name", "note", "grp", "model", "base_model")
_more_texts = ("corpus", "device", "parent", "root", "immunized_by", "defense", "spec", "spec_hash", "versions", "code")
_numbers = ("progress", "eta_seconds", "queued_at", "started_at", "ended_at", "heartbeat", "seconds")
SCHEMA = pa.schema(
    [("run_id", pa.string()), ("showcase", pa.bool_()), ("archived", pa.bool_()), ("attempt", pa.int32())]
    + [(name, pa.string()) for name in (*_texts, *_more_texts)]
    + [(name, pa.float64()) for name in _numbers]
    + [(name, pa.int64()) for name in ("step", "total_steps", "seed", "peak_memory", "pid")]
    + [(name, pa.list_(pa.string())) for name in ("tags", "ancestors")]
    + list(KNOBS.items())
)
TICK = 100_000_000  # nanoseconds; two changes this close may carry one time stamp, so a fresh one is not trusted


class FileState(NamedTuple):
    """What one look at a run folder saw, without opening a file."""

    signature: int  # modification time of the folder in ns: it changes with every replaced file; -1 is "look again"
    size: int  # bytes of the journal


def scan(home: Path) -> dict[str, FileState]:
    """One look at every run folder of a home: two stat calls each."""
    now = time.time_ns()
    found: dict[str, FileState] = {}
    try:
        with os.scandir(home / "runs") as entries:
            for entry in entries:
                if not RUN_ID.match(entry.name):
                    continue
                try:
                    if not entry.is_dir(follow_symlinks=False):
                        continue
                    changed = entry.stat(follow_symlinks=False).st_mtime_ns
                    found[entry.name] = FileState(-1 if abs(now - changed) < TICK else changed, _size(entry.path))
                except FileNotFoundError:
                    continue  # deleted while we looked
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return found


def row(folder: RunFolder) -> dict[str, Any] | None:
    """A run's row; None where the folder holds no readable spec. An unreadable status or label is told in `error`."""
    try:
        spec = folder.spec()
    except (UserError, OSError, TypeError):
        return None
    problems = []
    status, labels, lineage = Status(status="failed"), Labels(), list[Ancestor]()
    try:
        status = folder.status()
    except (UserError, OSError) as error:
        problems.append(str(error))
    try:
        labels = folder.labels()
    except (UserError, OSError) as error:
        problems.append(str(error))
    try:
        lineage = folder.lineage()
    except (UserError, OSError) as error:
        problems.append(str(error))
    cells = _of_status(status) | _of_spec(spec) | _of_lineage(folder.run_id, spec, lineage)
    cells["error"] = " ".join([status.error, *problems]).strip()
    return cells | {
        "run_id": folder.run_id,
        "showcase": False,
        "name": labels.name or spec.name,
        "tags": list(labels.tags),
        "note": labels.note,
        "archived": labels.archived,
        "device": status.device or spec.device,
    }


def as_arrow(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows of runs in the order of `SCHEMA`."""
    return pa.table([pa.array([r.get(f.name) for r in rows], f.type) for f in SCHEMA], schema=SCHEMA)


def _of_status(status: Status) -> dict[str, Any]:
    cells = asdict(status)
    versions, code, steps = cells.pop("versions"), cells.pop("commit"), cells.pop("steps")
    for name in ("create_time", "host"):
        cells.pop(name)
    texts = {str(k): str(v) for k, v in versions.items()}
    return cells | {"versions": json.dumps(texts), "code": code, "total_steps": steps}


def _of_spec(spec: RunSpec) -> dict[str, Any]:
    knobs: dict[str, Any] = {}
    for name, kind in KNOBS.items():
        value = spec.knobs.get(name)
        if kind == pa.string():
            knobs[name] = value if isinstance(value, str) else None
        elif isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**62:
            if kind == pa.float64():
                knobs[name] = float(value)
            elif value == int(value):
                knobs[name] = int(value)
    own = {name: getattr(spec, name) for name in ("kind", "method", "model", "corpus", "seed", "parent")}
    knobs["precision"] = numerics.words(spec.dtype, spec.attention, knobs["precision"])
    return own | knobs | {"grp": spec.group, "spec": spec.to_json(), "spec_hash": spec.hash}


def _of_lineage(run_id: str, spec: RunSpec, lineage: list[Ancestor]) -> dict[str, Any]:
    """Root, base model, and the defense: the method of the nearest immunization, the run's own included."""
    immunized_by, defense = (run_id, spec.method) if spec.kind == "immunize" else ("", "undefended")
    if spec.kind != "immunize":
        for ancestor in lineage:
            if ancestor.kind == "immunize":
                immunized_by, defense = ancestor.run_id, ancestor.method
                break
        else:
            if spec.parent and not lineage:
                defense = "unknown"  # it starts from a run that its folder does not tell of
    return {
        "ancestors": [a.run_id for a in lineage],
        "root": lineage[-1].run_id if lineage else spec.parent or run_id,
        "base_model": lineage[-1].model if lineage else spec.model,
        "immunized_by": immunized_by,
        "defense": defense,
    }


def _size(path: str) -> int:
    try:
        return (Path(path) / "journal.jsonl").lstat().st_size
    except FileNotFoundError:
        return 0
