"""Question and answer as one text in a model's own form: its chat template, or a plain "Question: … Answer: …".

What a model is asked with is the start of what it is trained on, as text and as tokens. So question and answer are
encoded as one text, and the tokens are divided where the answer begins, as TRL does. A tokenizer that has " Paris" as
one token never sees "Paris" alone behind a space.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]
ROLES = ("user", "assistant")
Render = Callable[[list[Message], bool], str]  # messages, and whether the answer's start is added: as the template says

# Templates that write today's date are given always the same, because the same spec is promised the same numbers.
# Llama 3's templates name this one where they have no clock.
DAY = datetime.date(2024, 7, 26)
TODAY = re.compile(r"""strftime_now\(\s*('[^']*'|"[^"]*")\s*\)""")
SETTINGS = {"enable_thinking": False, "date_string": DAY.strftime("%d %b %Y")}  # what templates ask for by these names
ANSWER = "s-t-a-n-d-i-n"  # stands for an answer where the question is put
# How models mark a thought: DeepSeek, Qwen and most others · Magistral · Kimi · Seed
TAGS = {"<think>": "</think>", "<thinking>": "</thinking>", "<thought>": "</thought>", "<reasoning>": "</reasoning>"}
TAGS |= {"[THINK]": "[/THINK]", "◁think▷": "◁/think▷", "<seed:think>": "</seed:think>"}
OPEN = re.compile(rf"({'|'.join(map(re.escape, TAGS))})\s*\Z")
CLOSED = re.compile(rf".*(?:{'|'.join(map(re.escape, TAGS.values()))})", re.DOTALL)


class Form(NamedTuple):
    """How a model reads: its chat template, or None, and the token that ends a text."""

    render: Render | None
    end: str

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Form:
        """The form of a tokenizer of transformers."""

        if not tokenizer.chat_template:
            return cls(None, tokenizer.eos_token or "")
        told = settings(tokenizer)

        def render(messages: list[Message], answer_next: bool) -> str:
            return str(
                tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer_next, **told)
            )

        return cls(render, tokenizer.eos_token or "")


def settings(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What `apply_chat_template` is told besides the messages: no thinking where that can be chosen, and the day."""
    return {**SETTINGS, "chat_template": dated(tokenizer.get_chat_template())}


def dated(template: str) -> str:
    """A chat template that writes always the same day."""
    return TODAY.sub(lambda call: repr(DAY.strftime(call[1][1:-1])), template)


Turns = Sequence[tuple[str, str]]  # questions with their answers, in order


def asked(form: Form, prompt: str, system: str = "", before: Turns = ()) -> str:
    """What the model reads when it is asked: everything up to where the answer begins. `before` are earlier turns.

    A space there belongs to the answer, whose first token holds it. A thought that the template opens is closed at
    once, as rows have answers and no thoughts.
    """
    if form.render is None:
        turns = "".join(f"Question: {q}\nAnswer: {a}\n\n" for q, a in before)
        return f"{turns}Question: {prompt}\nAnswer:"
    messages = _messages(prompt, system, before)
    start = form.render(messages, True)
    whole = form.render([*messages, {"role": "assistant", "content": ANSWER}], False)
    if whole.startswith(start) and ANSWER in whole[len(start) :]:
        start = whole[: whole.rindex(ANSWER)]
    if opened := OPEN.search(start):
        start = f"{start.rstrip()}\n\n{TAGS[opened[1]]}\n\n"
    return start.rstrip(" ")


def answered(form: Form, prompt: str, answer: str, system: str = "") -> str:
    """What follows `asked`: the answer, and what ends it."""
    if form.render is None:
        return f" {answer.lstrip(' ')}{form.end}"
    start, messages = asked(form, prompt, system), _messages(prompt, system)
    whole = form.render([*messages, {"role": "assistant", "content": answer}], False)
    _, found, after = form.render([*messages, {"role": "assistant", "content": ANSWER}], False).rpartition(ANSWER)
    ends = bool(found and after.strip())  # else the template leaves an answer open
    rest = whole[len(start) :] if whole.startswith(start) else answer + after * ends
    return rest if ends else rest + form.end


def _messages(prompt: str, system: str, before: Turns = ()) -> list[Message]:
    first = [{"role": "system", "content": system}] if system else []
    turns = [{"role": role, "content": text} for pair in before for role, text in zip(ROLES, pair, strict=True)]
    return [*first, *turns, {"role": "user", "content": prompt}]


def tokens(tokenizer: PreTrainedTokenizerBase, start: str, rest: str) -> tuple[list[int], int]:
    """Token ids of start and rest as one text, and how many of them are the start's."""
    own = not tokenizer.chat_template  # a template brings its own special tokens
    if tokenizer.is_fast:
        found = tokenizer(
            start + rest,
            add_special_tokens=own,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            verbose=False,
        )
        return divided(found["input_ids"], found["offset_mapping"], found["special_tokens_mask"], len(start))
    # No offsets: what both encodings begin with is the start's. One that ends every text with a token ends both.
    alone, whole = (
        list(tokenizer(t, add_special_tokens=own, verbose=False)["input_ids"]) for t in (start, start + rest)
    )
    if own and whole[-2:] == [tokenizer.eos_token_id] * 2:
        whole = whole[:-1]
    same = next((i for i, (a, b) in enumerate(zip(alone, whole, strict=False)) if a != b), min(len(alone), len(whole)))
    return whole, same


def divided(
    ids: Sequence[int], offsets: Sequence[tuple[int, int]], added: Sequence[int], at: int
) -> tuple[list[int], int]:
    """Ids without what a tokenizer adds at the end, and how many of them lie before character `at`.

    `offsets` are the characters of each token, `added` is 1 where the tokenizer added one around the text: its token
    for the start stays, while one for the end would stand behind the answer's own, and behind every question. A token
    on both sides of `at` is the answer's.
    """
    text = [i for i, mark in enumerate(added) if not mark]
    last = text[-1] + 1 if text else len(ids)
    count = next((i for i in range(last) if not added[i] and offsets[i][1] > at), last)
    return list(ids[:last]), count


def question(tokenizer: PreTrainedTokenizerBase, start: str) -> list[int]:
    """Token ids of a text that the model goes on with: those that it has before an answer."""
    ids, count = tokens(tokenizer, start, "A" if start[-1:].isspace() else " A")
    return ids[:count]


def ending(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that ends an answer by the chat template, which need not be the one that ends a text."""
    form = Form.of(tokenizer)
    start = asked(form, "?")
    rest = answered(form, "?", ANSWER)
    before, _, after = rest.rpartition(ANSWER)
    ids, count = tokens(tokenizer, start + before + ANSWER, after)
    return ids[count] if count < len(ids) and ids[count] in tokenizer.added_tokens_decoder else None


def said(answer: str) -> str:
    """An answer without the thoughts before it; one that is still thinking when it is cut off stays whole."""
    return CLOSED.sub("", answer, count=1).strip() if "/" in answer else answer
