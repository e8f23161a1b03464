"""Workers forked from a process that has torch and the experiment loaded: they start in a moment.

Importing torch and transformers takes a worker longer than a short attack takes to its first score. One such process
(`warm_process`) serves a home; where there is no fork, ordinary workers are started.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from immunelab.jobs import processes
from immunelab.runs.status import replace_file

COMMAND = (sys.executable, "-P", "-m", "immunelab.jobs.warm_process")
WARM = "IMMUNELAB_WARM"  # 0: never
ANSWER = 2.0  # seconds that a page waits for it


def possible() -> bool:
    """Whether this system can fork a process that has torch loaded (on macOS that is not safe)."""
    return sys.platform == "linux" and os.environ.get(WARM) != "0"


def start(home: Path, run_ids: Sequence[str], log: Path, workers: int) -> list[tuple[int, float]]:
    """Workers for these runs from the warm process of this home: process ids and start times; none where it can't be.

    If it is only now started, or still loading, it is named itself, and names its workers when it has them. Call it
    inside `processes.changing`.
    """
    if not possible():
        return []
    wanted = {"runs": list(run_ids), "log": str(log), "workers": workers, "code": code(), "env": dict(os.environ)}
    try:
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(ANSWER)
            line.connect(str(address(home)))
            line.sendall(json.dumps(wanted).encode() + b"\n")
            with line.makefile() as answer:
                return [(pid, since) for pid, since in json.loads(answer.readline() or "[]")]
    except (OSError, ValueError):
        pass
    serving = begin(home)
    if serving:
        place = requests(home)
        place.mkdir(exist_ok=True)
        replace_file(place / f"{time.time_ns()}.json", json.dumps(wanted))
    return [serving] * workers if serving else []


def begin(home: Path) -> tuple[int, float] | None:
    """Start the warm process of this home, if there is none: its process id and start time. Call it inside
    `processes.changing`."""
    if not possible():
        return None
    named = home / "locks" / "warm.json"
    with contextlib.suppress(OSError, ValueError):
        pid, since = json.loads(named.read_text(encoding="utf-8"))
        if processes.process(pid, since):
            return pid, since
    child = processes.detached([*COMMAND, str(home)], home / "locks" / "warm.log")
    since = processes.born(child.pid)
    if since is None:
        return None
    replace_file(named, json.dumps([child.pid, since]))
    return child.pid, since


def requests(home: Path) -> Path:
    """Where runs wait while the warm process loads."""
    return home / "locks" / "warm"


def address(home: Path) -> Path:
    """Where it is asked: a socket in a folder that only this user can enter, because a home's path may be too long."""
    folder = Path(tempfile.gettempdir()) / f"immunelab-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    state = folder.lstat()
    if state.st_uid != os.getuid() or state.st_mode & 0o077 or not folder.is_dir() or folder.is_symlink():
        raise OSError(f"{folder} is not this user's alone")
    return folder / f"{hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:24]}.sock"


def code() -> float:
    """When the package's code changed last."""
    return max(path.stat().st_mtime for path in (processes.PACKAGE / "immunelab").rglob("*.py"))
