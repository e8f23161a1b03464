"""The benchmark of one large step, on a small shape: what a machine with a GPU is asked to run."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from benchmarks import large_step


def measured(device: str, **settings: Any) -> dict[str, Any]:
    usual = {
        "shape": "tiny",
        "device": device,
        "rows": 2,
        "length": 16,
        "steps": 2,
        "optimizer": "adamw",
        "ascent": "final-logit",
        "buffers": "fp32",
        "offload": False,
        "recompute": False,
        "loss_chunk": 0,
    }
    return large_step.measure(argparse.Namespace(**usual | settings))


@pytest.mark.parametrize("saving", [{}, {"buffers": "bf16", "offload": True, "recompute": True, "loss_chunk": 8}])
def test_a_step_of_seam_costs_more_than_a_plain_one(saving: dict[str, Any]) -> None:
    found = measured("cpu", **saving)
    plain, seam = (found["steps"][name] for name in ("plain fine-tuning", "SEAM"))
    assert plain["bytes a parameter"] > 16  # weights, AdamW's state and a gradient, 4 bytes each
    assert seam["bytes a parameter"] > 24
    assert found["SEAM in plain steps"] > 1
    assert len(plain["seconds a step"]) == 2


@pytest.mark.gpu
def test_on_a_gpu_memory_is_the_allocators() -> None:
    found = measured("cuda", buffers="bf16", offload=True)
    assert found["steps"]["SEAM"]["bytes a parameter"] > 12


def test_shapes_have_the_parameters_of_the_models() -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {}
    for shape in ("llama-2-7b", "smollm2-135m"):
        with torch.device("meta"):
            model = LlamaForCausalLM(LlamaConfig(**large_step.SHAPES[shape]))
        sizes[shape] = sum(p.numel() for p in model.parameters())
    assert sizes == {"llama-2-7b": 6_738_415_616, "smollm2-135m": 134_515_008}
