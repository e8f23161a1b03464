"""A process that has torch and the experiment loaded, and becomes workers by forking: they start in a moment.

Importing torch and transformers takes a worker longer than a short attack takes to its first score. One such process
serves a home; it never computes anything itself, so that its workers start clean, and it ends when it was idle for a
while, or when the code has changed since. Where there is no fork, ordinary workers are started.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib
import json
import os
import pkgutil
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from immunelab import corpus
from immunelab.errors import UserError
from immunelab.jobs import processes, queue
from immunelab.runs import journal
from immunelab.runs.journal import RunFolder
from immunelab.runs.status import replace_file

COMMAND = (sys.executable, "-P", "-m", "immunelab.jobs.warm")
WARM = "IMMUNELAB_WARM"  # 0: never
IDLE = 300.0  # seconds without a request after which it ends
ANSWER = 2.0  # seconds that a page waits for it
LOADED = (  # what a run imports before its first step, much of it late
    "torch",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.generation.utils",
    "transformers.integrations",
    "immunelab.experiment.run",
    "immunelab.training.models",
    "immunelab.training.loop",
)


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
    wanted = {"runs": list(run_ids), "log": str(log), "workers": workers, "code": _code(), "env": dict(os.environ)}
    try:
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(ANSWER)
            line.connect(str(_address(home)))
            line.sendall(json.dumps(wanted).encode() + b"\n")
            with line.makefile() as answer:
                return [(pid, since) for pid, since in json.loads(answer.readline() or "[]")]
    except (OSError, ValueError):
        pass
    serving = begin(home)
    if serving:
        place = _requests(home)
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


def serve(home: Path) -> int:
    """What the warm process does; 0 when it was idle for long enough."""
    processes.yield_to_others()
    while not _waiting(home) and (queue.holders(home, "cpu") or queue.tickets(home, "cpu")):
        time.sleep(0.5)  # the runs at hand need the processor more
    code, address = _code(), _address(home)
    _load()
    address.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(address))
        door.listen()
        door.settimeout(0.5)
        idle = time.monotonic()
        while True:
            for request in _waiting(home):
                _name_workers(home, request, door)
                idle = time.monotonic()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG) != (0, 0):
                    idle = time.monotonic()
            with contextlib.suppress(TimeoutError, OSError, ValueError, KeyError):
                caller, _ = door.accept()
                with caller, caller.makefile("rw") as line:
                    asked = json.loads(line.readline())
                    started = _fork(home, asked, [door, caller]) if asked["code"] == code else []
                    line.write(json.dumps(started) + "\n")
                idle = time.monotonic()
            if (time.monotonic() - idle > IDLE or _code() != code or not home.is_dir()) and _end(home, address):
                return 0


def _waiting(home: Path) -> list[Path]:
    return sorted(_requests(home).glob("*.json"))


def _requests(home: Path) -> Path:
    """Where runs wait while the warm process loads."""
    return home / "locks" / "warm"


def _name_workers(home: Path, request: Path, door: socket.socket) -> None:
    """Fork the workers of a request that came while we loaded; its runs name us, and from now on them."""
    asked = json.loads(request.read_text(encoding="utf-8"))
    request.unlink()
    with processes.changing(home):
        started = _fork(home, asked, [door])
        folders = [RunFolder(home / "runs" / run_id) for run_id in asked["runs"]]
        here = [f for f in folders if f.path.is_dir() and f.recorded().pid == os.getpid()]
        processes.name_carriers(here, started)


def _end(home: Path, address: Path) -> bool:
    """Whether this process may end: nobody has asked it for anything meanwhile."""
    if not home.is_dir():
        return True
    with processes.changing(home):
        if _waiting(home):
            return False
        address.unlink(missing_ok=True)
        (home / "locks" / "warm.json").unlink(missing_ok=True)
        return True


def _fork(home: Path, asked: Mapping[str, Any], inherited: Sequence[socket.socket]) -> list[tuple[int, float]]:
    started = []
    for _ in range(int(asked["workers"])):
        pid = os.fork()
        if not pid:
            _be_a_worker(home, asked, inherited)
        since = processes.born(pid)
        if since is not None:
            started.append((pid, since))
    return started


def _be_a_worker(home: Path, asked: Mapping[str, Any], inherited: Sequence[socket.socket]) -> None:
    """In a forked process: carry the runs out, and end. Never returns."""
    code = 1
    try:
        os.setsid()
        for line in inherited:
            os.close(line.detach())
        log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.clear()
        os.environ.update(asked["env"])
        random.seed()
        from immunelab.jobs.worker import work

        code = work(asked["runs"], home)
    except UserError as error:
        sys.stderr.write(f"{error}\n")  # into the run's log, as an ordinary worker does
    except BaseException:  # noqa: BLE001 - nothing above may be gone on with in this process
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _load() -> None:
    """Import what runs import, and read the bundled world. Nothing may be computed: threads don't survive a fork."""
    for name in LOADED:
        importlib.import_module(name)
    for room in ("attacks", "defenses", "evaluations"):
        package = importlib.import_module(f"immunelab.{room}")
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    _ = corpus.load("fable").fingerprint
    gc.collect()
    gc.freeze()  # forked workers then share these pages


def _address(home: Path) -> Path:
    """Where it is asked: a socket in a folder that only this user can enter, because a home's path may be too long."""
    folder = Path(tempfile.gettempdir()) / f"immunelab-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    state = folder.lstat()
    if state.st_uid != os.getuid() or state.st_mode & 0o077 or not folder.is_dir() or folder.is_symlink():
        raise OSError(f"{folder} is not this user's alone")
    return folder / f"{hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:24]}.sock"


def _code() -> float:
    """When the package's code changed last."""
    return max(path.stat().st_mtime for path in (processes.PACKAGE / "immunelab").rglob("*.py"))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.exit(serve(journal.home(sys.argv[1])))
