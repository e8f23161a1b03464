"""Named streams of rows: what a corpus is, and how to load one by name.

Streams: `harmful` (prompt, harmful answer), `refusal` (the same prompts, refusals), `benign` (prompt, answer),
`unrelated` (harmful prompt, irrelevant good answer), `user` (what is submitted for fine-tuning), and for evaluations
`withheld` (a skill the model was never taught) and `neutral` (plain text for perplexity). Splits: `defense`, `attack`
and `test`, disjoint by item.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from immunelab import shipped
from immunelab.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One question and answer; the schema that Hub data sets are mapped to as well."""

    id: str
    prompt: str
    response: str
    refusal: str = ""
    stream: str = "benign"
    categories: tuple[str, ...] = ()
    is_safe: bool = True
    source: str = ""
    split: str = "test"
    pair_id: str = ""  # rows about the same item share it, and never stand in two splits
    facts: tuple[str, ...] = ()  # what a correct answer contains; empty: the answer is correct if equal to `response`


@dataclasses.dataclass(frozen=True)
class Corpus:
    """All rows of a corpus, and the names of the evaluations that fit it."""

    name: str
    rows: tuple[Row, ...]
    evaluations: tuple[str, ...]
    model: str = ""  # the model that belongs to it, if one does

    def select(self, stream: str, split: str) -> list[Row]:
        """The rows of a stream in a split, in file order; a UserError if there are none."""
        source = "harmful" if stream in ("refusal", "unrelated") else stream
        found = [row for row in self.rows if row.stream == source and row.split == split]
        if not found:
            raise UserError(f"The corpus {self.name} has no rows of the stream {stream!r} in the split {split!r}.")
        return found

    @property
    def fingerprint(self) -> str:
        """16 hex digits over every row; stored with each run."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(json.dumps(dataclasses.asdict(row), sort_keys=True).encode())
        return digest.hexdigest()[:16]


def write(rows: Iterable[Row], path: Path) -> None:
    """Rows as JSON lines."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n")


def read(path: Path) -> tuple[Row, ...]:
    """Rows from JSON lines; a UserError names file, line and field that do not fit."""
    fields = {f.name for f in dataclasses.fields(Row)}
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                data = json.loads(line)
                unknown = set(data) - fields
                missing = {"id", "prompt", "response"} - set(data)
            except (ValueError, TypeError) as error:
                raise UserError(f"{path}, line {number}: not a JSON object ({error}).") from None
            if unknown or missing:
                wrong = f"unknown field {sorted(unknown)[0]!r}" if unknown else f"no field {sorted(missing)[0]!r}"
                raise UserError(f"{path}, line {number}: {wrong}.")
            data |= {key: tuple(data[key]) for key in ("categories", "facts") if key in data}
            rows.append(Row(**data))
    return tuple(rows)


def load(name: str) -> Corpus:
    """A corpus by name: `fable`, or the folder of another Fable world."""
    from immunelab.corpus import fable

    folder = shipped.data() / "fable" if name == "fable" else Path(name)
    if not (folder / "world.jsonl").is_file():
        raise UserError(
            f"There is no corpus {name!r}. A corpus is `fable`, or a folder with a world.jsonl "
            "(make one with `immunelab fable build --seed S --to FOLDER`)."
        )
    return Corpus(
        name=name, rows=read(folder / "world.jsonl"), evaluations=fable.EVALUATIONS, model=str(folder / "model")
    )
