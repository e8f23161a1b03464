"""A few steps of SEAM and SFT on a tiny Llama: on shards as `torchrun … sharded_steps.py FILE`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torch.distributed as dist
from made_batches import batch, tokens
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from immunelab.errors import UserError
from immunelab.method import configure
from immunelab.training import gradients as g
from immunelab.training import loop, models, sharding
from immunelab.training.losses import loss

STEPS = 2
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "sft": ("attack", "harmful-sft", {"clip": 0.1}),
    "final-logit": ("defense", "seam", {"ascent": "final-logit", "beta": 0.5, "coupling_clip": 0.1}),
    "layerwise": ("defense", "seam", {"ascent": "layerwise", "beta": 0.5, "retain": 0.5}),
}


def tiny(tied: bool) -> LlamaForCausalLM:
    """A random fp32 Llama whose 97 tokens do not divide by two, so that shards are uneven."""
    set_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=97,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=tied,
        )
    )


def weights_of(model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    """The whole weights, in the first process."""
    found = sharding.whole(model) if dist.is_initialized() else model.state_dict()
    return {name: w.detach().clone() for name, w in found.items()}


def trained(case: str, tied: bool) -> dict[str, Any]:
    """Traces and weights after a few updates; AdamW would make a unit step of rounding noise, so plain SGD."""
    kind, name, knobs = CASES[case]
    changed = knobs | {"steps": STEPS, "optimizer": "sgd", "learning_rate": 0.05, "momentum": 0.0, "accumulation": 2}
    method: Any = configure(kind, name, changed)  # type: ignore[arg-type]
    model = tiny(tied)
    if dist.is_initialized():
        sharding.shard(model)
    traced: list[dict[str, float]] = []
    for _, scalars in loop.updates(model, method, batch, probes={"harmful": tokens(8), "benign": tokens(9)}):
        with models.evaluating(model):
            traced.append(scalars | {"evaluated": float(loss(model, tokens(7)))})
        sharding.settle(model)
    return {"traced": traced, "weights": weights_of(model)}


def restores() -> dict[str, bool]:
    """Laws that hold on shards as on whole weights."""
    model = sharding.shard(tiny(tied=False))
    weights = g.trainable(model)
    before = [w.detach().clone() for w in weights]
    a = g.gradient(loss(model, tokens(1)), weights)
    flat = torch.cat([x.full_tensor().flatten().double() for x in a])  # type: ignore[attr-defined]
    with g.shifted(weights, a, by=0.3) as displacement:
        inside = float(loss(model, tokens(1)).detach())
        sharding.settle(model)
        moved = g.norm(g.combine((1.0, [w.detach() for w in weights]), (-1.0, before)))
    sharding.settle(model)
    outside = float(loss(model, tokens(1)).detach())
    sharding.settle(model)
    refused = []
    for asked in (
        lambda: g.gradient(loss(model, tokens(1)), weights, differentiable=True),
        lambda: g.cast(weights, torch.bfloat16).__enter__(),
    ):
        try:
            asked()
        except UserError:
            refused.append(True)
    return {
        "sharded": all(x.to_local().numel() < x.numel() for x in weights),  # type: ignore[attr-defined]
        "grad is left alone": all(w.grad is None for w in weights),
        "norm": abs(float(g.norm(a)) / float(flat.norm()) - 1) < 1e-6,
        "cosine with itself": abs(float(g.cosine(a, a)) - 1) < 1e-12,
        "displacement": abs(displacement - 1) < 1e-3,
        "moved": abs(float(moved) / (0.3 * float(g.norm(a))) - 1) < 1e-3,
        "the loss rises inside": inside > outside,
        "bit for bit": all(torch.equal(w.to_local(), b.to_local()) for w, b in zip(weights, before, strict=True)),  # type: ignore[attr-defined]
        "refuses second derivatives and casts": refused == [True, True],
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found: dict[str, Any] = {f"{case} {tied}": trained(case, tied) for case in CASES for tied in (False, True)}
    found["laws"] = restores()
    if dist.get_rank() == 0:
        torch.save(found, sys.argv[1])
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # torch's own threads sometimes abort while the interpreter ends, after all is saved
