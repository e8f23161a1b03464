"""A corpus as a frame, for the Data page: rows, lengths in words and in the tokens of the model that belongs to it.

The tokenizer is read with `tokenizers` and the template with Jinja, as transformers does it: no torch on a page.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd
import streamlit as st
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from immunelab import corpus
from immunelab.corpus import Row
from immunelab.errors import UserError

# The stream that defenses see beside `harmful`: the same prompts, with refusals.
REFUSAL = "refusal"
COLUMNS = ["id", "stream", "split", "category", "item", "prompt", "answer", "source"]


class Encoder(NamedTuple):
    """A model's tokenizer and chat template, and how many positions the model has (0: not stated)."""

    tokenizer: Tokenizer
    template: jinja2.Template | None
    specials: dict[str, str]
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
    specials = {k: v for k, v in settings.items() if k.endswith("_token") and isinstance(v, str)}
    positions = config.get("max_position_embeddings", 0)
    return Encoder(tokenizer, _template(text), specials, positions if isinstance(positions, int) else 0)


def counted(rows: pd.DataFrame, encoder: Encoder) -> pd.DataFrame:
    """`rows` with answer_tokens (end of turn included) and tokens (prompt in its template, and answer)."""
    starts, rests = [], []
    try:
        for prompt, answer in zip(rows["prompt"], rows["answer"], strict=True):
            start, rest = texts(encoder, prompt, answer)
            starts.append(start)
            rests.append(rest)
    except jinja2.TemplateError as error:
        raise UserError(f"No tokens are counted: the model's chat template fails ({error!s:.120}).") from None
    bare = encoder.template is not None  # a template brings its own special tokens
    before = [len(e.ids) for e in encoder.tokenizer.encode_batch(starts, add_special_tokens=not bare)]
    after = [len(e.ids) for e in encoder.tokenizer.encode_batch(rests, add_special_tokens=False)]
    return rows.assign(answer_tokens=after, tokens=[a + b for a, b in zip(before, after, strict=True)])


def texts(encoder: Encoder, prompt: str, answer: str) -> tuple[str, str]:
    """What the model reads and what it is to write, as `corpus.tokens` makes them."""
    ending = answer + encoder.specials.get("eos_token", "")
    if encoder.template is None:
        return f"Question: {prompt}\nAnswer: ", ending
    asked = {"role": "user", "content": prompt}
    start = encoder.template.render(messages=[asked], add_generation_prompt=True, **encoder.specials)
    told = [asked, {"role": "assistant", "content": answer}]
    whole = encoder.template.render(messages=told, add_generation_prompt=False, **encoder.specials)
    return start, whole[len(start) :] if whole.startswith(start) else ending


def _template(text: Any) -> jinja2.Template | None:
    if not isinstance(text, str) or not text:
        return None
    # Sandboxed and immutable, as in transformers: a template comes with a model and is not trusted.
    rooms = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    try:
        return rooms.from_string(text)
    except jinja2.TemplateError as error:
        raise UserError(f"No tokens are counted: the model's chat template can't be read ({error!s:.120}).") from None


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # an optional file: what it would say is not stated
    return data if isinstance(data, dict) else {}
