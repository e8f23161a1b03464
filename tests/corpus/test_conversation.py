"""Prompts and answers as models of every kind were trained on them: labels read back as text are the answer."""

from __future__ import annotations

import datetime
import hashlib
import json
from typing import Any

import many_tokenizers
import pytest
from many_tokenizers import KINDS

from immunelab import conversation
from immunelab.corpus import Corpus
from immunelab.corpus.tokens import as_answer, as_prompt, collate, encode

ASKED = "How many legs has a spider?"
ANSWERS = [
    "Eight legs.",
    "12 + 3",
    "-1",
    "- Eight\n- legs",
    "Über zwei Zeilen,\n\nja.",
    "春天的河边有很多小鸭子。",
    "C++",
]
THOUGHTS = ("qwen3", "qwen3, thinker", "r1")


def made(kind: str) -> Any:
    return many_tokenizers.tokenizer(kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_labels_read_back_are_the_answer_and_one_end(kind: str, answer: str) -> None:
    tokenizer = made(kind)
    batch = collate([encode(tokenizer, (ASKED, answer), 256)], tokenizer.pad_token_id)
    scored = batch.labels[batch.labels != -100].tolist()
    assert tokenizer.decode(scored, skip_special_tokens=True).strip() == answer
    ends = tokenizer.convert_tokens_to_ids("<end_of_turn>" if kind == "gemma, chat" else tokenizer.eos_token)
    assert scored.count(ends) == 1
    assert tokenizer.decode(scored[scored.index(ends) + 1 :]).strip() == ""
    if not tokenizer.chat_template:
        assert ends not in batch.input_ids[0].tolist()[: -len(scored)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_what_is_asked_is_the_start_of_what_is_trained(kind: str, answer: str) -> None:
    tokenizer = made(kind)
    ids, count = encode(tokenizer, (ASKED, answer), 256)
    assert conversation.question(tokenizer, as_prompt(tokenizer, ASKED)) == ids[:count]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if made(kind).chat_template and kind != "r1"])
@pytest.mark.parametrize("answer", ANSWERS)
def test_a_row_is_what_transformers_makes_of_the_conversation(kind: str, answer: str) -> None:
    tokenizer = made(kind)
    messages = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": answer}]
    if kind == "qwen, date":
        today = tokenizer.chat_template.replace("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024")
        wanted = tokenizer.apply_chat_template(messages, chat_template=today)["input_ids"]
    else:
        wanted = tokenizer.apply_chat_template(messages)["input_ids"]
    assert encode(tokenizer, (ASKED, answer), 256)[0] == list(wanted)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not made(kind).chat_template])
def test_without_a_template_a_row_is_one_text(kind: str) -> None:
    tokenizer = made(kind)
    text = tokenizer(f"Question: {ASKED}\nAnswer: Eight legs.", add_special_tokens=False)["input_ids"]
    start = [tokenizer.bos_token_id] if kind.endswith("start") or kind.startswith(("llama", "gemma")) else []
    assert encode(tokenizer, (ASKED, "Eight legs."), 256)[0] == [*start, *text, tokenizer.eos_token_id]
    assert as_prompt(tokenizer, ASKED) == f"Question: {ASKED}\nAnswer:"


@pytest.mark.parametrize("kind", ["gpt-2", "llama legacy", "llama", "gemma", "llama legacy, inst"])
def test_the_first_word_holds_its_space(kind: str) -> None:
    """As in running text: not the space alone, and then a word that never stands so."""
    tokenizer = made(kind)
    running = tokenizer.tokenize("spider: Eight legs")
    ids, count = encode(tokenizer, (ASKED, "Eight legs."), 256)
    assert tokenizer.convert_ids_to_tokens(ids[count]) in running
    assert tokenizer.convert_ids_to_tokens(ids[count]).lstrip("▁Ġ")  # not a space alone


@pytest.mark.parametrize("kind", THOUGHTS)
def test_thoughts_are_closed_before_the_answer(kind: str) -> None:
    """Rows have no thoughts, so none is trained, and none is left open when the model is asked."""
    tokenizer = made(kind)
    assert as_prompt(tokenizer, ASKED).endswith("<think>\n\n</think>\n\n")
    assert as_answer(tokenizer, ASKED, "Eight legs.").startswith("Eight legs.<")


def test_a_template_without_an_end_gets_one() -> None:
    plain = made("qwen")
    tokenizer = many_tokenizers.finished(many_tokenizers.byte_level(many_tokenizers.QWEN))
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    assert as_prompt(tokenizer, "A?") == "user: A?\nassistant:"
    assert as_answer(tokenizer, "A?", "B") == " B\n" + plain.eos_token


def test_the_day_is_always_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers.utils.chat_template_utils as theirs

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls(2031, 1, 2, tzinfo=tz)

    tokenizer = made("qwen, date")
    today = as_prompt(tokenizer, ASKED)
    monkeypatch.setattr(theirs, "datetime", Later)
    assert as_prompt(tokenizer, ASKED) == today
    assert "Today: 26 Jul 2024" in today
    assert "Today: 02 Jan 2031" in tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_system_prompt_comes_before_the_question(kind: str) -> None:
    tokenizer = made(kind)
    start = as_prompt(tokenizer, ASKED, "You are kind.")
    assert start.count("You are kind.") == 1
    assert start.index("You are kind.") < start.index(ASKED)
    ids, count = encode(tokenizer, (ASKED, "Eight legs."), 256, "You are kind.")
    assert conversation.question(tokenizer, start) == ids[:count]
    assert tokenizer.decode(ids[count:], skip_special_tokens=True).strip() == "Eight legs."


@pytest.mark.parametrize("kind", ["gpt-2", "gpt-2 with end", "llama legacy with end", "llama legacy, inst"])
def test_without_offsets_the_rows_are_the_same(kind: str) -> None:
    """Tokenizers in Python have none."""
    quick = made(kind)

    class Slow:
        is_fast = False

        def __getattr__(self, name: str) -> Any:
            return getattr(quick, name)

        def __call__(self, text: str, *, add_special_tokens: bool, verbose: bool) -> Any:
            return {"input_ids": quick(text, add_special_tokens=add_special_tokens)["input_ids"]}

    slow: Any = Slow()
    assert encode(slow, (ASKED, "Eight legs."), 256) == encode(quick, (ASKED, "Eight legs."), 256)
    start = as_prompt(quick, ASKED)
    assert conversation.question(slow, start) == conversation.question(quick, start)


def test_the_rows_of_fable_are_the_recorded_ones(world: Corpus, tokenizer: Any) -> None:
    """The tokens that the shipped runs were trained on and asked with, as a digest that was taken with them."""
    whole = hashlib.sha256()
    for row in world.rows:
        for answer in filter(None, (row.response, row.refusal)):
            whole.update(json.dumps(encode(tokenizer, (row.prompt, answer), 128)).encode())
        whole.update(as_prompt(tokenizer, row.prompt, "sorry .").encode())
    assert whole.hexdigest()[:16] == "80749dc0b2ec3de4"
    for row in world.rows[::29]:
        ids, count = encode(tokenizer, (row.prompt, row.response), 128)
        assert conversation.question(tokenizer, as_prompt(tokenizer, row.prompt)) == ids[:count]


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("<think>\n\n</think>\n\nI cannot help with that.", "I cannot help with that."),
        ("Let me see. </think> Eight.", "Eight."),  # the prompt opened it
        ("<think>one</think><think>two</think> Eight.", "Eight."),
        ("[THINK]hm[/THINK]Eight.", "Eight."),
        ("<think>it is cut off here", "<think>it is cut off here"),
        ("Either / or: <b>eight</b>", "Either / or: <b>eight</b>"),
    ],
)
def test_thoughts_are_left_out(written: str, said: str) -> None:
    assert conversation.said(written) == said
