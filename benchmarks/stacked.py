"""Several small attacks in one pass by torch.func, and the same attacks one after the other: steps a second of each.

    python benchmarks/stacked.py --attacks 1 2 4 8 --steps 10 --rounds 3

Attacks of one sweep differ in learning rate and rows, not in the model's shape, so their weights can be stacked and
their gradients taken at once (`stack_module_state`, `vmap` of `grad`). The Fable model, the preset's minibatch, AdamW
on the stack; each attack has rows and a learning rate of its own. Losses of both ways are compared. Timed in turn by
processor time, on a GPU by the clock. Writes `benchmarks/results/stacked_<device>.json`.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

from benchmarks.attack_loop import clock
from immunelab import corpus as corpora
from immunelab.attacks.harmful_sft import HarmfulSft
from immunelab.corpus.tokens import Batches
from immunelab.experiment.run import versions
from immunelab.method import Batch, Tokens
from immunelab.training import loop, models

RATES = (1e-4, 3e-4, 6e-4, 1e-3)


def one_after_the_other(origin: Any, method: HarmfulSft, rows: list[list[Tokens]]) -> list[list[float]]:
    """The losses of each attack, by the loop that carries out every run."""
    found = []
    for k, own in enumerate(rows):
        mine = replace(method, learning_rate=RATES[k % len(RATES)])
        updates = loop.updates(copy.deepcopy(origin), mine, lambda i, own=own: Batch(user=own[i]))  # type: ignore[misc]
        found.append([scalars["loss/total"] for _, scalars in updates])
    return found


def causal(mask: Tensor) -> Tensor:
    """What may be attended to, (rows, 1, length, length), made before the stack: transformers looks into the mask."""
    length = mask.shape[-1]
    return (torch.ones(length, length, device=mask.device).tril().bool() & mask[:, None, None].bool()).contiguous()


def stacked(origin: Any, method: HarmfulSft, rows: list[list[Tokens]]) -> list[list[float]]:
    """The losses of each attack, all in one pass a step."""
    each = [copy.deepcopy(origin) for _ in rows]
    weights, buffers = stack_module_state(each)
    shell = copy.deepcopy(origin)
    parameters = [w.detach().requires_grad_() for w in weights.values()]
    state = {name: (torch.zeros_like(w), torch.zeros_like(w)) for name, w in zip(weights, parameters, strict=True)}
    rates = torch.tensor([RATES[k % len(RATES)] for k in range(len(rows))], device=parameters[0].device)

    def loss(own: dict[str, Tensor], held: dict[str, Tensor], ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        logits = functional_call(
            shell, (own, held), kwargs={"input_ids": ids, "attention_mask": mask, "use_cache": False}
        ).logits
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)

    one_pass: Callable[..., Any] = vmap(grad_and_value(loss), in_dims=(0, 0, 0, 0, 0), randomness="different")
    found: list[list[float]] = [[] for _ in rows]
    for step in range(1, method.steps + 1):
        ids, mask, labels = (
            torch.stack([getattr(own[step - 1], name) for own in rows])
            for name in ("input_ids", "attention_mask", "labels")
        )
        named = dict(zip(weights, parameters, strict=True))
        gradients, values = one_pass(named, buffers, ids, torch.stack([causal(m) for m in mask]), labels)
        shares = rates * loop.rate(replace(method, learning_rate=1.0), step)
        adamw(named, gradients, state, shares, step)
        for losses, value in zip(found, values.tolist(), strict=True):
            losses.append(value)
    return found


@torch.no_grad()
def adamw(weights: dict[str, Tensor], gradients: dict[str, Tensor], state: Any, rates: Tensor, step: int) -> None:
    """AdamW with a learning rate for each member of the stack."""
    for name, weight in weights.items():
        mean, square = state[name]
        mean.lerp_(gradients[name], 0.1)
        square.mul_(0.999).addcmul_(gradients[name], gradients[name], value=0.001)
        bias, slow = 1 - 0.9**step, 1 - 0.999**step
        rate = rates.view(-1, *[1] * (weight.dim() - 1)) / bias
        weight.sub_(rate * mean / ((square / slow).sqrt() + 1e-8))


def compared(counts: Sequence[int], steps: int, rounds: int, device: str) -> dict[int, Any]:
    """For each number of attacks at once: milliseconds of both ways in turn, and how far their losses are apart."""
    corpus = corpora.load("fable")
    origin, tokenizer = models.load(corpus.model, device)
    method = replace(HarmfulSft.presets["fable"], steps=steps)
    table = {}
    for many in counts:
        feeds = [Batches(corpus, tokenizer, method, split="attack", seed=k, device=device) for k in range(many)]
        rows = [[feed(i).user for i in range(steps)] for feed in feeds]
        longest = max(t.input_ids.shape[1] for own in rows for t in own)
        rows = [[padded(t, longest, tokenizer.pad_token_id) for t in own] for own in rows]
        took: dict[str, list[float]] = {"one after the other": [], "stacked": []}
        apart = 0.0
        for k in range(rounds + 1):  # the first is a warm-up
            losses = {}
            for name, way in (("one after the other", one_after_the_other), ("stacked", stacked)):
                began = clock(device)
                losses[name] = way(origin, method, rows)
                if k:
                    took[name].append((clock(device) - began) / steps / many)
            apart = max(abs(x - y) for a, b in zip(*losses.values(), strict=True) for x, y in zip(a, b, strict=True))
        gain = [x / y for x, y in zip(*took.values(), strict=True)]
        table[many] = {
            "milliseconds a step of one attack, median": {
                n: round(1e3 * statistics.median(t), 2) for n, t in took.items()
            },
            "stacked is faster by, median": round(statistics.median(gain), 2),
            "stacked is faster by, range": [round(min(gain), 2), round(max(gain), 2)],
            "largest difference of losses": apart,
        }
        print(many, table[many], flush=True)
    return table


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--attacks", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    table = compared(args.attacks, args.steps, args.rounds, device)
    result = {
        "about": {
            "date": date.today().isoformat(),
            "command": " ".join(["python", "benchmarks/stacked.py", *sys.argv[1:]]),
            "machine": torch.cuda.get_device_name()
            if device == "cuda"
            else f"{platform.system()} "
            f"{platform.machine()}, {os.cpu_count()} cores, shared with other work; {torch.get_num_threads()} thread",
            "versions": versions(),
        },
        "attacks at once": table,
    }
    path = Path(__file__).parent / "results" / f"stacked_{device}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def padded(tokens: Tokens, length: int, pad: int) -> Tokens:
    """Rows as long as all others, because a stack has one shape."""
    more = (0, length - tokens.input_ids.shape[1])
    return Tokens(
        F.pad(tokens.input_ids, more, value=pad),
        F.pad(tokens.attention_mask, more),
        F.pad(tokens.labels, more, value=-100),
    )


if __name__ == "__main__":
    main()
