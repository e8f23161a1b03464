"""New files and folders that are there whole or not at all. Standard library."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from immunelab.errors import UserError


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write into, which appears at `path` at the end if nothing was raised. A UserError if something is
    there already, or if it can't be written."""
    if path.exists() or path.is_symlink():
        raise UserError(f"{path} exists already: name a new folder.")
    with _beside(path) as draft:
        folder = draft / "whole"
        folder.mkdir()
        yield folder
        folder.replace(path)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A place to write a file to, which appears at `path` at the end, in place of one that was there, if nothing was
    raised. A UserError if `path` is a folder, or if it can't be written."""
    if path.is_dir():
        raise UserError(f"{path} is a folder that exists: name a file.")
    with _beside(path) as draft:
        yield draft / path.name
        (draft / path.name).replace(path)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".immunelab-") as draft:
            yield Path(draft)
    except OSError as error:
        raise UserError(f"{path} can't be written: {error.strerror or error}.") from None
