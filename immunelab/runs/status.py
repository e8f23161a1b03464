"""The small files of a run folder: status and labels, their JSON, and how they are read and replaced."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import stat
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from immunelab.errors import UserError, unknown

STATUSES = ("queued", "running", "stopping", "stopped", "interrupted", "failed", "done")
ENDED = ("stopped", "interrupted", "failed", "done")
LATEST = 9e9  # Unix seconds (the year 2255); later times are refused, because data frames can't hold them
LARGEST_DOCUMENT = 4 << 20  # bytes; spec, status and labels are far smaller, so a larger file is not the lab's


@dataclasses.dataclass(frozen=True, kw_only=True)
class Status:
    """How far a run is. Times are Unix seconds, `seconds` adds up over attempts, `progress` is 0–1, memory in bytes."""

    status: str
    run_id: str = ""
    pid: int | None = None  # the worker; `create_time` belongs to it, because pids are reused
    create_time: float | None = None
    host: str = ""
    attempt: int = 1
    phase: str = ""
    step: int | None = None
    steps: int | None = None
    progress: float | None = None
    eta_seconds: float | None = None
    message: str = ""
    error: str = ""
    queued_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    heartbeat: float | None = None
    device: str = ""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    commit: str = ""
    seconds: float | None = None
    peak_memory: int | None = None

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise unknown("status of a run", self.status, STATUSES)

    @property
    def ended(self) -> bool:
        """Whether no process works on the run, or will."""
        return self.status in ENDED

    def to_json(self) -> str:
        """As strict JSON; a non-finite number becomes null."""
        return json.dumps(strict(dataclasses.asdict(self), nothing=True), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, source: str = "status.json") -> Status:
        """Read back; fields of a later version are ignored, a wrong type is a UserError that names `source`."""
        data = parse_object(text, source)
        fields: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            if field.name not in data:
                continue
            value = data[field.name]
            wanted = str(field.type)
            if value is None and "None" in wanted:
                fits = True
            elif "float" in wanted:
                most = LATEST if field.name.endswith(("_at", "heartbeat", "_time")) else 1e18
                fits = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < most
            elif "int" in wanted:
                most = 2**31 if field.name in ("attempt", "pid") else 2**62
                fits = isinstance(value, int) and not isinstance(value, bool) and abs(value) < most
            else:
                fits = isinstance(value, dict if "dict" in wanted else str)
            if not fits:
                raise UserError(f"{source}: {field.name} is {wanted.replace(' | None', '')}, and got {value!r:.100}.")
            fields[field.name] = value
        if "status" not in fields:
            raise UserError(f"{source} lacks the field 'status'.")
        return cls(**fields)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labels:
    """What a user writes about a run; never part of its identity."""

    name: str = ""
    tags: tuple[str, ...] = ()
    note: str = ""
    archived: bool = False

    def __post_init__(self) -> None:
        texts = {"name": (self.name, 200), "note": (self.note, 20_000), **{f"tag {t!r}": (t, 60) for t in self.tags}}
        for what, (text, most) in texts.items():
            if not isinstance(text, str) or len(text) > most or not plain(text, lines=what == "note"):
                raise UserError(f"A run's {what:.80} is a text of at most {most} printable characters.")
        if len(self.tags) > 50:
            raise UserError(f"A run has at most 50 tags, and got {len(self.tags)}.")
        if not isinstance(self.archived, bool):
            raise UserError(f"A run is archived or not (true or false), and got {self.archived!r:.80}.")

    @classmethod
    def from_json(cls, text: str, source: str = "tags.json") -> Labels:
        """Read back; a UserError says what is wrong."""
        data = parse_object(text, source)
        tags = data.get("tags", [])
        if not isinstance(tags, list) or not all(isinstance(t, str) for t in tags):
            raise UserError(f"{source}: tags is a list of texts, and got {tags!r:.100}.")
        rest = {k: v for k, v in data.items() if k in ("name", "note", "archived")}
        return cls(**rest, tags=tuple(tags))


def replace_file(path: Path, text: str) -> None:
    """Write a small file so that readers see the old or the new one, never half of it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        draft.write_text(text, encoding="utf-8")
        _patiently(lambda: draft.replace(path))
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def _patiently(action: Callable[[], Any]) -> Any:
    """Retry for 0.2 s: Windows refuses to replace or open a file that another process is replacing."""
    for wait in (0.01, 0.03, 0.06, 0.1) if os.name == "nt" else ():
        try:
            return action()
        except PermissionError:
            time.sleep(wait)
    return action()


def read_file(path: Path, missing: str | None = None) -> str:
    """A small text file of a run folder; never through a link, never a huge one."""
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > LARGEST_DOCUMENT:
            raise UserError(f"{path.parent.name}/{path.name} is no plain file or too large, and is not read.")
        return str(_patiently(lambda: path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        if missing is not None:
            return missing
        raise UserError(f"{path.parent.name}/{path.name} is missing.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path.parent.name}/{path.name} is not UTF-8 text.") from None


def parse_object(text: str, source: str) -> dict[str, Any]:
    """A JSON object whose texts can be stored; for anything else a UserError names `source`."""
    try:
        data = json.loads(text)
        if "\\ud" in text.lower():
            json.dumps(data, ensure_ascii=False).encode("utf-8")  # refuses half a surrogate pair, which can't be stored
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source} is not JSON: {error!s:.200}.") from None
    if not isinstance(data, dict):
        raise UserError(f"{source} holds a JSON {type(data).__name__}, and an object was expected.")
    return data


def plain(text: str, lines: bool = False) -> bool:
    """Printable text that UTF-8 can hold."""
    return not any((c < " " and not (lines and c in "\n\t")) or "\ud800" <= c <= "\udfff" or c == "\x7f" for c in text)


def strict(value: Any, nothing: bool = False) -> Any:
    """Values as strict JSON allows them: non-finite numbers become texts (or null), other libraries' scalars floats."""
    if isinstance(value, Mapping):
        return {str(k): strict(v, nothing) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [strict(v, nothing) for v in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    number = float(value)
    if math.isfinite(number):
        return number
    if nothing:
        return None
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
