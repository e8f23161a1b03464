"""How much slower a step gets when something else uses the machine, by how a worker computes and waits.

    python benchmarks/neighbor.py --steps 200

Attacks the bundled model in worker processes as the lab starts them, on a quiet machine and beside one process that
never rests: with one thread (what the lab chooses for small models), with all cores waiting passively, and with all
cores spinning while they wait, as OpenMP does by itself. Then two runs side by side. Prints and records the median
seconds of a step over the last three quarters of each run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from immunelab import jobs
from immunelab.jobs import queue
from immunelab.runs.journal import RunFolder
from immunelab.runs.spec import RunSpec
from immunelab.sweep import plan

RESULTS = Path(__file__).parent / "results" / "neighbor.json"
MODES = {
    "one thread": {},
    "all cores, passive": {"IMMUNELAB_THREADS": str(queue.cores())},
    "all cores, spinning": {"IMMUNELAB_THREADS": str(queue.cores()), "OMP_WAIT_POLICY": "active"},
}


@contextlib.contextmanager
def neighbors(count: int) -> Iterator[None]:
    """Processes that never rest."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def specs(count: int, steps: int) -> list[RunSpec]:
    """Attacks at one rung, without evaluations between the first and the last step, and without probes."""
    choice = plan.choose("attack", "harmful-sft", rung="0.0003", knobs={"steps": steps})
    return [plan.one(choice, seed=seed, evaluate_every=0, probe_every=0, layers_every=0) for seed in range(count)]


def seconds(count: int, steps: int, more: dict[str, str]) -> float:
    """Median seconds of a step of `count` runs side by side in a home of their own."""
    with tempfile.TemporaryDirectory() as home:
        before = dict(os.environ)
        os.environ.update(more)
        try:
            ids = jobs.submit(specs(count, steps), home)
        finally:
            os.environ.clear()
            os.environ.update(before)
        folders = [RunFolder.open(Path(home), run_id) for run_id in ids]
        while not all(folder.status().ended for folder in folders):
            time.sleep(0.2)
        found = [step for folder in folders for step in _steps(folder)[steps // 4 :]]
    return statistics.median(found)


def _steps(folder: RunFolder) -> list[float]:
    status = folder.status()
    if status.status != "done":
        raise SystemExit(f"{folder.run_id} {status.status}: {status.error}")
    values = [line["values"] for line in folder.entries() if line.get("kind") == "points"]
    return [found["time/step_seconds"] for found in values if "time/step_seconds" in found]


def main() -> None:
    """Measure each way of computing, quiet and beside a busy process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps
    rows = []
    for name, more in MODES.items():
        for count in (1, 2) if name == "one thread" else (1,):
            for busy in (0, 1):
                with neighbors(busy):
                    took = seconds(count, steps, more)
                rows.append({"mode": name, "runs": count, "busy": busy, "step_ms": round(1000 * took, 1)})
                print(rows[-1], flush=True)
    RESULTS.write_text(json.dumps({"cores": queue.cores(), "steps": steps, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
