"""A worker whose runs only pretend: `python pretend_worker.py RUN_ID… --home PATH`. A spec's name says how.

A run called "held at 3" stays at its third step until it is asked to stop or the home has a file `go`."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from immunelab.errors import UserError
from immunelab.jobs import work
from immunelab.runs.journal import Journal, RunFolder

SLOW = 0.02  # seconds a step


class OutOfMemoryError(RuntimeError):
    """As torch calls it."""


def fail(name: str) -> None:
    """The failures that a run may meet."""
    failures: dict[str, Any] = {
        "boom": ValueError("boom"),
        "sentence": UserError("non-finite loss/total at step 12 (nan): lower the learning rate or clip."),
        "memory": OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        "host-memory": MemoryError(),
        "full": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x/model.safetensors"),
        "forbidden": PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/x"),
        "exit": SystemExit(3),
    }
    if name in failures:
        raise failures[name]


def execute(folder: RunFolder, attempt: int, resume: bool) -> str:
    """Count to the number of steps, with a checkpoint at each stop, and go on from it."""
    spec = folder.spec()
    print("hello from", folder.run_id)
    subprocess.run([sys.executable, "-c", "print('hello from a child')"], check=True)
    fail(spec.name)
    if spec.name == "wrong":
        return "perhaps"
    saved = sorted(folder.checkpoints.glob("step-*"))
    first = int(saved[-1].name.removeprefix("step-")) if resume and saved else 0
    steps, home = int(spec.knobs["steps"]), folder.path.parents[1]
    with Journal(folder, attempt) as journal:
        journal.event("resumed" if first else "started", from_step=first)
        for step in range(first + 1, steps + 1):
            journal.points(spec.kind, step, {"loss/total": float(step)})
            folder.write_status(phase=spec.kind, step=step, steps=steps, progress=step / steps)
            time.sleep(SLOW)
            if step % 10 == 0 or step == steps:
                (folder.checkpoints / f"step-{step:06d}").mkdir()
            while spec.name == "hang":
                time.sleep(1)
            while spec.name == f"held at {step}" and not ((home / "go").exists() or folder.stop_requested()):
                time.sleep(SLOW)
            if folder.stop_requested():
                (folder.checkpoints / f"step-{step:06d}").mkdir(exist_ok=True)
                return "stopped"
    return "done"


if __name__ == "__main__":
    at = sys.argv.index("--home")
    sys.exit(work(sys.argv[1:at], sys.argv[at + 1], execute=execute))
