"""Time and peak memory of a plain step and of SEAM's step on a random model of a known model's shape, on one device.

    python benchmarks/large_step.py --shape llama-2-7b --device cuda --buffers bf16 --offload --recompute
    python benchmarks/large_step.py --shape smollm2-135m --device cpu --rows 2 --length 32 --steps 3

All weights are trained in fp32, with AdamW and its state in fp32 unless `--optimizer` says otherwise. That is 12 bytes
a parameter before any gradient, and SEAM's step needs 28 (`benchmarks/README.md`): 7 billion parameters fit on a device
of 141 GB only with `--buffers bf16 --offload`, and on one of 80 GB only with an optimizer that has less to remember.
Memory is what the device's allocator had at most, or on a CPU the tensors that lived at once. Writes
`benchmarks/results/large_step_<shape>_<device>.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, set_seed

from benchmarks.memory import Counter
from benchmarks.seam_cost import Step, of, rows
from immunelab.attacks.harmful_sft import HarmfulSft
from immunelab.defenses.seam import Seam
from immunelab.experiment.run import versions
from immunelab.method import Batch, Tokens, Trained
from immunelab.training import loop

RESULTS = Path(__file__).parent / "results"
SHAPES: dict[str, dict[str, Any]] = {  # from the models' public configurations; weights are random
    "llama-2-7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
        "tie_word_embeddings": False,
    },
    "smollm2-135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 97,
        "tie_word_embeddings": True,
    },
}


def model_of(shape: str, device: str) -> PreTrainedModel:
    """A random fp32 Llama of a shape, made on the device."""
    set_seed(0)
    with torch.device(device):
        return LlamaForCausalLM(LlamaConfig(max_position_embeddings=2048, **SHAPES[shape])).train()


def timed(model: PreTrainedModel, optimizer: torch.optim.Optimizer, step: Step, batch: Batch) -> float:
    """Seconds by the clock of one step with its update."""
    device = next(model.parameters()).device
    waited = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    waited()
    began = time.perf_counter()
    optimizer.zero_grad(set_to_none=True)
    step(model, batch)
    optimizer.step()
    waited()
    return time.perf_counter() - began


def peak(model: PreTrainedModel, optimizer: torch.optim.Optimizer, step: Step, batch: Batch) -> int:
    """The most bytes on the device during one step with its update."""
    device = next(model.parameters()).device
    if device.type == "cuda":
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.reset_peak_memory_stats(device)
        timed(model, optimizer, step, batch)
        return torch.cuda.max_memory_allocated(device)
    states = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    optimizer.zero_grad(set_to_none=True)
    with Counter([*model.parameters(), *model.buffers(), *states]) as counter:
        timed(model, optimizer, step, batch)
    return counter.peak


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Each method: one step for its memory, and then `steps` for their time. A plain step comes before all of them and
    makes the optimizer's state."""
    saving: dict[str, Any] = {"buffers": args.buffers, "offload": args.offload}
    shared: dict[str, Any] = {
        "learning_rate": 0.0,
        "optimizer": args.optimizer,
        "recompute": args.recompute,
        "loss_chunk": args.loss_chunk,
    }
    methods: dict[str, Trained] = {
        "plain fine-tuning": HarmfulSft(**shared),
        "SEAM": Seam(beta=0.01, ascent=args.ascent, **shared, **saving),
    }
    model = model_of(args.shape, args.device)
    made = [on(rows(seed, args.rows, args.length, SHAPES[args.shape]["vocab_size"]), args.device) for seed in range(3)]
    batch = Batch(harmful=made[0], refusal=made[1], benign=made[2], user=made[0])
    optimizer = loop.make_optimizer(methods["plain fine-tuning"], list(model.parameters()))
    timed(model, optimizer, of(methods["plain fine-tuning"]), batch)
    n, found = sum(p.numel() for p in model.parameters()), {}
    for name, method in methods.items():
        most = peak(model, optimizer, of(method), batch)
        steps = [timed(model, optimizer, of(method), batch) for _ in range(args.steps)]
        found[name] = {
            "seconds a step, median": round(statistics.median(steps), 4),
            "seconds a step": [round(step, 4) for step in steps],
            "peak GB": round(most / 1e9, 3),
            "bytes a parameter": round(most / n, 2),
        }
        print(name, found[name], flush=True)
    plain, seam = (found[name]["seconds a step, median"] for name in methods)
    return {"parameters": n, "settings": vars(args), "steps": found, "SEAM in plain steps": round(seam / plain, 2)}


def on(tokens: Tokens, device: str) -> Tokens:
    """The same rows on a device."""
    return Tokens(*(t.to(device) for t in tokens))


def main() -> None:
    """Measure and write."""
    read = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    read.add_argument("--shape", choices=sorted(SHAPES), default="smollm2-135m")
    read.add_argument("--device", default="cpu")
    read.add_argument("--rows", type=int, default=8)
    read.add_argument("--length", type=int, default=128)
    read.add_argument("--steps", type=int, default=3)
    read.add_argument("--optimizer", choices=("adamw", "adafactor", "sgd"), default="adamw")
    read.add_argument("--ascent", choices=("final-logit", "layerwise"), default="final-logit")
    read.add_argument("--buffers", choices=("fp32", "bf16"), default="fp32")
    read.add_argument("--offload", action="store_true")
    read.add_argument("--recompute", action="store_true")
    read.add_argument("--loss-chunk", type=int, default=0)
    args = read.parse_args()
    found = measure(args)
    name = torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else platform.machine()
    about = {
        "date": date.today().isoformat(),
        "device": name,
        "versions": versions(),
        "machine": f"{platform.system()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "command": " ".join(["python", "benchmarks/large_step.py", *sys.argv[1:]]),
    }
    path = RESULTS / f"large_step_{args.shape}_{args.device.split(':')[0]}.json"
    path.write_text(json.dumps({"about": about, **found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
