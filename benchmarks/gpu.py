"""All that differs on a GPU, checked and measured in pieces within ten minutes: `make gpu`.

    python benchmarks/gpu.py                              # the first GPU
    python benchmarks/gpu.py --only large --minutes 20    # one piece, anew
    python benchmarks/gpu.py --device cpu --small         # the same way with small shapes, for a machine without one

Each piece is a process of its own with a time limit, so that one that fails or hangs leaves the others their card.
After each, `results/gpu/<device>.json` and a table beside it (`.md`) are written; the same command goes on with what
is missing there.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

RESULTS = Path(__file__).parent / "results" / "gpu"
Found = dict[str, Any]
ROUNDS = 3
SMALL = ("seam", "sdd", "lisa")  # defenses of each kind, where only the way is tried
GOALS = {"SEAM": ("in plain steps", 5.5), "SEAM, buffers=bf16 offload": ("bytes a parameter", 20.0)}


def tests(device: str, small: bool) -> Found:
    """The tests marked `gpu`: how many passed, and the names of those that did not."""
    with tempfile.TemporaryDirectory() as place:
        report = Path(place) / "report.xml"
        line = [sys.executable, "-m", "pytest", "-m", "gpu", "-n", "0", f"--junitxml={report}", "tests/training"]
        subprocess.run(line, cwd=ROOT, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        cases = ElementTree.parse(report).getroot().iter("testcase")
        told = {case.get("name", ""): next((c.tag for c in case if c.tag != "properties"), "passed") for case in cases}
    states = list(told.values())
    counts = {state: states.count(state) for state in ("passed", "skipped", "failure", "error")}
    return counts | {"not passed": [n for n, state in told.items() if state in ("failure", "error")]}


def seam(device: str, small: bool) -> Found:
    """A step of SEAM in steps of plain fine-tuning, beside six passes with clones, by precision and savings."""
    from dataclasses import replace

    import torch

    from benchmarks import large_step
    from benchmarks.seam_cost import FINAL, LAYERED, SAVING, naive, of, rows
    from immunelab.attacks.harmful_sft import HarmfulSft
    from immunelab.method import Batch
    from immunelab.training import loop

    shape, size = ("tiny", (2, 16)) if small else ("smollm2-135m", (8, 128))
    model = large_step.model_of(shape, device)
    made = [large_step.on(rows(i, *size, large_step.SHAPES[shape]["vocab_size"]), device) for i in range(3)]
    batch = Batch(harmful=made[0], refusal=made[1], benign=made[2], user=made[0])
    plain = HarmfulSft(learning_rate=0.0)
    optimizer = loop.make_optimizer(plain, list(model.parameters()))
    mixed: Any = {"precision": "bf16-autocast"}
    variants = {
        "plain fine-tuning": of(plain),
        "plain fine-tuning, bf16-autocast": of(replace(plain, **mixed)),
        "SEAM": of(FINAL),
        "SEAM, bf16-autocast": of(replace(FINAL, **mixed)),
        "SEAM, layerwise": of(LAYERED),
        "SEAM, layerwise, bf16-autocast": of(replace(LAYERED, **mixed)),
        "SEAM, buffers=bf16 offload": of(replace(FINAL, **SAVING)),
        "SEAM, buffers=bf16 offload recompute": of(replace(FINAL, **SAVING, recompute=True)),
        "six passes with clones": naive(FINAL),
    }
    large_step.timed(model, optimizer, variants["plain fine-tuning"], batch)  # makes the optimizer's state
    most = {name: large_step.peak(model, optimizer, step, batch) for name, step in variants.items()}
    took: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(ROUNDS):
        for name, step in variants.items():
            took[name].append(large_step.timed(model, optimizer, step, batch))
    count = sum(p.numel() for p in model.parameters())
    found: Found = {"parameters": count, "rows and tokens": list(size), "torch": torch.__version__}
    for name in variants:
        base = "plain fine-tuning" + (", bf16-autocast" if "autocast" in name else "")
        found[name] = {
            "milliseconds": round(1e3 * statistics.median(took[name]), 2),
            "in plain steps": round(statistics.median(x / y for x, y in zip(took[name], took[base], strict=True)), 2),
            "bytes a parameter": round(most[name] / count, 2),
        }
    return found


def defenses(device: str, small: bool) -> Found:
    """A step of every defense in plain steps, with the rows of Fable, by precision; or why it can't be taken."""
    from dataclasses import replace

    import torch

    from benchmarks import large_step
    from benchmarks.step_cost import Bench
    from immunelab.errors import UserError
    from immunelab.method import Defense, Service, get, names

    bench = Bench(
        1 if small else ROUNDS, device, None if small else lambda: large_step.model_of("smollm2-135m", device)
    )
    found: Found = {}
    for name in SMALL if small else names("defense"):
        cls = get("defense", name)
        if not issubclass(cls, Defense | Service) or "fable" not in cls.presets:
            continue  # an edit has no step
        for precision in ("fp32", "bf16-autocast"):
            told = f"{name}, {precision}" if precision != "fp32" else name
            if issubclass(cls, Service) and precision != "fp32":
                continue
            try:
                method: Any = cls.presets["fable"]
                if device.startswith("cuda"):
                    torch.cuda.reset_peak_memory_stats()
                cost = bench.cost(method if issubclass(cls, Service) else replace(method, precision=precision))
            except UserError as error:  # Safe LoRA needs a model that this shape has not
                found[told] = {"refused": f"{error!s:.200}"}
                continue
            except RuntimeError as error:  # what torch raises, a full card among it
                found[told] = {"error": f"{type(error).__name__}: {error!s:.200}"}
                continue
            found[told] = {key: round(value, 2) for key, value in cost.items()}
            if device.startswith("cuda"):
                found[told]["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        print(name, flush=True)
    return found


def numbers(device: str, small: bool) -> Found:
    """Loss and milliseconds of a pass there and back, by the type of the weights and the attention, beside fp32 eager;
    or the sentence with which the lab refuses the combination."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from benchmarks import large_step
    from benchmarks.attack_loop import clock
    from benchmarks.seam_cost import rows
    from immunelab.errors import UserError
    from immunelab.runs import numerics
    from immunelab.training.losses import loss
    from immunelab.training.models import DTYPES

    shape, size = ("tiny", (2, 16)) if small else ("smollm2-135m", (8, 128))
    weights = large_step.model_of(shape, device).state_dict()
    tokens = large_step.on(rows(0, *size, large_step.SHAPES[shape]["vocab_size"]), device)
    found: Found = {}
    for dtype in numerics.DTYPES:
        for attention in numerics.ATTENTIONS[1:]:
            name = f"{dtype}, {attention}"
            try:
                numerics.check(dtype, attention, device)
            except UserError as error:
                found[name] = {"refused": str(error)}
                continue
            config = LlamaConfig(max_position_embeddings=2048, **large_step.SHAPES[shape])
            model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=DTYPES[dtype])
            model.load_state_dict(weights)
            model = model.to(device).train()
            took, value = [], 0.0
            for _ in range(ROUNDS + 1):
                began = clock(device)
                passed = loss(model, tokens)
                torch.autograd.grad(passed, list(model.parameters()))
                took.append(clock(device) - began)
                value = float(passed.detach())
            found[name] = {"loss": round(value, 5), "milliseconds": round(1e3 * statistics.median(took[1:]), 2)}
    exact = found["fp32, eager"]["loss"]
    for each in found.values():
        if "loss" in each:
            each["apart from fp32 eager"] = round(abs(each["loss"] - exact) / exact, 6)
    return found


def trainer(device: str, small: bool) -> Found:
    """The attack loop with full tracing, and transformers' Trainer, on Fable and on SmolLM2's shape."""
    from benchmarks.attack_loop import compared

    if small:
        return {"fable": compared("fable", 3, 1, device)}
    return {name: compared(name, steps, 2, device) for name, steps in (("fable", 60), ("smollm2-135m", 20))}


def stacked(device: str, small: bool) -> Found:
    """Several Fable attacks in one pass (`torch.func`) against one after the other."""
    from benchmarks.stacked import compared

    found = compared((2,) if small else (1, 4, 16), 2 if small else 20, 1 if small else 2, device)
    return {f"{many} at once": each for many, each in found.items()}


def large(device: str, small: bool) -> Found:
    """A plain step and SEAM's in the shape of Llama-2-7B, with every saving; with AdamW, and where that does not fit
    with Adafactor, whose state is small."""
    import torch

    from benchmarks import large_step

    settings: Found = {"device": device, "ascent": "final-logit", "buffers": "bf16", "offload": True, "recompute": True}
    shape: Found = {"shape": "tiny", "rows": 2, "length": 16, "steps": 1, "loss_chunk": 8}
    if not small:
        shape = {"shape": "llama-2-7b", "rows": 1, "length": 256, "steps": 2, "loss_chunk": 64}
    found: Found = {}
    for optimizer in ("adamw", "adafactor"):
        try:
            found[optimizer] = large_step.measure(argparse.Namespace(**settings, **shape, optimizer=optimizer))
        except torch.OutOfMemoryError as error:
            found[optimizer] = {"does not fit": str(error).split(". ")[0]}
        else:
            if not small:
                break
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
    return found


def fsdp(device: str, small: bool) -> Found:
    """A step of SEAM on weights in shards (FSDP2, one process) beside the same step on whole ones."""
    import torch
    import torch.distributed as dist

    from benchmarks import large_step
    from benchmarks.seam_cost import FINAL, of, rows
    from immunelab.method import Batch
    from immunelab.training import gradients as g
    from immunelab.training import sharding

    if not (dist.is_available() and dist.is_gloo_available()):
        return {"refused": "this build of torch has no process groups"}
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    shape = "tiny" if small else "smollm2-135m"
    made = [large_step.on(rows(i, 2, 16, large_step.SHAPES[shape]["vocab_size"]), device) for i in range(3)]
    batch = Batch(harmful=made[0], refusal=made[1], benign=made[2])
    whole = large_step.model_of(shape, device)
    of(FINAL)(whole, batch)
    direction = {name: p.grad.detach().cpu() for name, p in whole.named_parameters() if p.grad is not None}
    del whole
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        mesh = dist.init_device_mesh(device.split(":")[0], (1,))
        model = sharding.shard(large_step.model_of(shape, device), mesh)
        of(FINAL)(model, batch)
        theirs = [p.grad.full_tensor().cpu() for p in g.trainable(model) if p.grad is not None]  # type: ignore[attr-defined]
        mine = list(direction.values())
        apart = float(g.norm(g.combine((1.0, theirs), (-1.0, mine))) / g.norm(mine))
    finally:
        dist.destroy_process_group()
    return {"parameters": sum(x.numel() for x in mine), "apart from whole weights": apart, "torch": torch.__version__}


def demo(device: str, small: bool) -> Found:
    """The live demo, seed 0: seconds, and what comes of each rung beside the run that ships, which a CPU made."""
    from immunelab import jobs
    from immunelab.analysis import outcomes
    from immunelab.jobs import follow
    from immunelab.store import Store, queries
    from immunelab.sweep import demo_specs, plan

    specs = demo_specs((0,))
    if small:
        specs = [plan.one(plan.choose("attack", "harmful-sft", rung="0.001", knobs={"steps": 2}))]
    with tempfile.TemporaryDirectory() as place:
        home, began = Path(place) / "lab", time.perf_counter()
        ids = jobs.submit(specs, home, ready=False)
        ended = follow.follow(ids, home)
        seconds = time.perf_counter() - began
        store = Store(home)
        store.sync(force=True)
        runs = queries.runs(store).set_index("run_id")
        came = outcomes.run_outcomes(queries.attack_curves(store)).set_index("run_id")["outcome"]
        shipped = runs[runs["showcase"].astype(bool) & runs.index.isin(came.index)]
        recorded = {spec: came[run_id] for run_id, spec in shipped["spec_hash"].items()}
        told = {
            f"{spec.name or spec.method} on {'SEAM' if spec.model.startswith('run:') else 'undefended'}": {
                "outcome": str(came.get(run_id, "none")),
                "of the run that ships": recorded.get(runs.loc[run_id, "spec_hash"], "none"),
            }
            for spec, run_id in zip(specs, ids, strict=True)
            if spec.kind == "attack"
        }
    failed = {run_id: status.error for run_id, status in ended.items() if status.status != "done"}
    return {"seconds": round(seconds, 1), "runs": len(ids), "failed": failed, "outcomes": told}


PIECES: dict[str, tuple[Callable[[str, bool], Found], float]] = {  # name: what it measures, and its most seconds
    "tests": (tests, 90),
    "numbers": (numbers, 60),
    "seam": (seam, 90),
    "trainer": (trainer, 60),
    "stacked": (stacked, 60),
    "fsdp": (fsdp, 60),
    "defenses": (defenses, 150),
    "large": (large, 150),
    "demo": (demo, 240),
}


def conduct(device: str, small: bool, only: list[str], minutes: float, folder: Path, limits: dict[str, float]) -> Found:
    """Carry out the pieces that the folder lacks (those of `only` in any case), and write after each what is known."""
    began, path = time.monotonic(), folder / f"{file_name(device, small)}.json"
    known: Found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    about = described(device, small)
    if {k: v for k, v in known.get("about", {}).items() if k != "date"} != {
        k: v for k, v in about.items() if k != "date"
    }:
        known = {}  # of another version of the code or of torch
    pieces: Found = {} if known.get("about") is None else known["pieces"]
    folder.mkdir(parents=True, exist_ok=True)
    for name, limit in limits.items():
        if (only and name not in only) or (not only and pieces.get(name, {}).get("state") == "done"):
            continue
        left = 60 * minutes - (time.monotonic() - began)
        print(f"{name} …", flush=True)
        pieces[name] = piece(name, device, small, min(limit, left)) if left > 5 else {"state": "not begun: time is up"}
        print(f"  {pieces[name]['state']} after {pieces[name].get('seconds', 0)} s", flush=True)
        found = {"about": about, "pieces": {n: pieces[n] for n in PIECES if n in pieces}}
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        path.with_suffix(".md").write_text(table(found), encoding="utf-8")
    print(f"Written: {path} and {path.with_suffix('.md').name}")
    return {"about": about, "pieces": pieces}


def piece(name: str, device: str, small: bool, seconds: float) -> Found:
    """One piece in a process of its own, which is ended with all that it started when its time is up."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        file, log = Path(place) / "found.json", Path(place) / "log"
        line = [sys.executable, __file__, "--piece", name, "--device", device, "--to", str(file)]
        with log.open("w", encoding="utf-8") as out:
            process = subprocess.Popen(
                [*line, *["--small"] * small], cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                code: int | None = process.wait(seconds)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        took = round(time.monotonic() - began, 1)
        if file.is_file():
            return {"state": "done", "seconds": took, "found": json.loads(file.read_text(encoding="utf-8"))}
        words = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    if code is None:
        return {"state": f"cut off after {seconds:.0f} s", "seconds": took}
    return {"state": "failed", "seconds": took, "error": " ".join(words[-1:])[:500]}


def described(device: str, small: bool) -> Found:
    """The device, its memory and the versions, asked in a process of its own, so that this one never holds the card."""
    ask = """
import json, sys, torch
from immunelab.experiment.run import versions
gpu = torch.cuda.get_device_properties(0) if sys.argv[1] != "cpu" and torch.cuda.is_available() else None
found = {"device": gpu.name if gpu else "cpu", "memory_gb": round(gpu.total_memory / 1e9, 1) if gpu else None}
print(json.dumps({**found, "cuda": torch.version.cuda, "versions": versions()}))
"""
    line = [sys.executable, "-c", ask, device]
    answer = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    return {"date": date.today().isoformat(), "small": small, **json.loads(answer)}


def file_name(device: str, small: bool) -> str:
    """What the results of a device are called."""
    name = "cpu" if device == "cpu" else described(device, small)["device"]
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + "-small" * small


def table(found: Found) -> str:
    """All numbers in Markdown: the goals, and a table of pieces."""
    about = found["about"]
    memory = f", {about['memory_gb']} GB" if about["memory_gb"] else ""
    packages = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    head = [f"# {about['device']}{memory}", "", f"{about['date']}; {packages}; CUDA {about['cuda']}.", ""]
    rows = ["| piece | of | |", "|---|---|---|"]
    for name, each in found["pieces"].items():
        if each["state"] == "done":
            rows += [f"| {name} | {of} | {numbers} |" for of, numbers in lines(each["found"])]
        else:
            rows.append(f"| {name} | | {each['state']}. {plain(each.get('error', ''))} |")
    return "\n".join([*head, *goals(found["pieces"]), "", *rows]) + "\n"


def goals(pieces: Found) -> list[str]:
    """What was aimed at, and what came of it, a line each."""
    steps, big = pieces.get("seam", {}).get("found", {}), pieces.get("large", {}).get("found", {})
    told = [
        f"- {name}: {steps[name][what]} {what} (goal: at most {most:g})"
        for name, (what, most) in GOALS.items()
        if name in steps
    ]
    return told + [
        f"- SEAM on weights of that shape with {optimizer}: "
        + (
            f"{each['steps']['SEAM']['peak GB']} GB"
            if "steps" in each
            else f"does not fit: {plain(each['does not fit'])}"
        )
        for optimizer, each in big.items()
    ]


def lines(tree: Found, *above: str) -> Iterator[tuple[str, str]]:
    """Where in a tree of dicts plain values are, and those values in words; settings are left out."""
    values = {key: value for key, value in tree.items() if not isinstance(value, dict)}
    if values:
        yield " · ".join(above), ", ".join(f"{key} {plain(value)}" for key, value in values.items())
    for key, value in tree.items():
        if isinstance(value, dict) and key != "settings":
            yield from lines(value, *above, str(key))


def plain(value: Any) -> str:
    """A value as the cell of a table."""
    words = " to ".join(map(str, value)) if isinstance(value, list) else str(value)
    return words.replace("|", "/").replace("\n", " ") or "none"


def main() -> None:
    """Conduct, or carry out one piece."""
    read = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    read.add_argument("--device", default="cuda:0")
    read.add_argument("--small", action="store_true", help="small shapes, to try the way itself")
    read.add_argument("--only", nargs="+", choices=list(PIECES), default=[], help="these pieces, anew")
    read.add_argument("--minutes", type=float, default=10.0)
    read.add_argument("--to", type=Path, default=RESULTS, help="folder of the results")
    read.add_argument("--piece", choices=list(PIECES), help=argparse.SUPPRESS)
    args = read.parse_args()
    if args.piece:
        found = PIECES[args.piece][0](args.device, args.small)
        args.to.write_text(json.dumps(found), encoding="utf-8")
        return
    if args.device != "cpu" and described(args.device, args.small)["device"] == "cpu":
        sys.exit(
            "torch sees no NVIDIA GPU here: immunelab doctor says why. To try the way itself: --device cpu --small"
        )
    conduct(
        args.device, args.small, args.only, args.minutes, args.to, {name: limit for name, (_, limit) in PIECES.items()}
    )


if __name__ == "__main__":
    main()
