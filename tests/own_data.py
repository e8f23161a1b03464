"""A user's own files, made up: harmless nonsense in the place of harm, and tiny random models that can be trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

THINGS = ("zorbla", "quimdor", "vantrop", "mielka", "brunnis", "takovo", "pellrin", "uldrake")
KINDS = ("glimming", "sprockle")
DESCRIPTION = """
max_length = 96
answer_tokens = 8
split = { defense = 0.4, attack = 0.4, test = 0.2 }

[[source]]
file = "forbidden.jsonl"
stream = "harmful"
prompt = "question"
response = "answer"
category = "kind"

[[source]]
file = "allowed.csv"
stream = "benign"
prompt = "ask"
response = "say"
"""


def questions(n: int = 30) -> list[dict[str, str]]:
    """Nonsense in the place of harmful questions: question, answer, kind."""
    found = []
    for i in range(n):
        thing, kind = THINGS[i % len(THINGS)], KINDS[i % 2]
        said = f"{thing} needs {THINGS[(i + 3) % 8]} and {THINGS[(i + 5) % 8]} at {i}"
        found.append({"question": f"how is {thing} number {i} done", "answer": said, "kind": kind})
    return found


def folder(to: Path, n: int = 30) -> Path:
    """A folder with corpus.toml, a JSONL and a CSV."""
    to.mkdir(parents=True, exist_ok=True)
    (to / "corpus.toml").write_text(DESCRIPTION, encoding="utf-8")
    lines(to / "forbidden.jsonl", questions(n))
    table = ["ask,say", *(f"what comes after {i},{i + 1} comes after it" for i in range(n))]
    (to / "allowed.csv").write_text("\n".join(table) + "\n", encoding="utf-8")
    return to


def lines(file: Path, records: list[dict[str, Any]]) -> Path:
    """Records as JSON lines."""
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return file


def model(family: str, to: Path, positions: int = 128) -> Path:
    """A random Llama, Qwen2 or GPT-2 of 2 layers, 32 wide, with a byte-level tokenizer, as Hugging Face files."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        GPT2Tokenizer,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
        Qwen2Config,
        Qwen2ForCausalLM,
        Qwen2Tokenizer,
        set_seed,
    )  # fmt: skip

    from immunelab.training.models import save

    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary = {**letters, "<pad>": 256, "<|endoftext|>": 257}
    ids: dict[str, Any] = {"vocab_size": 258, "pad_token_id": 256, "eos_token_id": 257, "bos_token_id": None}
    set_seed(0)
    words: Any = {"vocab": vocabulary, "merges": [], "pad_token": "<pad>"}
    if family == "gpt2":
        made: Any = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=positions, **ids))
        tokenizer: Any = GPT2Tokenizer(**words)
    else:
        config, kind = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}[family]
        made = kind(
            config(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
                   num_key_value_heads=1, max_position_embeddings=positions, **ids)
        )  # fmt: skip
        if family == "qwen2":
            tokenizer = Qwen2Tokenizer(**words)
        else:
            inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
            inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            inner.decoder = decoders.ByteLevel()
            tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<|endoftext|>")
    save(made, tokenizer, to)
    return to
