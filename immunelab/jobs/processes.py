"""Worker processes: who they are, whether they live, how they are started and ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import filelock
import psutil

from immunelab.errors import UserError
from immunelab.runs import access
from immunelab.runs.journal import RunFolder, Status

SAME = 2.0  # seconds by which two readings of one process's start may differ (the boot time is an estimate)
SILENT = 120.0  # seconds without a heartbeat after which a run on another machine counts as gone
PATIENCE = 14 * 86400.0  # seconds for which a run may wait in the line of a cluster
GRACE = 3.0  # seconds between asking a process to end and ending it
HOST = socket.gethostname()
PACKAGE = Path(__file__).resolve().parents[2]  # the folder that holds immunelab
WORKER = (sys.executable, "-P", "-m", "immunelab.jobs")  # -P: a file in the working directory can't pose as a module
# OpenMP's threads spin while they wait for one another. With one busy process on the machine that makes a step twenty
# times slower: sleeping threads cost a few percent on a quiet machine.
PATIENT = {"OMP_WAIT_POLICY": "passive"}
NICER = 10  # steps down in priority at which a worker computes, so that the app answers
_children: list[subprocess.Popen[bytes]] = []
_children_lock = threading.Lock()


def own() -> dict[str, int | float | str]:
    """What a status says of the process that carries the run; this one."""
    me = psutil.Process()
    return {"pid": me.pid, "create_time": me.create_time(), "host": HOST}


def process(pid: int | None, create_time: float | None) -> psutil.Process | None:
    """The living process of that id and start time; None for a stranger, a zombie or nobody. Pids are reused."""
    if pid is None or create_time is None or pid <= 0:
        return None
    try:
        found = psutil.Process(pid)
        same = abs(found.create_time() - create_time) < SAME
        return found if same and found.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def alive(status: Status) -> bool:
    """Whether the worker that a status names is living. On another machine the heartbeat has to tell."""
    if in_line(status):
        if status.pid is not None and status.host.endswith(f":{HOST}"):
            return process(status.pid, status.create_time) is not None
        return time.time() - (status.queued_at or 0.0) < PATIENCE
    if status.host and status.host != HOST:
        last = status.heartbeat or status.queued_at or 0.0
        return time.time() - last < SILENT
    return process(status.pid, status.create_time) is not None


def alike(status: Status) -> bool:
    """Whether the living process that a status names does the same as this one: this one, or a worker of its list.

    The process that started this one may stand for it: the launcher of a Windows environment does.
    """
    other = process(status.pid, status.create_time) if status.host == HOST else None
    if other is None:
        return False
    try:
        return other.pid in (os.getpid(), os.getppid()) or other.cmdline() == psutil.Process().cmdline()
    except psutil.Error:
        return False


def in_line(status: Status) -> bool:
    """Whether a run waits in the line of a cluster, untouched by any worker.

    Its host is then `slurm:<job>`, or `ray:<machine>` with the process there that holds the line; no machine is called
    so.
    """
    return status.status == "queued" and ":" in status.host


@contextlib.contextmanager
def changing(home: Path, wait: float = 30.0) -> Iterator[None]:
    """Nobody else changes which worker carries which run meanwhile."""
    access.refuse("no run can be started, stopped or deleted")
    try:
        (home / "locks").mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(home / "locks" / "jobs.lock", timeout=wait)
        lock.acquire()
    except filelock.Timeout:
        raise UserError(f"Another process has been changing the runs of {home} for {wait:g} s; try again.") from None
    except OSError as error:
        raise UserError(
            f"{home} cannot be written ({error.strerror or error}): free space, mend its permissions, or choose "
            "another folder with IMMUNELAB_HOME."
        ) from None
    try:
        yield
    finally:
        lock.release()


def start(
    home: Path, folders: Sequence[RunFolder], command: Sequence[str] | None = None, workers: int = 1
) -> list[tuple[int, float]]:
    """Start detached workers for queued runs, and write into each run one that will carry it. Call it in `changing`.

    Each worker knows the whole list, and takes the next run that nobody has. It leads a session of its own, so a Ctrl-C
    or a closed terminal leaves it alone; its output goes to a run's log until it turns to another run. `command`
    starts a worker other than ours; run ids and `--home` are appended to it. Returns process ids and start times.
    """
    line = [*(command or WORKER), *(f.run_id for f in folders), "--home", str(home)]
    started = []
    for i in range(workers):
        child = detached(line, folders[i].log_path)
        since = born(child.pid)
        if since is not None:  # else it ended at once, and the runs read as queued by nobody, which is the truth
            started.append((child.pid, since))
    name_carriers(folders, started)
    return started


def name_carriers(folders: Sequence[RunFolder], workers: Sequence[tuple[int, float]]) -> None:
    """Write into each run one of the workers that will carry it, by process id and start time."""
    for i, folder in enumerate(folders if workers else ()):
        pid, since = workers[i % len(workers)]
        folder.write_status(pid=pid, create_time=since, host=HOST)


def born(pid: int) -> float | None:
    """When a process started; None if there is none of that id."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None


def detached(line: Sequence[str], log_path: Path, more: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own that imports this very package; its output is added to `log_path`.

    `more` are further environment variables.
    """
    access.refuse("nothing can be started")
    reap()
    package = str(PACKAGE)
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = PATIENT | dict(os.environ)
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}
    flags = 0
    if sys.platform == "win32":
        flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.DETACHED_PROCESS
    with open(log_path, "ab", opener=_no_link) as log:
        child = subprocess.Popen(
            list(line),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment | dict(more or {}),
            start_new_session=True,
            creationflags=flags,
        )
    with _children_lock:
        _children.append(child)
    return child


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o644)


def yield_to_others() -> None:
    """Lower this process's priority below that of the app and whatever else the user does."""
    with contextlib.suppress(psutil.Error, OSError):
        lower = psutil.BELOW_NORMAL_PRIORITY_CLASS if sys.platform == "win32" else NICER
        psutil.Process().nice(lower)


def reap() -> None:
    """Collect ended children, so that none stays behind as a zombie."""
    with _children_lock:
        _children[:] = [child for child in _children if child.poll() is None]


def end(pid: int | None, create_time: float | None) -> bool:
    """End a worker and all it started: ask, wait 3 s, then by force. Whether it is gone now."""
    found = process(pid, create_time)
    if found is None:
        return True
    if found.pid == os.getpid():
        return False  # a run in this very process can only be asked
    family = [found, *found.children(recursive=True)]
    _signal(found, "SIGTERM")
    _, left = psutil.wait_procs(family, timeout=GRACE, callback=None)
    if left:
        _signal(found, "SIGKILL")
        for member in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(left, timeout=GRACE)
    reap()
    return process(pid, create_time) is None


def _signal(worker: psutil.Process, name: str) -> None:
    """To the worker's whole process group where it leads one, else to the worker."""
    with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
        if sys.platform != "win32" and os.getpgid(worker.pid) == worker.pid:
            os.killpg(worker.pid, getattr(signal, name))
        elif name == "SIGTERM":
            worker.terminate()
        else:
            worker.kill()


def peak_memory() -> int | None:
    """Most bytes of main memory that this process has held; None where the system does not tell."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(most) * (1 if sys.platform == "darwin" else 1024)


def code_version() -> str:
    """The commit that this package runs from, with `-dirty` if it was changed since; empty outside a git checkout."""
    root = PACKAGE
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""  # git is not installed, or the disk is very slow
    return answer.stdout.strip()
