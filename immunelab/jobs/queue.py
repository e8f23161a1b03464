"""Which devices there are, and whose turn it is on each: a file lock per place, in the order of tickets.

A GPU is one place, a CPU as many as it has cores: runs of small models compute with one thread and go side by side, a
run of a large model takes all places of the CPU. Locks are held before torch is imported, and the operating system
frees them when their holder dies, however it dies.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import psutil

from immunelab.errors import UserError, unknown
from immunelab.jobs import processes
from immunelab.runs.status import replace_file

POLL = 0.2  # seconds
PLACES = "IMMUNELAB_PLACES"  # how many runs may go side by side on the CPU; unset: one a core
LINE = "IMMUNELAB_LINE"  # set in a cluster's job: it has its devices to itself, and stands in a line of its own
DEVICE = re.compile(r"^(cpu|mps|cuda(:\d{1,2})?)$")
# What torch/version.py says of a build that can use a GPU; reading it takes no import.
CUDA_BUILD = re.compile(r"^(?:cuda|hip)\b[^=\n]*=\s*['\"]", re.MULTILINE)


def devices() -> list[str]:
    """The devices of this machine that the installed torch can use, best first: `cuda:0` …, `mps`, `cpu`. No torch."""
    found = [f"cuda:{i}" for i in range(_gpus())] if _torch_has_cuda() else []
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        found.append("mps")
    return [*found, "cpu"]


def resolve_device(wanted: str = "auto", home: Path | None = None) -> str:
    """`auto` is the device with the fewest runs waiting among the best kind; others are checked for their form.

    A UserError names what does not exist. A GPU that only torch can see (say, through a container) is taken as asked.
    """
    have = devices()
    if wanted == "auto":
        kind = have[0].split(":")[0]
        alike = [d for d in have if d.split(":")[0] == kind]
        return min(alike, key=lambda d: len(tickets(home, d)) + len(holders(home, d))) if home else alike[0]
    if not DEVICE.match(wanted):
        raise unknown("device", wanted, ["auto", *have])
    device = "cuda:0" if wanted == "cuda" else wanted
    if device.startswith("cuda") and not _torch_has_cuda():
        raise UserError(
            f"The run asks for {wanted}, and the installed torch is a build without CUDA. Use --device cpu, or install "
            "a CUDA build (the README says how)."
        )
    return device


def places(device: str) -> int:
    """How many runs may go side by side on a device; a UserError if IMMUNELAB_PLACES is no number."""
    if device != "cpu":
        return 1
    wanted = os.environ.get(PLACES, "")
    if not wanted:
        return cores()
    if not (wanted.isascii() and wanted.isdigit() and int(wanted)):
        raise UserError(f"{PLACES} is how many runs may go side by side on the CPU, from 1, and got {wanted!r:.40}.")
    return int(wanted)


def cores() -> int:
    """How many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def tickets(home: Path, device: str) -> list[Path]:
    """The tickets of living processes that wait for a device, first come first; those of dead ones are dropped."""
    return [ticket for ticket in _living(_place(home, device)) if not _mark(ticket).exists()]


def holders(home: Path, device: str) -> list[Path]:
    """The tickets of living processes that hold a place of a device."""
    return [ticket for ticket in _living(_place(home, device)) if _mark(ticket).exists()]


def _mark(ticket: Path) -> Path:
    """What stands beside a ticket while it holds a place."""
    return ticket.with_suffix(".held")


def _living(place: Path, pattern: str = "*.json") -> list[Path]:
    standing = []
    for ticket in sorted(place.glob(pattern)):
        try:
            holder = json.loads(ticket.read_text(encoding="utf-8"))
            living = processes.process(holder["pid"], holder["create_time"]) is not None
        except FileNotFoundError:
            continue
        except (ValueError, TypeError, KeyError):
            living = False
        if living:
            standing.append(ticket)
        else:
            leave(ticket)
    return standing


def join(home: Path, device: str, run_id: str, since: float, holder: tuple[int, float | None] | None = None) -> Path:
    """Put up a ticket for a run queued at `since`; earlier tickets go first.

    It counts while its holder (process id and start time; None is this process) lives.
    """
    place = _place(home, device)
    place.mkdir(parents=True, exist_ok=True)
    ticket = place / f"{int(since * 1e6):020d}-{run_id}.json"
    me = processes.own()
    pid, born = holder or (me["pid"], me["create_time"])
    replace_file(ticket, json.dumps({"pid": pid, "create_time": born}))
    return ticket


def ticket_of(home: Path, run_id: str, ours: bool = True) -> tuple[str, Path] | None:
    """The device and the ticket with which a living process stands in line for a run, or carries it.

    `ours` False: only where that is another process than this one.
    """
    for place in lines(home).glob("device-*/"):
        for ticket in _living(place, f"*-{run_id}.json"):
            if ours or json.loads(ticket.read_text(encoding="utf-8"))["pid"] not in (os.getpid(), os.getppid()):
                return place.name.removeprefix("device-").replace("-", ":"), ticket
    return None


def leave(ticket: Path) -> None:
    """Give up a ticket, or the place that it stands for."""
    _mark(ticket).unlink(missing_ok=True)
    ticket.unlink(missing_ok=True)


@contextlib.contextmanager
def turn(
    home: Path, device: str, ticket: Path, waiting: Callable[[int], None], share: int = 1, memory: int = 0
) -> Iterator[None]:
    """Hold `share` places of a device, or all it has. The first in line goes first, however much it asks for.

    It starts beside others only where `memory` bytes are free. Until then `waiting(runs before it)` is called a few
    times a second, and may raise to give up.
    """
    share = min(share, places(device))
    with contextlib.ExitStack() as locks:
        try:
            while True:
                order, beside = tickets(home, device), len(holders(home, device))
                ahead = order.index(ticket) if ticket in order else 0
                room = not beside or psutil.virtual_memory().available >= memory
                if not ahead and room and _hold(home, device, share, locks):
                    break
                waiting(max(1, ahead + beside - places(device) + 1))
                time.sleep(POLL)
            _mark(ticket).touch()
            yield
        finally:
            leave(ticket)


def _hold(home: Path, device: str, share: int, into: contextlib.ExitStack) -> bool:
    """Take the locks of `share` free places, to be given back by `into`; none where there are fewer."""
    with contextlib.ExitStack() as locks:
        found = 0
        for i in range(places(device)):
            lock = filelock.FileLock(_place(home, device).with_suffix(f".{i}.lock"), timeout=0)
            with contextlib.suppress(filelock.Timeout):
                locks.enter_context(lock)
                found += 1
            if found == share:
                into.enter_context(locks.pop_all())
                return True
    return False


def _place(home: Path, device: str) -> Path:
    return lines(home) / f"device-{device.replace(':', '-')}"


def lines(home: Path, job: str | None = None) -> Path:
    """Where the lines for devices are kept: of this machine, or of a cluster's job (None: the one that this is in)."""
    job = os.environ.get(LINE, "") if job is None else job
    return home / "locks" / "lines" / job if job else home / "locks"


def _torch_has_cuda() -> bool:
    spec = importlib.util.find_spec("torch")  # finds the package, does not import it
    if not spec or not spec.origin:
        return False
    try:
        text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return False
    return bool(CUDA_BUILD.search(text))


def _gpus() -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([part for part in visible.split(",") if part.strip() not in ("", "-1")])
    listed = Path("/proc/driver/nvidia/gpus")
    if listed.is_dir():
        return len(list(listed.iterdir()))
    tool = shutil.which("nvidia-smi")
    if not tool:
        return 0
    try:
        answer = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in answer.stdout.splitlines())
