"""A tiny model of a test as a folder of Hugging Face files, which methods load by path."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from immunelab.training import models


def save(model: PreTrainedModel, folder: Path) -> str:
    """Write the model with a tokenizer of numbers; the folder as text."""
    words = {str(i): i for i in range(model.config.vocab_size)}
    inner = Tokenizer(WordLevel(words, unk_token="0"))
    models.save(model, PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="0", eos_token="1"), folder)
    return str(folder)


def before_alignment(model: PreTrainedModel, folder: Path) -> str:
    """Save a model from which this one differs a little in every weight."""
    other = copy.deepcopy(model)
    torch.manual_seed(11)
    with torch.no_grad():
        for p in other.parameters():
            p += 0.02 * torch.randn_like(p)
    return save(other, folder)
