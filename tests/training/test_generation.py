"""Greedy answers: the most likely token each time, whatever a model's files say."""

from __future__ import annotations

from typing import Any

import made_batches
import many_tokenizers
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from immunelab import conversation
from immunelab.corpus.tokens import as_prompt
from immunelab.training import adapters, generation
from immunelab.training.generation import Subject, greedy, mean_loss

SAID: dict[str, dict[str, Any]] = {
    "penalty": {"repetition_penalty": 1.5, "do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20},
    "suppressed": {"suppress_tokens": list(range(40, 400)), "begin_suppress_tokens": [5, 6]},
    "no repetition": {"no_repeat_ngram_size": 1, "min_new_tokens": 20, "num_beams": 3},
    "forced": {"forced_eos_token_id": 1, "bad_words_ids": [[i] for i in range(100, 400)]},
}
QUESTIONS = ["How many legs has a spider?", "Wie viele Zeilen?"]


def model(kind: str, **changes: Any) -> PreTrainedModel:
    """A random Llama for a tokenizer, whose answers vary."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(many_tokenizers.tokenizer(kind)),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
    )
    made = LlamaForCausalLM(config).eval()
    for name, value in changes.items():
        setattr(made.generation_config, name, value)
    return made


def by_hand(made: PreTrainedModel, tokenizer: Any, text: str, ends: set[int], most: int = 16) -> str:
    """Arg max, one token at a time, without a cache or padding."""
    ids = conversation.question(tokenizer, text)
    start = len(ids)
    while len(ids) < start + most and ids[-1] not in ends:
        with torch.no_grad():
            ids.append(int(made(torch.tensor([ids])).logits[0, -1].argmax()))
    return str(tokenizer.decode(ids[start:], skip_special_tokens=True)).strip()


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("said", SAID)
def test_greedy_is_arg_max(said: str, adapted: bool) -> None:
    tokenizer = many_tokenizers.tokenizer("qwen, chatml")
    plain = model("qwen, chatml")
    texts = [as_prompt(tokenizer, question) for question in QUESTIONS]
    wanted = [by_hand(plain, tokenizer, text, {tokenizer.eos_token_id}) for text in texts]
    made: Any = model("qwen, chatml", **SAID[said])
    if adapted:
        made = adapters.attach(made, rank=2, alpha=2, targets="all-linear")
    own = made.generation_config
    assert greedy(made, tokenizer, texts, 16) == wanted
    assert made.generation_config is own
    assert len(set(wanted)) == 2


@pytest.mark.parametrize(("kind", "end"), [("gemma, chat", "<end_of_turn>"), ("gpt-2", "</s>"), ("r1", "</s>")])
def test_an_answer_ends_where_its_turn_ends(kind: str, end: str) -> None:
    """Also where the model's files name no token for it, or another one."""
    tokenizer = many_tokenizers.tokenizer(kind)
    assert tokenizer.convert_ids_to_tokens(conversation.ending(tokenizer)) == end
    made = model(kind)
    text = as_prompt(tokenizer, QUESTIONS[0])
    first = made(torch.tensor([conversation.question(tokenizer, text)])).logits[0, -1].argmax()
    head: Any = made.get_output_embeddings()
    number = tokenizer.convert_tokens_to_ids(end)
    with torch.no_grad():  # the likeliest token trades places with the one that ends
        head.weight[[int(first), number]] = head.weight[[number, int(first)]]
    assert greedy(made, tokenizer, [text], 16) == [""]


def test_evaluations_are_given_what_was_said_after_the_thought(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Subject(None, None, lambda *_: [], str, list)  # type: ignore[arg-type]  # only asked
    monkeypatch.setattr("immunelab.training.generation.greedy", lambda *_: ["<think>\nhm\n</think>\n\nNo."])
    assert subject.answers(["Why?"]) == ["No."]


def test_a_large_minibatch_is_read_in_parts_with_the_same_loss(
    llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation holds the logits of a few rows, however many it has; rows of other lengths change no mean."""
    read: list[tuple[int, ...]] = []
    llama.register_forward_hook(lambda module, given, out: read.append(tuple(out.logits.shape)))
    rows = made_batches.tokens(7, rows=9)
    short = rows.attention_mask.clone()
    short[6:, 9:] = 0
    rows = rows._replace(attention_mask=short, labels=rows.labels.masked_fill(short == 0, -100))
    total, n = mean_loss(llama, rows)
    assert read == [(9, 14, 97)]
    monkeypatch.setattr(generation, "LOGITS", 3 * 14 * 97)
    in_parts, same = mean_loss(llama, rows)
    assert read[1:] == [(3, 14, 97), (3, 14, 97), (3, 9, 97)]
    assert same == n == int((rows.labels[:, 1:] != -100).sum())
    logits = llama(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits[:, :-1].double()
    wanted = torch.nn.functional.cross_entropy(logits.transpose(1, 2), rows.labels[:, 1:], reduction="sum")
    assert total == pytest.approx(float(wanted), rel=1e-5)
    assert in_parts == pytest.approx(float(wanted), rel=1e-5)
    monkeypatch.setattr(generation, "LOGITS", 1)
    assert mean_loss(llama, rows) == (pytest.approx(float(wanted), rel=1e-5), n)


@pytest.mark.parametrize("window", [None, 4])
def test_a_cache_with_room_gives_the_same_tokens(window: int | None) -> None:
    """Also where some layers look back a few tokens only, and where the room is too small."""
    made: Any = model("qwen, chatml") if window is None else sliding(window)
    asked = torch.randint(10, 90, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(asked)
    mask[0, :4] = 0

    def said(**more: Any) -> list[list[int]]:
        out = made.generate(asked, attention_mask=mask, max_new_tokens=24, do_sample=False, pad_token_id=0, **more)
        return [list(row) for row in out[:, 9:].tolist()]

    usual = said()
    assert len({token for row in usual for token in row}) > 2
    for room in (24, 40, 5):
        assert said(**generation.roomy_cache(made, room)) == usual


def sliding(window: int) -> PreTrainedModel:
    """A random model some of whose layers look back only so many tokens, and keep a cache of their own kind."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(1)
    config = Gemma3TextConfig(
        vocab_size=len(many_tokenizers.tokenizer("qwen, chatml")),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=window,
        layer_types=["sliding_attention", "full_attention"],
        max_position_embeddings=256,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
    )
    return Gemma3ForCausalLM(config)


def test_answers_of_like_length_are_asked_together(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[list[str]] = []

    def said(_model: object, _tokenizer: object, texts: list[str], _most: int) -> list[str]:
        batches.append(texts)
        return ["word " * int(text) for text in texts]

    monkeypatch.setattr(generation, "greedy", said)
    lengths: dict[str, int] = {}
    prompts = ["1", "20", "2", "9", "30", "3"]
    for _ in range(2):
        subject = Subject(None, None, None, lambda p: p, None, batch_size=4, lengths=lengths)  # type: ignore[arg-type]
        answers = subject.answers(prompts)
        assert [len(a.split()) for a in answers] == [1, 20, 2, 9, 30, 3]
    assert batches == [["1", "20", "2", "9"], ["30", "3"], ["1", "2", "3"], ["9"], ["20", "30"]]
