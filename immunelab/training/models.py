"""Load, save and switch models: Hugging Face causal LMs from safetensors, never with remote code."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from immunelab.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load(source: str | Path, device: str = "cpu") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal LM in fp32 and its tokenizer, from a local folder or a Hub id; a UserError says what is missing."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = Path(source)
    is_local = folder.is_dir()
    if is_local:
        _check_folder(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source), local_files_only=is_local, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            str(source), local_files_only=is_local, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
        )
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0][:300]
        raise UserError(
            f"The model {str(source)!r} cannot be loaded: {reason} A model is `fable`, `run:<run id>`, a folder with "
            "config.json, tokenizer and safetensors weights, or a Hub id that this machine can reach."
        ) from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.to(torch.device(device)), tokenizer  # type: ignore[arg-type]  # wrongly typed in transformers


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise UserError(f"The folder {folder} holds no config.json, so it is not a Hugging Face model.")
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"The folder {folder} holds no .safetensors file; pickled weights (.bin, .pt) are not loaded.")


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Plain Hugging Face files: config, safetensors weights, tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def seed_everything(seed: int) -> None:
    """Seeds torch on every device; data order has generators of its own."""
    torch.manual_seed(seed)


def threads() -> int:
    """How many CPU threads to compute with: IMMUNELAB_THREADS, or as torch decides."""
    wanted = os.environ.get("IMMUNELAB_THREADS")
    if wanted:
        torch.set_num_threads(int(wanted))
    return torch.get_num_threads()


@contextmanager
def deterministic(model: nn.Module) -> Iterator[None]:
    """Dropout off inside: a difference of two gradients must be of one and the same function.

    Modules that checkpoint activations keep their training flag, which is what makes them do so.
    """
    flags = [(m, m.training) for m in model.modules()]
    try:
        for module, _ in flags:
            if not getattr(module, "gradient_checkpointing", False):
                module.training = False
        yield
    finally:
        for module, flag in flags:
            module.training = flag


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off and no graph inside; the training flags come back after."""
    with deterministic(model), torch.no_grad():
        yield


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Attention by plain matrix products inside, because the fused kernels have no second derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        yield
