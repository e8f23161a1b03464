"""A corpus as a frame, for the Data page: rows, lengths in words and in the tokens of the model that belongs to it.

The tokenizer is read with `tokenizers` and the template with Jinja, as transformers does it: no torch on a page.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd
import streamlit as st
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from immunelab import conversation, corpus
from immunelab.conversation import Form, Render
from immunelab.corpus import Row
from immunelab.errors import UserError
from immunelab.runs import access

# The stream that defenses see beside `harmful`: the same prompts, with refusals.
REFUSAL = "refusal"
COLUMNS = ["id", "stream", "split", "category", "item", "prompt", "answer", "source"]


class Encoder(NamedTuple):
    """A model's tokenizer and how it reads, and how many positions the model has (0: not stated)."""

    tokenizer: Tokenizer
    form: Form
    positions: int


class Read(NamedTuple):
    """A corpus, read: rows, fingerprint, the model's positions, and why there are no tokens, if there are none.

    `longest`: tokens at which training cuts a row off. `notes`: what was left out or filled in. `judge`: who judges
    answers, "" for nobody.
    """

    rows: pd.DataFrame
    fingerprint: str
    positions: int
    no_tokens: str
    longest: int
    notes: tuple[str, ...]
    judge: str = ""


def names(runs: pd.DataFrame, asked: str) -> list[str]:
    """Corpora to choose from: the bundled one, those of recorded runs, and the one that the link names."""
    if access.read_only():
        return ["fable"]
    known = ["fable", *runs["corpus"].dropna().astype(str).unique(), asked or "fable"]
    return list(dict.fromkeys(known))


@st.cache_data(ttl=60, max_entries=4, show_spinner="Reading the corpus")
def read(name: str) -> Read:
    """The rows of a corpus by its name; a UserError says what is wrong with it."""
    found = corpus.load(name)
    rows = as_frame(found.rows)
    bare = Read(rows, found.fingerprint, 0, "", found.max_length, found.notes, found.judge)
    if not found.model:
        return bare._replace(no_tokens="No model belongs to this corpus, so lengths are in words.")
    try:
        encoder = load_encoder(Path(found.model))
        rows = counted(rows, encoder)
    except UserError as error:
        return bare._replace(no_tokens=str(error))
    return bare._replace(rows=rows, positions=encoder.positions)


def as_frame(rows: Iterable[Row]) -> pd.DataFrame:
    """One line a row and stream: the refusals of harmful rows are a stream of their own. Lengths in words."""
    cells = []
    for row in rows:
        category = row.categories[0] if row.categories else ""
        head = (row.split, category, row.pair_id or row.id, row.prompt)
        cells.append((row.id, row.stream, *head, row.response, row.source))
        if row.refusal:
            cells.append((row.id, REFUSAL, *head, row.refusal, row.source))
    frame = pd.DataFrame(cells, columns=COLUMNS)
    return frame.assign(
        prompt_words=frame["prompt"].str.split().map(len), answer_words=frame["answer"].str.split().map(len)
    )


def load_encoder(folder: Path) -> Encoder:
    """The tokenizer of a model folder; a UserError if it has none that can be read without the model."""
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # noqa: BLE001 - `tokenizers` raises plain Exceptions
        raise UserError(f"No tokens are counted: {folder / 'tokenizer.json'} can't be read ({error!s:.120}).") from None
    settings, config = _json(folder / "tokenizer_config.json"), _json(folder / "config.json")
    file = folder / "chat_template.jinja"
    text = file.read_text(encoding="utf-8") if file.is_file() else settings.get("chat_template")
    named = {k: v.get("content") if isinstance(v, dict) else v for k, v in settings.items() if k.endswith("_token")}
    specials = {k: v for k, v in named.items() if isinstance(v, str)}
    form = Form(_render(text, specials), specials.get("eos_token", ""))
    positions = config.get("max_position_embeddings", 0)
    return Encoder(tokenizer, form, positions if isinstance(positions, int) else 0)


def counted(rows: pd.DataFrame, encoder: Encoder) -> pd.DataFrame:
    """`rows` with answer_tokens (end of turn included) and tokens (prompt in its template, and answer).

    And the two texts themselves: what the model `reads` and what it `writes`.
    """
    form = encoder.form
    try:
        starts = [conversation.asked(form, prompt) for prompt in rows["prompt"]]
        rests = [conversation.answered(form, *both) for both in zip(rows["prompt"], rows["answer"], strict=True)]
    except jinja2.TemplateError as error:
        raise UserError(f"No tokens are counted: the model's chat template fails ({error!s:.120}).") from None
    wholes = [start + rest for start, rest in zip(starts, rests, strict=True)]
    bare = form.render is not None  # a template brings its own special tokens
    found = [
        conversation.divided(e.ids, e.offsets, e.special_tokens_mask, len(start))
        for e, start in zip(encoder.tokenizer.encode_batch(wholes, add_special_tokens=not bare), starts, strict=True)
    ]
    lengths = {"answer_tokens": [len(ids) - asked for ids, asked in found], "tokens": [len(ids) for ids, _ in found]}
    return rows.assign(**lengths, reads=starts, writes=rests)


def _render(text: Any, specials: dict[str, str]) -> Render | None:
    """A chat template as a function."""
    if not isinstance(text, str) or not text:
        return None
    # Sandboxed and immutable, as in transformers: a template comes with a model and is not trusted.
    rooms = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    rooms.globals |= {"raise_exception": _raised, "strftime_now": conversation.DAY.strftime}
    # A mark of transformers' that shows nothing: what an assistant says.
    text = re.sub(
        r"(\{%-?\s*)(end)?generation(\s*-?%\})", lambda m: f"{m[1]}{'endif' if m[2] else 'if true'}{m[3]}", text
    )
    try:
        template = rooms.from_string(conversation.dated(text))
    except jinja2.TemplateError as error:
        raise UserError(f"No tokens are counted: the model's chat template can't be read ({error!s:.120}).") from None

    def render(messages: list[conversation.Message], answer_next: bool) -> str:
        more = {**specials, **conversation.SETTINGS}
        return template.render(messages=messages, add_generation_prompt=answer_next, **more)

    return render


def _raised(message: str) -> None:
    raise jinja2.TemplateError(message)


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # an optional file: what it would say is not stated
    return data if isinstance(data, dict) else {}
