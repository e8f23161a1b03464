"""What a step of SEAM costs, in steps of plain fine-tuning and in bytes a parameter, beside a version with clones.

    python benchmarks/seam_cost.py --only memory --batch 1 --length 16     # few activations beside the weights
    python benchmarks/seam_cost.py --only time --rounds 5

A random Llama, the same batch for all, AdamW with its state in fp32, rate 0 so that the weights stay. Each variant
makes one step under `memory.Counter`; then all are timed in turn (A B C A B C …), by processor time. Weights and
optimizer state are part of the bytes; `waiting` counts what `offload` would keep in main memory if there were a GPU.
Writes `benchmarks/results/seam_cost_<time or memory>.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, set_seed

from benchmarks import six_passes
from benchmarks.memory import Counter
from immunelab.attacks.harmful_sft import HarmfulSft
from immunelab.defenses.seam import Seam
from immunelab.experiment.run import versions
from immunelab.method import Batch, Tokens, Trained
from immunelab.training import gradients as g
from immunelab.training import loop, savings

LAYERED = Seam(learning_rate=0.0, beta=0.01)
FINAL = replace(LAYERED, ascent="final-logit")
SAVING: dict[str, Any] = {"buffers": "bf16", "offload": True}
Step = Callable[[PreTrainedModel, Batch], Any]


def llama(width: int, layers: int, vocabulary: int) -> PreTrainedModel:
    """A random fp32 Llama."""
    set_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=width * 8 // 3 // 32 * 32,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            num_key_value_heads=width // 64,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
        )
    ).train()


def rows(seed: int, batch: int, length: int, vocabulary: int) -> Tokens:
    """Random ids, the first half a prompt that is not scored."""
    ids = torch.randint(3, vocabulary, (batch, length), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    labels[:, : length // 2] = -100
    return Tokens(ids, torch.ones_like(ids), labels)


def of(method: Trained) -> Step:
    """A method's step, in its precision and with its savings, as the loop makes it."""

    def step(model: PreTrainedModel, batch: Batch) -> None:
        mixed = method.precision == "bf16-autocast"
        with (
            torch.autocast(model.device.type, torch.bfloat16, enabled=mixed, cache_enabled=False),
            savings.saving(model, method),
        ):
            method.step(model, batch)

    return step


def naive(method: Seam) -> Step:
    """Six passes and clones."""
    return lambda model, batch: six_passes.step(model, batch, method)


VARIANTS: dict[str, Step] = {
    "SFT": of(HarmfulSft(learning_rate=0.0)),
    "SEAM final-logit": of(FINAL),
    "six passes final-logit": naive(FINAL),
    "SEAM layerwise": of(LAYERED),
    "six passes layerwise": naive(LAYERED),
}
MEASURED: dict[str, Step] = VARIANTS | {
    "SEAM final-logit, buffers=bf16": of(replace(FINAL, buffers="bf16")),
    "SEAM final-logit, buffers=bf16 offload": of(replace(FINAL, **SAVING)),
    "SEAM final-logit, buffers=bf16 offload recompute": of(replace(FINAL, **SAVING, recompute=True)),
    "SEAM layerwise, buffers=bf16 offload recompute loss_chunk=64": of(
        replace(LAYERED, **SAVING, recompute=True, loss_chunk=64)
    ),
}


def timed(model: PreTrainedModel, optimizer: torch.optim.Optimizer, batch: Batch, step: Step) -> float:
    """Seconds of processor time of one step with its update: what others do on the machine hardly counts."""
    began = time.process_time()
    optimizer.zero_grad(set_to_none=True)
    step(model, batch)
    optimizer.step()
    return time.process_time() - began


def measured(model: PreTrainedModel, optimizer: torch.optim.Optimizer, batch: Batch, step: Step) -> dict[str, float]:
    """Peak bytes a parameter of one step with its update."""
    optimizer.zero_grad(set_to_none=True)
    states = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    counter = Counter([*model.parameters(), *model.buffers(), *states])
    kept = savings.aside

    def aside(tensors: Any, *, exact: bool = False) -> g.Gradient:
        host = savings.waiting().host
        found = [
            t.detach().clone() if host and t is o else t
            for t, o in zip(kept(tensors, exact=exact), tensors, strict=True)
        ]
        for tensor in found if host else []:
            counter.waiting(tensor)
        return found

    def near(tensors: Any, like: Any) -> g.Gradient:
        return [
            t.detach().to(x.dtype, copy=t.untyped_storage()._cdata in counter.apart)
            for t, x in zip(tensors, like, strict=True)
        ]

    def copied(tensors: Any) -> g.Gradient:
        found = [t.detach().clone() for t in tensors]
        for tensor in found if savings.waiting().host else []:
            counter.waiting(tensor)
        return found

    with ExitStack() as stack:
        for double in (aside, near, copied):
            stack.enter_context(patch.object(savings, double.__name__, double))
        stack.enter_context(counter)
        step(model, batch)
        optimizer.step()
    n = sum(p.numel() for p in model.parameters())
    return {
        "bytes a parameter": round(counter.peak / n, 2),
        "beside weights and optimizer, in weights": round((counter.peak - counter.held) / (4 * n), 2),
        "waiting, bytes a parameter": round(counter.peak_waiting / n, 2),
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, usual in (
        ("rounds", 3),
        ("width", 512),
        ("layers", 4),
        ("vocabulary", 1024),
        ("batch", 4),
        ("length", 32),
    ):
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("--only", choices=("time", "memory"), required=True)
    args = parser.parse_args()
    model = llama(args.width, args.layers, args.vocabulary)
    n = sum(p.numel() for p in model.parameters())
    made = [rows(seed, args.batch, args.length, args.vocabulary) for seed in range(3)]
    batch = Batch(harmful=made[0], refusal=made[1], benign=made[2], user=made[0])
    optimizer = loop.make_optimizer(HarmfulSft(learning_rate=0.0), list(model.parameters()))
    result: dict[str, Any] = {
        "about": {
            "date": date.today().isoformat(),
            "command": " ".join(["python", "benchmarks/seam_cost.py", *sys.argv[1:]]),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, shared with other work; "
            f"{torch.get_num_threads()} thread",
            "versions": versions(),
            "model": {"parameters": n, "width": args.width, "layers": args.layers, "vocabulary": args.vocabulary},
            "batch": {"rows": args.batch, "length": args.length, "scored": args.length // 2},
        }
    }
    timed(model, optimizer, batch, VARIANTS["SFT"])  # makes the optimizer's state
    path = Path(__file__).parent / "results" / f"seam_cost_{args.only}.json"
    found: dict[str, Any] = {}
    if args.only == "memory":
        for name, step in MEASURED.items():
            found[name] = measured(model, optimizer, batch, step)
            print(name, found[name], flush=True)
        path.write_text(json.dumps(result | {"memory": found}, indent=1) + "\n", encoding="utf-8")
        return
    took: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for done in range(1, args.rounds + 1):
        for name, step in VARIANTS.items():
            took[name].append(timed(model, optimizer, batch, step))
        found = {"rounds": done} | {name: summary(each, took["SFT"]) for name, each in took.items()}
        path.write_text(json.dumps(result | {"time": found}, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(found), flush=True)


def summary(each: list[float], sft: list[float]) -> dict[str, Any]:
    """Median and range of the seconds, and the median over rounds of the ratio to SFT."""
    ratios = [x / y for x, y in zip(each, sft, strict=True)]
    return {
        "seconds, median": round(statistics.median(each), 3),
        "seconds, range": [round(min(each), 3), round(max(each), 3)],
        "in steps of SFT, median": round(statistics.median(ratios), 2),
        "in steps of SFT, range": [round(min(ratios), 2), round(max(ratios), 2)],
    }


if __name__ == "__main__":
    main()
