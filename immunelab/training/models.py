"""Load, save and switch models: Hugging Face causal LMs from safetensors, never with remote code."""

from __future__ import annotations

import ctypes
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from immunelab.errors import UserError, hub_reason
from immunelab.runs import model_folder, numerics
from immunelab.runs.model_folder import WHAT_A_MODEL_IS

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
SUPPORTS = {"sdpa": "_supports_sdpa", numerics.FLASH: "_supports_flash_attn"}  # attributes in transformers


def load(
    source: str | Path, device: str = "cpu", dtype: str = "fp32", attention: str = "auto"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal LM and its tokenizer, from a local folder or a Hub id; a UserError says what is missing.

    Its weights are in `dtype`, whatever they were saved in; `attention` is one of `numerics.ATTENTIONS`.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    with reading(source) as where:
        config = AutoConfig.from_pretrained(str(source), **where)
        no_foreign_attention(config)
        _check_attention(config, attention)
        tokenizer = AutoTokenizer.from_pretrained(str(source), **where)
        if attention != "auto":
            where["attn_implementation"] = attention
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(source),
            config=config,
            use_safetensors=True,
            dtype=DTYPES[dtype],
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **where,
        )
        model, found = loaded
        check_whole(found)
        if tokenizer.chat_template:  # it runs in a sandbox; fail now if it does something forbidden
            tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False)
    known, rows = len(tokenizer), int(model.get_input_embeddings().weight.shape[0])
    if known > rows:
        _guard(model, tokenizer, source, rows)
    padded(tokenizer, source)
    return model.to(torch.device(device)), tokenizer


def _guard(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str | Path, rows: int) -> None:
    """For a tokenizer with more tokens than the model has: only a text that has such a token can't be read.

    Gemma 3's has one for images, which its text models lack. A UserError at once if ordinary words are among them.
    """
    strange = [i for i in range(rows, len(tokenizer)) if i not in tokenizer.added_tokens_decoder]
    used = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id} & set(range(rows, len(tokenizer)))
    name = str(source)[:300]
    if strange or used:
        raise UserError(
            f"The tokenizer of {name} has {len(tokenizer)} tokens, and its model {rows}: it is another model's."
        )

    def check_ids(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs and int(inputs[0].max()) >= rows:
            raise UserError(f"A text has the token {int(inputs[0].max())}, and the model {name} has {rows}.")

    model.get_input_embeddings().register_forward_pre_hook(check_ids)


def tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer alone of a local folder or a Hub id, as `load` gives it."""
    from transformers import AutoTokenizer

    with reading(source, "tokenizer") as where:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(source), **where)
    padded(found, source)
    return found


def positions(model: PreTrainedModel) -> int:
    """How many tokens a model's config says that it takes; 0 where it does not say."""
    known = [getattr(model.config, name, None) for name in ("max_position_embeddings", "n_positions", "n_ctx")]
    return next((value for value in known if isinstance(value, int) and value > 0), 0)


def padded(tokenizer: PreTrainedTokenizerBase, source: str | Path) -> None:
    """Give a tokenizer without a padding token its end-of-text token for that; a UserError if it has neither."""
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise UserError(f"The tokenizer of {source} has neither a padding nor an end-of-text token.")
        tokenizer.pad_token = tokenizer.eos_token


def check_attention(folder: Path, attention: str) -> None:
    """A UserError if the model in a folder does not have this attention; only its config is read."""
    from transformers import AutoConfig

    if model_folder.check(folder):
        _check_attention(
            AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False), attention
        )


def _check_attention(config: PretrainedConfig, attention: str) -> None:
    """A UserError if transformers lacks this attention for the architecture; it always has `eager` and `auto`."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if attention not in SUPPORTS or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if not getattr(kind, SUPPORTS[attention], False):
        raise UserError(f"{kind.__name__} has no attention {attention} in transformers: use attention eager or auto.")


@contextmanager
def reading(source: str | Path, kind: str = "model", wanted: str = WHAT_A_MODEL_IS) -> Iterator[dict[str, Any]]:
    """Read a model from a folder or the Hub inside, with the yielded arguments; any failure becomes one UserError.

    It names the `kind` of model that can't be loaded, and says what is `wanted`.
    """
    is_local = model_folder.check(source)
    try:
        yield {"local_files_only": is_local, "trust_remote_code": False}
    except Exception as error:  # on a damaged file these libraries raise all kinds of errors
        if isinstance(error, MemoryError | UserError) or type(error).__name__ == "OutOfMemoryError":
            raise
        raise UserError(
            f"The {kind} {str(source)[:300]!r} cannot be loaded: "
            f"{(not is_local and hub_reason(error, str(source)[:300])) or _reason(error)} {wanted}"
        ) from None


def no_foreign_attention(config: Any) -> None:
    """A ValueError if a config names attention code on the Hub."""
    if "/" in str(getattr(config, "_attn_implementation", "") or ""):
        raise ValueError("its config names attention code on the Hub, which would be run.")


def check_whole(found: dict[str, Any]) -> None:
    """A ValueError if weights are missing or have another shape, because they would be random."""
    for what, keys in (("of another shape than config.json says", "mismatched_keys"), ("missing", "missing_keys")):
        names = sorted(str(key[0] if isinstance(key, tuple | list) else key) for key in found.get(keys) or ())
        if names:
            raise ValueError(f"{len(names)} of its weights are {what}, {names[0]} among them.")


def _reason(error: Exception) -> str:
    """One sentence from what a library said."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = " ".join(lines[:2])[:300]
    if "trust_remote_code" in str(error) or "custom code" in text:
        return "it needs code of its own (auto_map), and code that comes with a model is never run."
    return text if text.endswith(".") else f"{text}."


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Plain Hugging Face files: config, safetensors weights, tokenizer."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # the run's status shows progress
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def distance(model: PreTrainedModel, folder: Path) -> float:
    """‖θ − θ₀‖ over all weights, θ₀ from a model folder, read one tensor at a time."""
    from safetensors import safe_open

    mine, total = dict(model.named_parameters()), 0.0
    for path in model_folder.weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # a file handle, not a dict
                if name in mine:
                    total += float((mine[name].detach().cpu().double() - file.get_tensor(name).double()).square().sum())
    return float(total**0.5)


def seed_everything(seed: int) -> None:
    """Seeds torch on every device; data order has generators of its own."""
    torch.manual_seed(seed)


def threads(model: nn.Module) -> int:
    """Set how many CPU threads to compute with: IMMUNELAB_THREADS, else one for a small model and one a core else."""
    wanted = os.environ.get("IMMUNELAB_THREADS")
    small = sum(p.numel() for p in model.parameters()) <= numerics.LARGE
    if wanted:
        torch.set_num_threads(int(wanted))
    elif small:
        torch.set_num_threads(1)
    if not small:
        keep_freed_memory()
    return torch.get_num_threads()


def keep_freed_memory() -> bool:
    """Let the C library keep the memory of freed tensors for the next ones; whether it can (glibc).

    Otherwise it gives large pieces back, and the kernel has to zero new ones: for a tensor of 100 MB that takes four
    times as long as filling it. Pieces of 1 GiB and more still come from the kernel.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, 1 << 30) and mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1))


@contextmanager
def deterministic(model: nn.Module) -> Iterator[None]:
    """Dropout is off inside, because two gradients that are subtracted must be of the same function.

    Modules that checkpoint activations keep their training flag, without which they would not.
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
def recomputing(model: PreTrainedModel, wanted: bool = True) -> Iterator[None]:
    """Inside, layers in training mode keep only their inputs and compute activations again in the backward pass.

    Leave it before generating anything: a layer that recomputes has no key-value cache. A UserError if the
    architecture can't recompute.
    """
    if not wanted:
        yield
        return
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise UserError(f"{type(model).__name__} can't recompute activations: use recompute=false.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the newer name does not exist in transformers 5.0
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            model.gradient_checkpointing_disable()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout is off and no graph is built inside; afterward the training flags are restored."""
    with deterministic(model), torch.no_grad():
        yield


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Attention uses plain matrix products inside, because the fused kernels have no second derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        yield
