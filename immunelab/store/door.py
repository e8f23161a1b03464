"""The one door to the database: every opening and closing in this process happens here, under one mutex.

DuckDB lets one process write or several read, never both, and POSIX drops a process's lock on a file when any of its
threads closes that file. So nothing holds the file open: each operation opens it, works, and closes it again.
"""

from __future__ import annotations

import contextlib
import random
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import psutil

from immunelab.errors import UserError

Settings = dict[str, str | bool | int | float | list[str]]
READ_WAIT = 2.0  # seconds that a page may wait
SETTINGS: Settings = {  # queries can read nothing but this database, and nothing is ever downloaded
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
}
FORMAT: Settings = {
    "storage_compatibility_version": "v1.5.0"
}  # a file in the default format of 2.0 can't be read by 1.5
_mutex = threading.Lock()


class Busy(UserError):
    """Another process, or another part of this one, holds the database open."""


@contextlib.contextmanager
def alone(wait: float, path: Path) -> Iterator[None]:
    """No thread of this process opens a database meanwhile. Busy after `wait` seconds."""
    if not _mutex.acquire(timeout=max(wait, 0.0)):
        raise Busy(f"The database {path} is in use by another query of this process; try again in a moment.")
    try:
        yield
    finally:
        _mutex.release()


@contextlib.contextmanager
def reading(path: Path, wait: float = READ_WAIT, memory: str = "") -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that can read this database and nothing else. Busy after `wait` seconds.

    With `memory` (such as "1GB") queries get no more than that, and can't fill the disk in its place.
    """
    deadline = time.monotonic() + wait
    with alone(wait, path), contextlib.closing(_connect(path, deadline, read_only=True)) as connection:
        connection.execute("SET python_enable_replacements = false")  # SQL can't name this process's variables
        if memory:
            connection.execute(f"SET memory_limit = '{memory}'")
            connection.execute("SET max_temp_directory_size = '0KB'")
        connection.execute("SET lock_configuration = true")
        yield connection


@contextlib.contextmanager
def writing(path: Path, wait: float) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection inside one transaction: committed at the end, rolled back if an exception passes."""
    deadline = time.monotonic() + wait
    with alone(wait, path), contextlib.closing(_connect(path, deadline, read_only=False)) as connection:
        connection.execute("BEGIN")
        try:
            yield connection
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")


def _connect(path: Path, deadline: float, read_only: bool) -> duckdb.DuckDBPyConnection:
    settings = SETTINGS if read_only else SETTINGS | FORMAT
    while True:
        try:
            return duckdb.connect(str(path), read_only=read_only, config=settings)
        except duckdb.ConnectionException as error:
            if "different configuration" not in str(error):
                raise
            holder = "This process itself"  # a notebook cell that called duckdb.connect on the file
        except duckdb.IOException as error:
            text = str(error)
            if "lock" not in text.lower() and "being used by another process" not in text:
                raise UserError(_unusable(path, text)) from None
            holder = _holder(text)
        except duckdb.Error as error:
            raise UserError(_unusable(path, str(error))) from None
        if time.monotonic() > deadline:
            raise Busy(
                f"{holder} holds the database {path} open. Close the connection there and try again; "
                "runs go on meanwhile and nothing is lost."
            )
        time.sleep(random.uniform(0.003, 0.015))


def _holder(message: str) -> str:
    """Who holds the file, by the process id in DuckDB's message."""
    found = re.search(r"PID (\d+)", message)
    if not found:
        return "Another process"
    try:
        return f"Process {found[1]} ({psutil.Process(int(found[1])).name()})"
    except psutil.Error:
        return f"Process {found[1]}"


def _unusable(path: Path, message: str) -> str:
    first = message.strip().splitlines()[0].removeprefix("IO Error: ")
    hint = (
        "`immunelab store rebuild` makes it again from the journals"
        if "not a valid DuckDB" in message or "orrupt" in message or "erializ" in message
        else "check the folder's permissions and free space, or choose another with IMMUNELAB_HOME"
    )
    return f"The database {path} cannot be opened: {first.rstrip('.')}; {hint}."
