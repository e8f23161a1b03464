"""Run folders between machines that share no disk: a whole folder as one parcel of bytes, or only what is new in it.

Parcels leave out labels and stop requests, because these belong to the run's home.
"""

from __future__ import annotations

import dataclasses
import io
import shutil
import time
import zipfile
from pathlib import Path
from typing import NamedTuple

from immunelab.errors import UserError
from immunelab.runs.journal import RunFolder
from immunelab.runs.status import Status, replace_file

STAYS = ("tags.json", "stop")
GROWS = ("journal.jsonl", "log.txt")  # files that only grow
MOST = 4 << 20  # bytes of one file in one piece of news


class News(NamedTuple):
    """What was added to a file of a run folder, from byte `at` on; of the status, the whole file."""

    name: str
    at: int
    content: bytes


def pack(folder: RunFolder) -> bytes:
    """A whole run folder with its checkpoints; not compressed, because weights hardly shrink."""
    found = io.BytesIO()
    with zipfile.ZipFile(found, "w", zipfile.ZIP_STORED, strict_timestamps=False) as parcel:
        for path in sorted(folder.path.rglob("*")):
            name = path.relative_to(folder.path)
            hidden = any(part.startswith(".") for part in name.parts)
            if not hidden and not path.is_symlink() and str(name) not in STAYS:
                parcel.write(path, name)
    return found.getvalue()


def unpack(parcel: bytes, folder: RunFolder) -> None:
    """Replace a run folder's contents by a parcel's; the status comes last, because it says that the rest is there."""
    draft = folder.path.with_name(f".parcel-{folder.run_id}")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        with zipfile.ZipFile(io.BytesIO(parcel)) as found:
            found.extractall(draft)  # zipfile itself removes what would lead out of the folder
        folder.checkpoints.mkdir(parents=True, exist_ok=True)
        for checkpoint in (draft / "checkpoints").glob("*"):
            old = folder.checkpoints / checkpoint.name
            if old.is_dir():
                shutil.rmtree(old)
            checkpoint.replace(old)
        files = [path for path in draft.iterdir() if path.is_file() and path.name not in STAYS]
        for path in sorted(files, key=lambda path: path.name == "status.json"):
            path.replace(folder.path / path.name)
    except zipfile.BadZipFile as error:
        raise UserError(f"The folder of the run {folder.run_id} came back damaged: {error}.") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


class Gazette:
    """Tells what is new in a run folder since the last call."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.told = {name: _size(folder.path / name) for name in GROWS}
        self.status = ""

    def news(self) -> list[News]:
        """Additions to journal and log, at most 4 MiB each, and the status if it has changed."""
        found = []
        for name, at in self.told.items():
            if _size(self.folder.path / name) > at:
                with (self.folder.path / name).open("rb") as file:
                    file.seek(at)
                    found.append(News(name, at, file.read(MOST)))
                self.told[name] = at + len(found[-1].content)
        status = self.folder.recorded().to_json()
        if status != self.status:
            self.status = status
            found.append(News("status.json", 0, status.encode()))
        return found


def read(folder: RunFolder, news: list[News]) -> None:
    """Write news into the home's run folder. How a run ended is only taken from its whole parcel.

    Times are this machine's, so clocks need not agree. Call it inside `jobs.processes.changing`.
    """
    if not folder.path.exists() or folder.recorded().ended:
        return
    for name, at, content in news:
        if name in GROWS and _size(folder.path / name) == at:  # else news were lost, and the parcel will bring them
            with (folder.path / name).open("ab") as file:
                file.write(content)
        elif name == "status.json":
            status = Status.from_json(content.decode(), f"{folder.run_id}/status.json")
            if not status.ended and status.heartbeat:
                there = dataclasses.replace(status, host=f"ray/{status.host}", heartbeat=time.time())
                replace_file(folder.path / "status.json", there.to_json())


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0
