"""Small tokenizers, trained here, of the kinds that language models have, with chat templates of the usual shapes."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

TEXT = [
    "Question: How many legs has a spider? Answer: Eight legs. user model assistant system think Today",
    "What is the capital of France? Paris. What is 12 + 3? It is 15. You are kind.",
    "Wie viele Zeilen? Über zwei Zeilen. 春天的河边有很多小鸭子。 -1 +1 C++ [INST] [/INST]",
] * 40
MARKS = ("<s>", "</s>", "<unk>", "<pad>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>")
MARKS += ("<|User|>", "<|Assistant|>")
BYTES = [f"<0x{i:02X}>" for i in range(256)]
# GPT-2's division of a text into words, and that of Llama 3 and Qwen, which leaves line breaks together
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
BREAKS = (  # as Llama 3: an empty line before each text
    "{% for m in messages %}<|im_start|>{{ m.role }}\n\n{{ m.content | trim }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
)
VICUNA = (  # the prompt ends in a space
    "{% for m in messages %}{{ 'USER: ' if m.role == 'user' else 'ASSISTANT: ' }}{{ m.content }}"
    "{{ ' ' if m.role == 'user' else eos_token }}{% endfor %}{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)
# Where thinking can be switched off, an answer in the history has an empty thought.
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}"
    "<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}"
    "<|im_start|>assistant\n{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
THINKER = QWEN3.partition("{% if add_generation_prompt")[0] + (  # it can't: the prompt opens a thought
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
R1 = (  # nor here, and answers in the history have no thought
    "{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}{% else %}<|Assistant|>{{ m.content }}"
    "{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)
DATED = "<|im_start|>system\nToday: {{ strftime_now('%d %b %Y') }}<|im_end|>\n" + CHATML


def byte_level(pattern: str) -> Tokenizer:
    """GPT-2's kind, or Qwen's: bytes, and a space is the start of a word."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet))
    return made


def sentencepiece(kind: str) -> Tokenizer:
    """Llama 2's kind (`legacy`: a space before every piece of text; `first`: before the first only), or Gemma's."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    words = [word for line in TEXT for word in f" {line}".replace(" ", " ▁").split()]  # no piece goes over a space
    made.train_from_iterator(words, trainers.BpeTrainer(vocab_size=900, special_tokens=["<unk>", *BYTES]))
    made = Tokenizer.from_str(json.dumps(json.loads(made.to_str()) | {"added_tokens": []}))  # bytes are plain tokens
    spaces = normalizers.Replace(" ", "▁")
    if kind == "legacy":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
    elif kind == "first":
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        made.normalizer = spaces
    strip = [] if kind == "gemma" else [decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return made


def around(made: Tokenizer, *, start: str = "", end: str = "") -> None:
    """The tokenizer adds these tokens round every text."""
    single = " ".join(part for part in (start, "$A", end) if part)
    marks = [(mark, made.token_to_id(mark)) for mark in (start, end) if mark]
    made.post_processor = processors.TemplateProcessing(single=single, pair=f"{single} $B", special_tokens=marks)


def finished(made: Tokenizer, template: str | None = None, start: str = "", end: str = "", **marks: str) -> Any:
    """As transformers has it."""
    made.add_special_tokens([AddedToken(mark, normalized=False, special=True) for mark in MARKS])
    if start or end:
        around(made, start=start, end=end)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", **marks}
    found = PreTrainedTokenizerFast(tokenizer_object=made, **names)
    found.chat_template = template
    return found


CHAT: dict[str, Any] = {"eos_token": "<|im_end|>"}
KINDS: dict[str, Callable[[], Any]] = {
    "gpt-2": lambda: finished(byte_level(GPT2)),
    "gpt-2 with start": lambda: finished(byte_level(GPT2), start="<s>"),
    "gpt-2 with end": lambda: finished(byte_level(GPT2), end="</s>"),
    "gpt-2, empty lines": lambda: finished(byte_level(GPT2), BREAKS, **CHAT),
    "gpt-2, vicuna": lambda: finished(byte_level(GPT2), VICUNA),
    "qwen": lambda: finished(byte_level(QWEN)),
    "qwen, chatml": lambda: finished(byte_level(QWEN), CHATML, **CHAT),
    "qwen, empty lines": lambda: finished(byte_level(QWEN), BREAKS, **CHAT),
    "qwen, date": lambda: finished(byte_level(QWEN), DATED, **CHAT),
    "qwen3": lambda: finished(byte_level(QWEN), QWEN3, **CHAT),
    "qwen3, thinker": lambda: finished(byte_level(QWEN), THINKER, **CHAT),
    "r1": lambda: finished(byte_level(QWEN), R1),
    "llama legacy": lambda: finished(sentencepiece("legacy"), start="<s>"),
    "llama legacy with end": lambda: finished(sentencepiece("legacy"), start="<s>", end="</s>"),
    "llama legacy, inst": lambda: finished(sentencepiece("legacy"), INST, start="<s>"),
    "llama legacy, vicuna": lambda: finished(sentencepiece("legacy"), VICUNA, start="<s>"),
    "llama legacy, chatml": lambda: finished(sentencepiece("legacy"), CHATML, start="<s>", **CHAT),
    "llama": lambda: finished(sentencepiece("first"), start="<s>"),
    "llama, inst": lambda: finished(sentencepiece("first"), INST, start="<s>"),
    "gemma": lambda: finished(sentencepiece("gemma"), start="<s>"),
    "gemma, chat": lambda: finished(sentencepiece("gemma"), GEMMA, start="<s>"),
}


@functools.cache
def tokenizer(kind: str) -> Any:
    """A tokenizer by its kind, made once; don't change it."""
    return KINDS[kind]()
