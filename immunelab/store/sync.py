"""`Store`: the database of a home, made from the run folders. It can be thrown away and rebuilt at any time."""

from __future__ import annotations

import contextlib
import random
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import filelock
import pyarrow as pa

from immunelab import bundled
from immunelab.errors import UserError
from immunelab.runs import journal
from immunelab.store import door, folders, migrations, question, showcase, tables
from immunelab.store.ingest import Rows

if TYPE_CHECKING:
    import pandas as pd

EVERY = 1.0  # seconds between two looks of one process
TICK_BYTES, CHUNK_BYTES = 4 << 20, 1 << 20  # journal bytes taken in by one tick, and of one run in it
CATCH_UP = 8 << 20  # bytes in one transaction when everything is wanted now
SKIP_AFTER, FORCE_WAIT = 0.05, 10.0  # seconds to wait for the file: a tick can be skipped, a forced sync can't
PATIENCE = 5.0  # seconds of skipped ticks before it is worth a word


class Home:
    """What the threads of a process share about one home: when it was looked at last, and what was known then."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.looked = -EVERY
        self.fine = time.monotonic()  # when a look last worked out
        self.trouble = ""
        self.known: dict[str, tables.Source] | None = None
        self.file: tuple[int, ...] = ()  # identity of the database file that `known` was read from
        self.showcase = ""  # version of the shipped runs that the file holds
        self.checked = 0  # inode of a file whose schema is the present one


_homes: dict[Path, Home] = {}


class Store:
    """The database of a home. Cheap to make; nothing is opened before it is needed, or stays open afterwards.

    `showcase_folder` holds the recorded runs that ship with the project; None takes the shipped one.
    """

    def __init__(self, home: Path | str | None = None, showcase_folder: Path | str | None = None) -> None:
        self.home = journal.home(home)
        self.path = self.home / "immunelab.duckdb"
        self.showcase_folder = bundled.showcase() if showcase_folder is None else Path(showcase_folder)
        self._home = _homes.setdefault(self.home, Home())

    def sync(self, force: bool = False, wait: float = FORCE_WAIT) -> None:
        """Take in what journals and run folders have gained. At most once a second a process, unless forced.

        Unforced it never waits and never raises: if another thread or process is at it, or holds the file, a later
        tick does it, and `trouble` says so if it lasts. Forced it catches up wholly, or raises a UserError;
        for the file it then waits `wait` seconds at most.
        """
        shared = self._home
        if not shared.lock.acquire(timeout=wait if force else 0.0):
            if force:
                raise door.Busy(f"Another thread of this process is still reading the journals of {self.home}.")
            return
        try:
            if force or time.monotonic() - shared.looked >= EVERY:
                self._catch_up(force, wait)
        finally:
            shared.lock.release()

    def _catch_up(self, force: bool, wait: float) -> None:
        """What `sync` does when it is due. Call it under the lock of the home."""
        shared = self._home
        try:
            while self._tick(CATCH_UP if force else TICK_BYTES, wait if force else SKIP_AFTER) and force:
                time.sleep(0.02)  # others want to read between two chunks
            shared.trouble, shared.fine = "", time.monotonic()
        except UserError as error:
            if force:
                raise
            if not isinstance(error, door.Busy) or time.monotonic() - shared.fine > PATIENCE:
                shared.trouble = str(error)
        finally:
            shared.looked = time.monotonic()

    @property
    def trouble(self) -> str:
        """Why what is shown may be old: a full disk, or who has held the file for over 5 s. Empty if all is well."""
        return self._home.trouble

    @property
    def revision(self) -> str:
        """Another text whenever something was taken in since; of an unchanged store the same one."""
        states = []
        for path in (self.path, _wal(self.path)):
            with contextlib.suppress(FileNotFoundError):
                state = path.stat()
                states.append(f"{state.st_mtime_ns}-{state.st_size}")
        return " ".join(states)

    @property
    def shipped(self) -> str:
        """Which version of the shipped runs was taken in."""
        return self._home.showcase

    def frame(self, sql: str, params: Sequence[Any] | Mapping[str, Any] = ()) -> pd.DataFrame:
        """A query's rows. Waits at most 2 s for the file, then a UserError names the process that holds it."""
        with self._reading() as connection:
            return connection.execute(sql, params).df()

    def rows(self, sql: str, params: Sequence[Any] | Mapping[str, Any] = ()) -> list[dict[str, Any]]:
        """As `frame`, as dictionaries: for commands that start without pandas."""
        with self._reading() as connection:
            found = connection.execute(sql, params)
            names = [column[0] for column in found.description or ()]
            return [dict(zip(names, row, strict=True)) for row in found.fetchall()]

    def arrow(self, sql: str, params: list[Any]) -> pa.Table:
        """As `frame`, as an Arrow table: NaN stays NaN and lists stay lists."""
        with self._reading() as connection:
            return connection.sql(sql, params=params).to_arrow_table()

    def query(
        self, sql: str, seconds: float = 10.0, most: int | None = None, stop: threading.Event | None = None
    ) -> pd.DataFrame:
        """A user's SQL: read-only, nothing but this database, ended after `seconds` or by `stop`. Mistakes are
        UserErrors. With `most`, one row more comes back where there are more than that, and no further ones."""
        with self._reading(question.MEMORY) as connection:
            return question.answer(connection, sql, seconds, most, stop or threading.Event())

    def rebuild(self) -> None:
        """Make the database again from the run folders alone, beside the old one, which it then replaces."""
        fresh = self.path.with_name("immunelab.rebuilt.duckdb")
        with self._home.lock, self._alone(FORCE_WAIT):
            _remove(fresh)
            try:
                with door.writing(fresh, FORCE_WAIT) as connection:
                    migrations.migrate(connection)
                    self._import_showcase(connection)
                known: dict[str, tables.Source] = {}
                more = True
                while more:
                    changed = _changed(folders.scan(self.home), known)
                    with door.writing(fresh, FORCE_WAIT) as connection:
                        more = self._take_in(connection, changed, known, [], CATCH_UP)
                _must_be_whole(fresh)
                with door.alone(FORCE_WAIT, self.path):
                    fresh.replace(self.path)
                    _wal(self.path).unlink(missing_ok=True)
            except (OSError, duckdb.Error) as error:
                reason = getattr(error, "strerror", None) or f"{error!s:.300}"
                raise UserError(f"The database in {self.home} cannot be rebuilt: {reason}.") from None
            finally:
                _remove(fresh)
                self._home.known, self._home.checked = None, 0

    def _tick(self, most: int, wait: float) -> bool:
        """One look, and one transaction if there is anything new. Returns whether there is more to take in."""
        ready = self.path.exists() and self._current(wait)
        seen = folders.scan(self.home)
        if ready and not self._news(seen, self._known(wait)):
            return False
        try:
            with self._alone(wait):
                if not ready:
                    self._prepare(wait)
                known = self._known(wait)
                changed, gone = _changed(seen, known), _gone(seen, known)
                with door.writing(self.path, wait) as connection:
                    self._import_showcase(connection)
                    more = self._take_in(connection, changed, known, gone, most)
                self._home.file = _identity(self.path)
                return more
        except BaseException as error:
            self._home.known = None  # it may be ahead of what was committed
            if isinstance(error, duckdb.Error):
                raise UserError(f"The database {self.path} could not be written: {error!s:.300}") from None
            raise

    def _news(self, seen: dict[str, folders.FileState], known: dict[str, tables.Source]) -> bool:
        new_showcase = showcase.version(self.showcase_folder) not in ("", self._home.showcase)
        return new_showcase or bool(_changed(seen, known) or _gone(seen, known))

    def _take_in(
        self,
        connection: duckdb.DuckDBPyConnection,
        changed: dict[str, folders.FileState],
        known: dict[str, tables.Source],
        gone: list[str],
        most: int,
    ) -> bool:
        """New lines, changed folders and new offsets, all in the caller's transaction. Updates `known`."""
        stored = tables.sources(connection, list(changed))  # the truth: another process may have been here since
        rows, runs, now = Rows(), [], dict[str, tables.Source]()
        left, per_run = most, most if most > TICK_BYTES else CHUNK_BYTES
        for run_id in random.sample(sorted(changed), len(changed)):  # so that no run starves behind a busy one
            folder, seen = journal.RunFolder(self.home / "runs" / run_id), changed[run_id]
            before = stored.get(run_id, tables.Source(0, 0, 0))
            if before.position > seen.size:  # shorter than what was read: not the journal that we know
                gone = [*gone, run_id]
                before = tables.Source(0, 0, 0)
            position = rows.read(folder, before.position, min(left, per_run)) if left > 0 else before.position
            left -= position - before.position
            cells = folders.row(folder)
            if cells is not None:
                runs.append(cells)
            finished = left > 0 and position - before.position < per_run
            now[run_id] = tables.Source(position, seen.size if finished else -1, seen.signature)
        tables.delete(connection, [*gone], tables.PER_RUN)
        for table, batch in rows.arrow().items():
            tables.insert(connection, table, batch)
        tables.delete(connection, [r["run_id"] for r in runs], ("runs",))
        if runs:
            tables.insert(connection, "runs", folders.as_arrow(runs))
        tables.save_sources(connection, now, rows.malformed)
        for run_id in gone:
            known.pop(run_id, None)
        known.update(now)
        return any(source.size < 0 for source in now.values())

    def _known(self, wait: float) -> dict[str, tables.Source]:
        """What has been read, from memory as long as nobody else has written the file."""
        shared = self._home
        if shared.known is None or shared.file != _identity(self.path):
            with door.reading(self.path, wait) as connection:
                shared.known = tables.sources(connection)
                shared.showcase = tables.showcase_version(connection)
                shared.file = _identity(self.path)
        return shared.known

    @contextlib.contextmanager
    def _reading(self, memory: str = "") -> Iterator[duckdb.DuckDBPyConnection]:
        if not self.path.exists() or not self._current(door.READ_WAIT):
            self.sync(force=True, wait=door.READ_WAIT)
        with door.reading(self.path, memory=memory) as connection:
            yield connection

    def _current(self, wait: float) -> bool:
        """Whether the schema is the present one; looked up once a file."""
        inode = self.path.stat().st_ino
        if self._home.checked != inode:
            with door.reading(self.path, wait) as connection:
                if not migrations.check(migrations.version(connection), self.path):
                    return False
            self._home.checked = inode
        return True

    @contextlib.contextmanager
    def _alone(self, wait: float) -> Iterator[None]:
        """No other process writes the database meanwhile."""
        locks = self.home / "locks"
        try:
            locks.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(locks / "store.lock", timeout=wait):
                yield
        except filelock.Timeout:
            raise door.Busy(f"Another process is still writing the database of {self.home}; try again.") from None
        except OSError as error:
            raise UserError(
                f"{self.home} cannot be written ({error.strerror or error}): free space, mend its permissions, or "
                "choose another folder with IMMUNELAB_HOME."
            ) from None

    def _prepare(self, wait: float) -> None:
        """A database with the present schema: a new one appears whole or not at all, an older one is copied first."""
        self._home.known = None
        if not self.path.exists():
            draft = self.path.with_name("immunelab.new.duckdb")
            _remove(draft)
            try:
                with door.writing(draft, wait) as connection:
                    migrations.migrate(connection)
                _must_be_whole(draft)
                draft.replace(self.path)
            finally:
                _remove(draft)
            return
        with door.writing(self.path, wait) as connection:  # also writes back what a crash left in the log
            found = migrations.version(connection)
        if not migrations.check(found, self.path) and found:
            with door.alone(wait, self.path):
                shutil.copy2(self.path, self.path.with_name(f"immunelab.schema-{found}.backup.duckdb"))
        with door.writing(self.path, wait) as connection:
            migrations.migrate(connection)

    def _import_showcase(self, connection: duckdb.DuckDBPyConnection) -> None:
        version = showcase.version(self.showcase_folder)
        if version and version != tables.showcase_version(connection):
            showcase.import_(connection, self.showcase_folder, version)
        self._home.showcase = version or self._home.showcase


def _changed(seen: dict[str, folders.FileState], known: dict[str, tables.Source]) -> dict[str, folders.FileState]:
    """The run folders that are not as they were. A signature of -1 was too fresh to trust: look again."""
    new = (-1, -1)
    return {
        run_id: look
        for run_id, look in seen.items()
        if look.signature == -1 or look != ((s.signature, s.size) if (s := known.get(run_id)) else new)
    }


def _gone(seen: dict[str, folders.FileState], known: dict[str, tables.Source]) -> list[str]:
    return [run_id for run_id in known if run_id not in seen]


def _identity(path: Path) -> tuple[int, ...]:
    """Which file this is, and which version of it; without opening it."""
    s = path.stat()
    return s.st_ino, s.st_size, s.st_mtime_ns


def _wal(path: Path) -> Path:
    return path.with_name(path.name + ".wal")


def _must_be_whole(path: Path) -> None:
    """A UserError if closing could not write everything into the file itself: on a full disk a log stays beside it."""
    if _wal(path).exists():
        raise UserError(f"The database {path} could not be written: the disk is full. Free some space and try again.")


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    _wal(path).unlink(missing_ok=True)
