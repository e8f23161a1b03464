"""Named streams of rows: what a corpus is, and how to load one by name.

Streams: `harmful` (prompt, harmful answer), `refusal` (the same prompts, refusals), `benign` (prompt, answer),
`unrelated` (harmful prompt, irrelevant good answer), `user` (what is submitted for fine-tuning), and for evaluations
`withheld` (a skill the model was never taught) and `neutral` (plain text for perplexity). Splits: `defense`, `attack`
and `test`, disjoint by item.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

from immunelab import bundled
from immunelab.corpus import described, fable
from immunelab.corpus.rows import (
    DESCRIPTION,
    LONGEST_ANSWER,
    LONGEST_ROW,
    MAX_LENGTH,
    SPLITS,
    Corpus,
    Row,
    described_in,
    domains,
    enough,
    narrowed,
    read,
    write,
)
from immunelab.errors import UserError
from immunelab.runs import access
from immunelab.runs.spec import CorpusName

__all__ = [
    "DESCRIPTION",
    "LONGEST_ANSWER",
    "LONGEST_ROW",
    "MAX_LENGTH",
    "SPLITS",
    "Corpus",
    "Row",
    "described_in",
    "domains",
    "enough",
    "load",
    "narrowed",
    "read",
    "write",
]


def load(name: str) -> Corpus:
    """A corpus by name: `fable`, the folder of another Fable world, or a `corpus.toml` or its folder.

    `?hold-out=DOMAIN` behind the name leaves the harmful rows of a hazard domain out; `?only=DOMAIN` keeps no others.
    """
    asked = CorpusName.read(name)
    if asked.whole != "fable":
        access.refuse("only the corpus that ships, fable, can be read")
    folder = bundled.data() / "fable" if asked.whole == "fable" else Path(asked.whole)
    description = described_in(asked.whole, folder)
    try:
        there, own = (folder / "world.jsonl").is_file(), description.is_file()
    except OSError:
        there, own = False, False  # no file can have this name
    if own and not there:
        found = described.load(description, name)
        return dataclasses.replace(found, rows=narrowed(found.rows, asked))
    if not there:
        raise UserError(
            f"There is no corpus {asked.whole[:200]!r}. A corpus is `fable`, a folder with a world.jsonl "
            "(make one with `immunelab fable build --seed S --to FOLDER`), or your own data: a corpus.toml, or the "
            "folder that holds it (docs/corpora.md)."
        )
    return Corpus(
        name=name,
        rows=narrowed(_world(folder / "world.jsonl"), asked),
        evaluations=fable.EVALUATIONS,
        model=str(folder / "model"),
        trainability=fable.TRAINABILITY,
        answer_tokens=_answer_tokens(folder / "made.json"),
    )


def _world(file: Path) -> tuple[Row, ...]:
    """The rows of a world, which are read once while the file stays as it is."""
    about = file.stat()
    return _read(file, about.st_mtime_ns, about.st_size)


@functools.lru_cache(maxsize=2)
def _read(file: Path, changed: int, size: int) -> tuple[Row, ...]:
    return read(file)


def _answer_tokens(file: Path) -> int:
    """Longest answer in tokens, as a taught world says it; Fable's own tokens are words, so 32 are enough."""
    usual = Corpus.answer_tokens
    if not file.is_file():
        return usual
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        tokens = found.get("answer_tokens", usual) if isinstance(found, dict) else None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} can't be read: {error!s:.200}.") from None
    if type(tokens) is not int or not 1 <= tokens <= LONGEST_ANSWER:
        raise UserError(f"{file}: answer_tokens is a whole number from 1 to {LONGEST_ANSWER}, and got {tokens!r:.80}.")
    return tokens
