"""How a sweep of small runs scales on a local Ray: wall time with one worker and with two.

    python benchmarks/cluster.py --runs 6
    python benchmarks/cluster.py --runs 6 --waiting 8

Equal attacks on Fable with different seeds, each on one CPU core, in a lab of their own: carried out by the usual one
warm process of this machine, and by Ray with one slot and with two, on the same disk and apart (`--apart`). Ray's start
is timed by itself. With `--waiting` the runs load no model and wait that many seconds in steps of 20 ms: what the
executor itself costs and how it scales, where a machine's cores are busy with something else. Prints and writes
`benchmarks/results/cluster.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # one core a run, however it is carried out

import psutil

from immunelab import jobs
from immunelab.jobs import cluster
from immunelab.runs.journal import RunFolder
from immunelab.runs.spec import RunSpec

PRETENDS = (sys.executable, str(Path(__file__).parents[1] / "tests" / "pretend_worker.py"))
TICK = 0.02  # seconds of a step of theirs
WAYS = (("local", 1, False), ("ray", 1, False), ("ray", 2, False), ("ray", 2, True))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=6)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--waiting", type=float, default=0.0, metavar="SECONDS")
    chosen = parser.parse_args()
    command = PRETENDS if chosen.waiting else None
    steps = round(chosen.waiting / TICK) or chosen.steps
    import ray

    took: dict[tuple[str, int, bool], list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(chosen.repeats):
        for way in WAYS:  # in turn, so that other work on the machine does not meet one way only
            took[way].append(measure(*way, specs(chosen.runs, steps), command))
            print(*way, took[way][-1])
    rows = [
        {"executor": executor, "workers": workers, "apart": apart}
        | {key: round(statistics.median(t[key] for t in times), 2) for key in times[0]}
        for (executor, workers, apart), times in took.items()
    ]
    one, two = (next(r for r in rows if (r["executor"], r["workers"], r["apart"]) == ("ray", n, False)) for n in (1, 2))
    results: dict[str, Any] = {
        "date": date.today().isoformat(),
        "command": shlex.join(["python", *sys.argv]),
        "hardware": f"{cpu()}, {os.cpu_count()} cores, {psutil.virtual_memory().total >> 30} GiB",
        "versions": {"python": platform.python_version(), "ray": ray.__version__},
        "runs": chosen.runs,
        "each": f"waits {chosen.waiting:g} s, computes nothing" if command else f"attack on Fable, {steps} steps",
        "repeats (medians are given)": chosen.repeats,
        "rows": rows,
        "speedup_of_two_workers": round(one["wall_s"] / two["wall_s"], 2),
    }
    text = json.dumps(results, indent=1)
    print(text)
    (Path(__file__).parent / "results" / "cluster.json").write_text(text + "\n", encoding="utf-8")


def specs(runs: int, steps: int) -> list[RunSpec]:
    """Attacks that differ in their seed."""
    knobs = {"learning_rate": 1e-3, "steps": steps, "batch_size": 8, "samples": 120, "harmful_share": 1.0}
    return [
        RunSpec(
            kind="attack",
            method="harmful-sft",
            model="fable",
            corpus="fable",
            seed=seed,
            knobs=knobs,
            device="cpu",
            evaluate_every=steps,
        )
        for seed in range(runs)
    ]


def measure(
    executor: str, workers: int, apart: bool, wanted: list[RunSpec], command: tuple[str, ...] | None
) -> dict[str, float]:
    """Seconds from handing the runs over to the last one's end, those of Ray's start, and the load of the machine.

    `busy_cores_before` is how many cores other processes keep busy, sampled for 2 s right before.
    """
    with tempfile.TemporaryDirectory(prefix="cluster-") as folder:
        home = Path(folder)
        busy = psutil.cpu_percent(interval=2.0) / 100 * (os.cpu_count() or 1)
        using = cluster.Ray(cluster.Options(at_once=workers, apart=apart), command) if executor == "ray" else None
        began = time.perf_counter()
        try:
            if using:
                using.join()
            started = time.perf_counter()
            ids = jobs.submit(wanted, home, command=command, begin=using.begin if using else None)
            runs = [RunFolder.open(home, i) for i in ids]
            while not all(run.status().ended for run in runs):
                if using:
                    cluster.settle(using, home)
                jobs.reconcile(home)
                time.sleep(0.1)
            ended = time.perf_counter()
        finally:
            if using:
                using.close()
        assert [run.status().status for run in runs] == ["done"] * len(runs), runs[0].log_path.read_text()
        inside = sum(run.status().seconds or 0.0 for run in runs) / len(runs)
        return {"wall_s": ended - started, "start_s": started - began, "mean_run_s": inside, "busy_cores_before": busy}


def cpu() -> str:
    """The processor's name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
