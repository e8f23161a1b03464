"""The process that has torch loaded and becomes workers by forking: `python -m immunelab.jobs.warm_process HOME`.

It never computes anything itself, so that its workers start clean. It ends when it was idle for a while, or when the
code has changed since.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import random
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from immunelab import corpus
from immunelab.errors import UserError
from immunelab.jobs import processes, queue, warm
from immunelab.jobs.worker import work
from immunelab.runs import journal
from immunelab.runs.journal import RunFolder

IDLE = 300.0  # seconds without a request after which it ends
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


def serve(home: Path) -> int:
    """What the warm process does; 0 when it was idle for long enough."""
    processes.yield_to_others()
    while not _waiting(home) and (queue.holders(home, "cpu") or queue.tickets(home, "cpu")):
        time.sleep(0.5)  # the runs at hand need the processor more
    code, address = warm.code(), warm.address(home)
    try:
        _load()
    except Exception:  # noqa: BLE001 - an ordinary worker tells each run what is wrong
        traceback.print_exc()
        for request in _waiting(home):
            _name_workers(home, request)
        return 1
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
            if (time.monotonic() - idle > IDLE or warm.code() != code or not home.is_dir()) and _end(home, address):
                return 0


def _waiting(home: Path) -> list[Path]:
    return sorted(warm.requests(home).glob("*.json"))


def _name_workers(home: Path, request: Path, door: socket.socket | None = None) -> None:
    """Start the workers of a request that came while we loaded; its runs name us, and from now on them.

    They are forked; without a `door` nothing could be loaded, and they are ordinary ones. Runs that name another
    process are left alone: that request was made of one that has died, and its runs are interrupted.
    """
    with contextlib.suppress(UserError), processes.changing(home):  # where others hold the lock, the next look does it
        asked = json.loads(request.read_text(encoding="utf-8"))
        folders = [RunFolder(home / "runs" / run_id) for run_id in asked["runs"]]
        ours = [f for f in folders if f.path.is_dir() and f.recorded().pid == os.getpid()]
        if ours and door:
            wanted = {**asked, "runs": [f.run_id for f in ours]}
            processes.name_carriers(ours, _fork(home, wanted, [door]))
        elif ours:
            processes.start(home, ours, None, asked["workers"])
        request.unlink()


def _end(home: Path, address: Path) -> bool:
    """Whether this process may end: nobody has asked it for anything meanwhile."""
    if not home.is_dir():
        return True
    with contextlib.suppress(UserError), processes.changing(home):
        if not _waiting(home):
            address.unlink(missing_ok=True)
            (home / "locks" / "warm.json").unlink(missing_ok=True)
            return True
    return False


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
        code = work(asked["runs"], home)
    except UserError as error:
        sys.stderr.write(f"{error}\n")  # into the run's log, as an ordinary worker does
    except BaseException:  # noqa: BLE001 - nothing above may be gone on with in this process
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


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.exit(serve(journal.home(sys.argv[1])))
