"""Which devices there are, and whose turn it is on each: a file lock per device, in the order of tickets.

The lock is held before torch is imported, and the operating system frees it when its holder dies, however it dies.
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

from immunelab.errors import UserError, unknown
from immunelab.jobs import processes
from immunelab.runs.status import replace_file

POLL = 0.2  # seconds
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
        return min(alike, key=lambda d: len(tickets(home, d))) if home else alike[0]
    if not DEVICE.match(wanted):
        raise unknown("device", wanted, ["auto", *have])
    device = "cuda:0" if wanted == "cuda" else wanted
    if device.startswith("cuda") and not _torch_has_cuda():
        raise UserError(
            f"The run asks for {wanted}, and the installed torch is a build without CUDA. Use --device cpu, or install "
            "a CUDA build (the README says how)."
        )
    return device


def tickets(home: Path, device: str) -> list[Path]:
    """The tickets of living processes for a device, first come first; those of dead ones are dropped."""
    standing = []
    for ticket in sorted(_place(home, device).glob("*.json")):
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
            ticket.unlink(missing_ok=True)
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


def standing(home: Path, run_id: str) -> tuple[str, Path] | None:
    """The device and the ticket with which a run stands in line already."""
    for ticket in lines(home).glob(f"device-*/*-{run_id}.json"):
        return ticket.parent.name.removeprefix("device-").replace("-", ":"), ticket
    return None


@contextlib.contextmanager
def turn(home: Path, device: str, ticket: Path, waiting: Callable[[int], None]) -> Iterator[None]:
    """Hold a device. Until then `waiting(runs ahead)` is called a few times a second, and may raise to give up."""
    lock = filelock.FileLock(_place(home, device).with_suffix(".lock"), timeout=0)
    try:
        while True:
            order = tickets(home, device)
            ahead = order.index(ticket) if ticket in order else 0
            if not ahead:
                with contextlib.suppress(filelock.Timeout):
                    lock.acquire()
                    break
            waiting(max(1, ahead))
            time.sleep(POLL)
        yield
    finally:
        ticket.unlink(missing_ok=True)
        lock.release()


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
