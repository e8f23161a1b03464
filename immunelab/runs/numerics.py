"""The type of a model's weights and the attention backend of a run, and which combinations can't work."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from immunelab.errors import UserError, unknown

DTYPES = ("fp32", "bf16", "fp16")
ATTENTIONS = ("auto", "eager", "sdpa", "flash_attention_2")  # auto: what transformers chooses for the architecture
USUAL = {"dtype": DTYPES[0], "attention": ATTENTIONS[0]}  # newer fields: part of a spec's identity only if changed
FLASH, FLASH_PACKAGE = "flash_attention_2", "flash_attn"
# Weights of a model beyond which a run on a CPU computes with all cores. A smaller one is as fast with one, gives the
# same bits on any number of cores, and leaves the others to other runs.
LARGE = 32_000_000
HELP = {
    "dtype": "type of the model's weights: fp32, bf16, or fp16 on a GPU",
    "attention": "how attention is computed: auto, eager, sdpa or flash_attention_2",
}


def known(dtype: str, attention: str) -> None:
    """A UserError for an unknown name."""
    for what, name, names in (("dtype", dtype, DTYPES), ("attention", attention, ATTENTIONS)):
        if name not in names:
            raise unknown(what, name, names)


def check(dtype: str, attention: str, device: str, knobs: Mapping[str, Any] | None = None) -> None:
    """A UserError if `device` (`cpu`, `mps`, `cuda:0`) can't compute like this, or a package for it is missing.

    `knobs` are the settings of the run's method: of the optimizers only SGD can train fp16 weights.
    """
    kind = device.split(":")[0]
    if dtype == "fp16" and kind == "cpu":
        raise UserError("fp16 is for GPUs, and this run is for the CPU: use dtype bf16 or fp32, or another device.")
    if dtype == "fp16" and (optimizer := (knobs or {}).get("optimizer", "sgd")) != "sgd":
        name = {"adamw": "AdamW"}.get(optimizer, optimizer.capitalize())
        raise UserError(
            f"{name} divides by 0 on weights in fp16, where squares of gradients vanish: use dtype bf16, or fp32 with "
            "precision bf16-autocast, or optimizer sgd."
        )
    if attention != FLASH:
        return
    if kind != "cuda":
        raise UserError(f"{FLASH} needs an NVIDIA GPU, and this run is for {device}: use attention sdpa or auto.")
    if dtype == "fp32":
        raise UserError(f"{FLASH} computes in bf16 or fp16 only: use dtype bf16, or attention sdpa.")
    # Otherwise transformers fetches its code from the Hub, and the lab never runs code from there.
    if importlib.util.find_spec(FLASH_PACKAGE) is None:
        raise UserError(f"{FLASH} needs the package flash-attn: pip install flash-attn, or use attention sdpa.")


def slow(dtype: str, precision: str, device: str) -> str:
    """What to do about arithmetic that this machine's processor does without instructions for it; empty if it has them.

    On x86 oneDNN has kernels for bf16 from AVX-512 on. Without them a product of matrices in bf16 was 25 to 100 times
    slower than in fp32 (AMD EPYC 7003, torch 2.13).
    """
    rounded = dtype == "bf16" or precision in ("bf16-autocast", "official-bf16")
    if not rounded or device != "cpu" or computes_bf16():
        return ""
    return "This processor has no bf16 arithmetic (AVX-512): bf16 is many times slower here than precision fp32."


@functools.cache
def computes_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether torch has fast bf16 kernels for this processor, as far as the system tells: False only where it does."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    return not flags or "avx512bw" in flags


def words(dtype: str, attention: str, precision: str | None) -> str | None:
    """Precision and what is not at its default, such as "bf16-autocast" or "fp32, bf16 weights, eager attention"."""
    parts = [precision] if precision else []
    parts += [f"{dtype} weights"] if dtype != USUAL["dtype"] else []
    parts += [f"{attention} attention"] if attention != USUAL["attention"] else []
    return ", ".join(parts) or None
