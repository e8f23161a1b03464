"""A run's folder and its append-only record, from which the database is made. Standard library only.

A training process never waits for the database. Each call of `Journal` hands complete lines to the operating system,
each in one write, so a `kill -9` loses at most the line being written, and a reader that ignores an unfinished last
line sees only whole records. Other files in the folder are replaced atomically.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from immunelab.errors import UserError, unknown
from immunelab.runs import access
from immunelab.runs.spec import RunSpec
from immunelab.runs.status import ENDED, STATUSES, Labels, Status, read_file, replace_file, strict

__all__ = [
    "ENDED",
    "STATUSES",
    "Ancestor",
    "Journal",
    "Labels",
    "RunFolder",
    "Status",
    "folders",
    "home",
    "lines",
    "meant",
]

RUN_ID = re.compile(r"^[A-Za-z0-9](?!.*\.\.)[A-Za-z0-9._-]{0,150}\Z")
LARGEST_LINE = 8 << 20  # bytes; readers skip longer lines, so `examples` cuts its rows into lines of at most 1/16
_one_writer = threading.RLock()  # keeps two threads from changing a status at the same time
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def home(path: str | os.PathLike[str] | None = None) -> Path:
    """The folder that holds runs and database: the argument, else `IMMUNELAB_HOME`, else `./lab`. Absolute."""
    return Path(path or os.environ.get("IMMUNELAB_HOME") or "lab").expanduser().absolute()


def meant(text: str, known: Sequence[str], what: str = "runs") -> str | None:
    """The one of these run ids that a person means: the id itself, or the start or end of it. None if there is none; a
    UserError if several have it."""
    fits = [text] if text in known else [i for i in known if text and (i.startswith(text) or i.endswith(text))]
    if len(fits) > 1:
        raise UserError(f"{text!r} fits {len(fits)} {what}: {', '.join(fits[:4])}. Give more of the id.")
    return fits[0] if fits else None


class Ancestor(NamedTuple):
    """A run whose checkpoint another run starts from; stored with the descendant, so it outlives a deleted parent."""

    run_id: str
    kind: str
    method: str
    model: str
    spec_hash: str


class RunFolder:
    """`<home>/runs/<run_id>/`: spec, status, journal, log, labels, stop request and checkpoints of one run."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.run_id = self.path.name

    @classmethod
    def create(cls, home: Path, spec: RunSpec, queued_at: float | None = None) -> RunFolder:
        """A new folder with the status `queued`; it appears only when it is complete. Raises OSErrors."""
        access.refuse("no run can be started")
        runs = home / "runs"
        runs.mkdir(parents=True, exist_ok=True)
        label = re.sub(r"[^a-z0-9]+", "-", (spec.method or spec.kind).lower()).strip("-")[:60] or spec.kind
        run_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{label}-{secrets.token_hex(3)}"
        draft = cls(runs / f".new-{run_id}")
        draft.path.mkdir()
        draft.checkpoints.mkdir()
        lineage: list[Ancestor] = []
        if spec.parent:
            parent = cls.open(home, spec.parent)
            p = parent.spec()
            lineage = [Ancestor(parent.run_id, p.kind, p.method, p.model, p.hash), *parent.lineage()]
        first = Status(status="queued", run_id=run_id, queued_at=time.time() if queued_at is None else queued_at)
        (draft.path / "spec.json").write_text(spec.to_json(), encoding="utf-8")
        (draft.path / "lineage.json").write_text(json.dumps([a._asdict() for a in lineage], indent=1), encoding="utf-8")
        (draft.path / "status.json").write_text(first.to_json(), encoding="utf-8")
        return cls(draft.path.rename(runs / run_id))

    @classmethod
    def open(cls, home: Path, run_id: str) -> RunFolder:
        """The folder of a run; a UserError with similar ids if there is none. Paths are refused."""
        folder = cls(home / "runs" / str(run_id))
        if not isinstance(run_id, str) or not RUN_ID.match(run_id) or not (folder.path / "spec.json").is_file():
            raise unknown(f"run (in {home})", str(run_id)[:200], (f.run_id for f in folders(home)))
        return folder

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are written, one folder each."""
        return self.path / "checkpoints"

    @property
    def journal_path(self) -> Path:
        """The append-only record."""
        return self.path / "journal.jsonl"

    @property
    def log_path(self) -> Path:
        """Standard output and error of the process."""
        return self.path / "log.txt"

    def spec(self) -> RunSpec:
        """The frozen spec; a UserError if the file is not a spec."""
        return RunSpec.from_json(read_file(self.path / "spec.json"), f"{self.run_id}/spec.json")

    def lineage(self) -> list[Ancestor]:
        """The runs that this one descends from, nearest first; empty for a run that starts from a base model."""
        try:
            rows = json.loads(read_file(self.path / "lineage.json", missing="[]"))
            if not isinstance(rows, list):
                raise TypeError("not a list")
            json.dumps(rows, ensure_ascii=False).encode("utf-8")  # half of a surrogate pair can't be stored
            return [Ancestor(*(str(row[field]) for field in Ancestor._fields)) for row in rows]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise UserError(f"{self.run_id}/lineage.json is not a list of runs.") from None

    def status(self) -> Status:
        """The stored status, but `stopping` for a run that was asked to stop and has not ended."""
        stored = self.recorded()
        if stored.status in ("queued", "running") and self.stop_requested():
            return dataclasses.replace(stored, status="stopping")
        return stored

    def recorded(self) -> Status:
        """The status as last written, even if a stop was requested since."""
        return Status.from_json(read_file(self.path / "status.json"), f"{self.run_id}/status.json")

    def write_status(self, **changes: Any) -> Status:
        """Change fields of the status, atomically. While a worker runs it, only that worker may call this."""
        access.refuse("no run can be changed")
        with _one_writer:
            new = dataclasses.replace(self.recorded(), **changes)
            replace_file(self.path / "status.json", new.to_json())
            return new

    def labels(self) -> Labels:
        """The user's labels; empty if none were written."""
        return Labels.from_json(read_file(self.path / "tags.json", missing="{}"), f"{self.run_id}/tags.json")

    def write_labels(self, **changes: Any) -> Labels:
        """Change name, tags, note or archived, atomically; a UserError says what is wrong."""
        access.refuse("no run can be labeled")
        with _one_writer:
            new = dataclasses.replace(self.labels(), **changes)
            replace_file(self.path / "tags.json", json.dumps(dataclasses.asdict(new), indent=1))
            return new

    def request_stop(self, force_after: float | None = None) -> None:
        """Ask the worker to stop; after `force_after` seconds `jobs.reconcile` may end it by force."""
        access.refuse("no run can be stopped")
        request = {"requested_at": time.time(), "force_after": force_after}
        replace_file(self.path / "stop", json.dumps(request))

    def stop_requested(self) -> bool:
        """Whether a stop was requested: one stat call, cheap enough for every step."""
        return (self.path / "stop").exists()

    def overdue(self) -> bool:
        """Whether a stop was requested and its time has run out. An empty request file never runs out."""
        try:
            request = json.loads(read_file(self.path / "stop", missing="null") or "null")
            return isinstance(request, dict) and time.time() > request["requested_at"] + request["force_after"]
        except (ValueError, TypeError, KeyError):
            return False  # the request names no time, so it is never enforced

    def clear_stop(self) -> None:
        """Forget a stop request."""
        access.refuse("no run can be resumed")
        (self.path / "stop").unlink(missing_ok=True)

    def entries(self) -> Iterator[dict[str, Any]]:
        """The journal's complete, readable lines in order, as written (non-finite numbers are texts)."""
        for _, line in lines(self.journal_path):
            with contextlib.suppress(ValueError, RecursionError):
                entry = json.loads(line.decode("utf-8"))
                if isinstance(entry, dict):
                    yield entry


class Journal:
    """The writer of one attempt, a context manager; each method returns when its lines are written."""

    def __init__(self, folder: RunFolder | str | os.PathLike[str], attempt: int = 1) -> None:
        access.refuse("nothing can be recorded")
        self.path = (folder if isinstance(folder, RunFolder) else RunFolder(folder)).journal_path
        self.attempt = attempt
        flags = os.O_APPEND | os.O_CREAT | os.O_RDWR
        for name in ("O_BINARY", "O_CLOEXEC", "O_NOFOLLOW"):  # never write through a link
            flags |= getattr(os, name, 0)
        self._file = os.open(self.path, flags, 0o644)
        size = os.lseek(self._file, 0, os.SEEK_END)
        if size:  # if an earlier attempt was killed within a line, end that line first
            os.lseek(self._file, size - 1, os.SEEK_SET)
            self._torn = os.read(self._file, 1) != b"\n"
        else:
            self._torn = False

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the journal cannot be written to afterwards."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def points(self, phase: str, step: int, values: Mapping[str, float]) -> None:
        """Named scalars of one step."""
        self._append("points", phase, step, {"values": values})

    def layers(self, phase: str, step: int, values: Mapping[str, Sequence[float]]) -> None:
        """Named per-layer series of one step; the position in a list is the layer."""
        self._append("layers", phase, step, {"values": values})

    def score(
        self, phase: str, step: int, *, evaluation: str, metric: str, split: str, score: float, n: int, stderr: float
    ) -> None:
        """One metric of one evaluation on one split, over `n` examples."""
        rest = {"evaluation": evaluation, "metric": metric, "split": split, "score": score, "n": n, "stderr": stderr}
        self._append("score", phase, step, rest)

    def examples(
        self, phase: str, step: int, *, evaluation: str, split: str, rows: Sequence[Mapping[str, Any]]
    ) -> None:
        """The rows behind a score: `id`, `prompt`, `answer`, `expected`, `score`. Long lists take several lines."""
        part: list[Mapping[str, Any]] = []
        length = 0
        for row in rows:
            size = sum(len(str(v)) for v in row.values())
            if part and length + size > LARGEST_LINE // 96:  # escaped, a character takes up to 6 bytes: 1/16 of a line
                self._append("examples", phase, step, {"evaluation": evaluation, "split": split, "rows": part})
                part, length = [], 0
            part.append(row)
            length += size
        if part:
            self._append("examples", phase, step, {"evaluation": evaluation, "split": split, "rows": part})

    def checkpoint(self, phase: str, step: int, *, path: str, sha256: str, bytes: int) -> None:
        """A finished checkpoint, by its path inside the run folder; on the disk when this returns."""
        self._append("checkpoint", phase, step, {"path": path, "sha256": sha256, "bytes": bytes})
        os.fsync(self._file)

    def event(self, event: str, **data: Any) -> None:
        """Something that happened once. `resumed` takes `phase` and `from_step`, the last step that still counts."""
        rest = {"event": event, "data": data}
        self._append("event", str(data.get("phase", "")), int(data.get("from_step", data.get("step", 0)) or 0), rest)
        os.fsync(self._file)

    def _append(self, kind: str, phase: str, step: int, rest: dict[str, Any]) -> None:
        now = round(time.time(), 3)
        entry = {"kind": kind, "attempt": self.attempt, "phase": phase, "step": step, "at": now, **rest}
        try:
            text = _encode(entry)
        except (ValueError, TypeError):  # rare: a non-finite number, or a scalar that is not a Python float
            text = _encode(strict(entry))
        line = text.encode("ascii") + b"\n"
        if self._torn:
            line = b"\n" + line
        written = os.write(self._file, line)
        self._torn = written != len(line)
        if self._torn:  # a regular file takes the whole line unless the disk is full
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))


def folders(home: Path) -> list[RunFolder]:
    """Every run folder of a home, oldest id first; links, drafts and other folders are left out."""
    try:
        with os.scandir(home / "runs") as entries:
            found = [e.path for e in entries if RUN_ID.match(e.name) and e.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [RunFolder(path) for path in sorted(found)]


def lines(path: Path, start: int = 0, most: int = 1 << 62) -> Iterator[tuple[int, bytes]]:
    """(position, line without its newline) of the whole lines from byte `start`, stopping after about `most` bytes.

    An unfinished last line is not yielded. A line longer than `LARGEST_LINE` comes in pieces of that size, which no
    parser accepts, so a hostile file can't fill the memory.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # no links, no waiting on pipes
    flags |= getattr(os, "O_BINARY", 0)
    try:
        file = open(path, "rb", opener=lambda name, _: os.open(name, flags))  # noqa: SIM115 - closed by `with` below
    except FileNotFoundError:
        return
    with file:
        file.seek(start)
        position = start
        while position - start < most:
            line = file.readline(LARGEST_LINE)
            if not line.endswith(b"\n") and len(line) < LARGEST_LINE:
                return
            yield position, line.removesuffix(b"\n")
            position += len(line)
