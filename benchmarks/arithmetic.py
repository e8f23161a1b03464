"""How near training steps come to what a CPU's arithmetic allows, and where the rest of the time goes.

    python benchmarks/arithmetic.py --threads 1
    python benchmarks/arithmetic.py --threads 2

Steps of a LoRA attack, of an attack on all weights and of SEAM, by the loop that carries out every run, on random
weights of SmolLM2-135M's shape. The bound is the floating-point operations of a step's matrix products and attention,
as torch counts them, at the rate of one large product in fp32 on the same threads. Each kind runs in a process of its
own, once as it is and once without keeping freed memory (`models.keep_freed_memory`), in turn; on a
quiet machine. Writes `benchmarks/results/arithmetic.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

RESULTS = Path(__file__).parent / "results" / "arithmetic.json"
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "LoRA attack": ("attack", "lora-sft", {"rank": 16, "targets": "all-linear"}),
    "attack on all weights": ("attack", "harmful-sft", {}),
    "SEAM": ("defense", "seam", {"ascent": "final-logit", "coupling_clip": 1.0}),
}
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::_scaled_dot_product")


def measure(kind: str, rows: int, length: int, steps: int, threads: int, keep: bool) -> dict[str, Any]:
    """Seconds of a step, its operations, the bound, and the share of each sort of operation in its time."""
    import torch
    from torch.profiler import ProfilerActivity, profile
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.large_step import SHAPES, model_of
    from benchmarks.seam_cost import rows as made
    from immunelab.method import Batch, configure
    from immunelab.training import loop, models

    torch.set_num_threads(threads)
    if keep:
        models.keep_freed_memory()
    of, name, knobs = KINDS[kind]
    shared = {"steps": steps + 3, "batch_size": rows, "learning_rate": 1e-5, "schedule": "constant", "warmup": 0.0}
    method: Any = configure(of, name, knobs | shared)  # type: ignore[arg-type]
    model: Any = model_of("smollm2-135m", "cpu")
    streams = [made(i, rows, length, SHAPES["smollm2-135m"]["vocab_size"]) for i in range(3)]
    batch = Batch(harmful=streams[0], refusal=streams[1], benign=streams[2], user=streams[0])
    if method.prepares:
        model = method.prepare(model, lambda index: batch)
    updates = loop.updates(model, method, lambda index: batch)
    next(updates)  # makes the optimizer's state, and lets the allocator find its size
    took = [next(updates)[1]["time/step_seconds"] for _ in range(steps)]
    with FlopCounterMode(display=False) as counted:
        next(updates)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        next(updates)
    rate, seconds = product_rate(), statistics.median(took)
    times = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
    whole = sum(times.values())
    products = sum(t for key, t in times.items() if key.startswith(PRODUCTS))
    others = sorted(((t, key) for key, t in times.items() if not key.startswith(PRODUCTS)), reverse=True)[:6]
    bound = counted.get_total_flops() / rate
    return {
        "seconds a step, median": round(seconds, 3),
        "seconds a step": [round(t, 3) for t in took],
        "GFLOP": round(counted.get_total_flops() / 1e9, 1),
        "GFLOP/s of one product": round(rate / 1e9, 1),
        "bound, seconds": round(bound, 3),
        "times the bound": round(seconds / bound, 2),
        "share of products": round(products / whole, 3),
        "share of others": {key: round(t / whole, 3) for t, key in others},
    }


def product_rate(size: int = 1024) -> float:
    """Operations a second of the product of two square matrices in fp32, the best of nine."""
    import torch

    a, b = torch.randn(size, size), torch.randn(size, size)
    took = []
    for _ in range(10):
        began = time.perf_counter()
        torch.mm(a, b)
        took.append(time.perf_counter() - began)
    return 2 * size**3 / min(took[1:])


def main() -> None:
    """Measure each kind in processes of its own, and write."""
    read = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    read.add_argument("--rows", type=int, default=4)
    read.add_argument("--length", type=int, default=64)
    read.add_argument("--steps", type=int, default=4)
    read.add_argument("--threads", type=int, default=1)
    read.add_argument("--kind", choices=list(KINDS), help=argparse.SUPPRESS)
    read.add_argument("--give-back", action="store_true", help=argparse.SUPPRESS)
    args = read.parse_args()
    if args.kind:
        print(json.dumps(measure(args.kind, args.rows, args.length, args.steps, args.threads, not args.give_back)))
        return
    from immunelab.experiment.run import versions

    known: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    found = {}
    for kind in KINDS:
        for told, more in (("freed memory is kept", []), ("freed memory is given back", ["--give-back"])):
            line = [sys.executable, __file__, "--kind", kind, *sys.argv[1:], *more]
            environment = os.environ | {"OMP_NUM_THREADS": str(args.threads), "OMP_WAIT_POLICY": "passive"}
            done = subprocess.run(line, env=environment, capture_output=True, text=True, check=True)
            found.setdefault(kind, {})[told] = json.loads(done.stdout.splitlines()[-1])
            print(kind, told, found[kind][told], flush=True)
    known[f"{args.threads} thread{'s' * (args.threads > 1)}"] = {
        "date": date.today().isoformat(),
        "command": " ".join(["python", "benchmarks/arithmetic.py", *sys.argv[1:]]),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": versions(),
        "rows": args.rows,
        "tokens of a row": args.length,
        "steps": found,
    }
    RESULTS.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
