"""A causal LM from a GGUF file, as a plain model in fp32; needs the package `gguf`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from immunelab.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def read(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer, with all weights dequantized; a UserError if the file can't be read.

    transformers marks such a model as quantized and refuses to save or train it, although its weights are plain fp32
    by then. So the marks are removed.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    where: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), **where)
        model: Any = AutoModelForCausalLM.from_pretrained(str(file.parent), dtype=torch.float32, **where)
    except Exception as error:  # on a damaged file these libraries raise all kinds of errors
        if isinstance(error, MemoryError):
            raise
        raise UserError(f"The file {file} can't be read as GGUF: {error!s:.300}.") from None
    model.is_quantized, model.hf_quantizer = False, None
    model.quantization_method = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model, tokenizer
