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


def byte_tokenizer() -> Any:
    """A tokenizer of bytes, as Hugging Face has it: 256 letters, padding, end of text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(vocab={**letters, "<pad>": 256, "<|endoftext|>": 257}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<|endoftext|>")


def judge(to: Path, labels: tuple[str, ...] = ("safe", "harmful"), **settings: Any) -> Path:
    """A random DeBERTa (v2) classifier, 1 layer, 16 wide, with a byte-level tokenizer, as Hugging Face files."""
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification, set_seed

    from immunelab.training.models import save

    set_seed(0)
    config = DebertaV2Config(
        vocab_size=258,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=400,
        type_vocab_size=0,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        position_buckets=32,
        pad_token_id=256,
        initializer_range=0.5,
        pooler_hidden_size=16,
        id2label=dict(enumerate(labels)),
        label2id={v: k for k, v in enumerate(labels)},
        **settings,
    )
    save(DebertaV2ForSequenceClassification(config), byte_tokenizer(), to)
    return to


def model(family: str, to: Path, positions: int = 128) -> Path:
    """A random Llama, Qwen2 or GPT-2 of 2 layers, 32 wide, with a byte-level tokenizer, as Hugging Face files."""
    from tokenizers import pre_tokenizers
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        GPT2Tokenizer,
        LlamaConfig,
        LlamaForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
        Qwen2Tokenizer,
        set_seed,
    )

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
            config(
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=positions,
                **ids,
            )
        )
        if family == "qwen2":
            tokenizer = Qwen2Tokenizer(**words)
        else:
            tokenizer = byte_tokenizer()
    save(made, tokenizer, to)
    return to
