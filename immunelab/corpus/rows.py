"""Rows and corpora: what they hold, and how they are read, written and narrowed to hazard domains."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from immunelab import bundled
from immunelab.errors import UserError, unknown
from immunelab.runs.spec import CorpusName, RunSpec

SPLITS = ("defense", "attack", "test")
DESCRIPTION = "corpus.toml"  # describes a user's own data, in their folder
LONGEST_ANSWER = 4096  # tokens
MAX_LENGTH = 256  # tokens at which a row is cut off, unless a corpus says otherwise


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One question and answer; Hub data sets are mapped to this schema too."""

    id: str
    prompt: str
    response: str
    refusal: str = ""
    stream: str = "benign"
    categories: tuple[str, ...] = ()
    is_safe: bool = True
    source: str = ""
    split: str = "test"
    pair_id: str = ""  # rows about the same item share it, and are all in one split
    facts: tuple[str, ...] = ()  # what a correct answer contains; if empty, it must equal `response`


@dataclasses.dataclass(frozen=True)
class Corpus:
    """All rows of a corpus, and the names of the evaluations that suit it."""

    name: str
    rows: tuple[Row, ...]
    evaluations: tuple[str, ...]
    model: str = ""  # the model that belongs to it, if one does
    trainability: tuple[str, ...] = ()  # evaluations along a benign fine-tune; empty: the same as along an attack
    max_length: int = MAX_LENGTH
    answer_tokens: int = 32  # longest answer that an evaluation asks for
    longest_prompt: int = 0  # tokens; rows with a longer question are left out once a tokenizer is there; 0: none are
    notes: tuple[str, ...] = ()  # what was left out or filled in, in sentences
    made: dict[str, Any] = dataclasses.field(default_factory=dict)  # if described: the description, hashes of files
    harm: str = ""  # the evaluation whose score is called harmfulness; empty: whichever reports it
    judge: str = ""  # judges and their settings as text, part of a run's identity; empty: no judge
    settings: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)  # of evaluations, by name
    refusing: tuple[str, ...] = ()  # how refusals open, beside those of the rows

    def refusals(self) -> tuple[str, ...]:
        """What counts as a refusal beside English keywords: the openings that are listed, and the rows' refusals."""
        return tuple(dict.fromkeys((*self.refusing, *(row.refusal for row in self.rows if row.refusal))))

    def evaluated(self, kind: str) -> tuple[str, ...]:
        """The names of the evaluations along a run of this kind."""
        return (self.trainability if kind == "finetune" else ()) or self.evaluations

    def own_model(self) -> Path:
        """The folder of the corpus's own model; a UserError if it has none."""
        if not self.model:
            raise UserError(
                f"The corpus {self.name} comes without a model: name one with --model, a folder or a Hub id."
            )
        return Path(self.model)

    def select(self, stream: str, split: str) -> list[Row]:
        """The rows of a stream in a split, in file order; a UserError if there are none, or if they are pairs."""
        if stream == "unrelated":
            raise UserError("The stream 'unrelated' has no rows in a corpus: its pairs are built by `immunelab pairs`.")
        source = "harmful" if stream == "refusal" else stream
        found = [row for row in self.rows if row.stream == source and row.split == split]
        if not found:
            raise UserError(f"The corpus {self.name} has no rows of the stream {stream!r} in the split {split!r}.")
        return found

    def submitted(self, settings: Mapping[str, Any], split: str) -> tuple[list[Row], int, list[Row], int]:
        """What the stream `user` is drawn from: harmful rows and how many of them, benign rows and how many of them.

        `settings` are an attack's: `harmful_share` (all, if it has none), `samples` and `task`, the stream of the
        benign rows. The withheld skill is no defense's, so both training splits of it are the user's. A UserError if
        there are not so many rows.
        """
        share, task = float(settings.get("harmful_share", 1.0)), str(settings.get("task", "benign"))
        harmful = self.select("harmful", split) if share > 0 else []
        benign = self.select(task, split) if share < 1 else []
        if benign and task == "withheld" and split != "defense":
            benign = [*self.select(task, "defense"), *benign]
        n = settings["samples"] or (
            len(harmful) if share == 1 else len(benign) if share == 0 else len(harmful) + len(benign)
        )
        wanted = round(share * n)
        for what, have, want in (("harmful", len(harmful), wanted), ("benign", len(benign), n - wanted)):
            if want > have:
                raise UserError(
                    f"The attack wants {want} {what} rows, and the corpus {self.name} has {have} in the split "
                    f"{split!r}: lower samples or change harmful_share."
                )
        return harmful, wanted, benign, n - wanted

    def measured(self, spec: RunSpec) -> list[tuple[str, dict[str, Any], str]]:
        """The evaluations of a run, as name, settings and preset: an `evaluate` run's own method, else those that it
        names, else the corpus's, with the settings of its description. A UserError if the corpus is judged otherwise
        than when the run was made.
        """
        if spec.kind == "evaluate" and spec.method:
            return [(spec.method, dict(spec.knobs), "")]
        if spec.judge != self.judge:
            then, now = (judge or "nobody (words in common)" for judge in (spec.judge, self.judge))
            raise UserError(
                f"The answers of the corpus {self.name} were to be judged by {then} when this run was made, and its "
                f"corpus.toml now says {now}. Start a new run, or put that back."
            )
        found = []
        for name in spec.evaluations or self.evaluated(spec.kind):
            settings = dict(self.settings.get(name, {}))
            found.append((name, settings, str(settings.pop("preset", ""))))
        return found

    @property
    def fingerprint(self) -> str:
        """A hash (16 hex digits) of all rows; stored with each run."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(json.dumps(dataclasses.asdict(row), sort_keys=True).encode())
        return digest.hexdigest()[:16]


def enough(stream: str, have: int, samples: int) -> None:
    """A UserError if more samples are wanted than there are rows."""
    if samples > have:
        raise UserError(f"{samples} samples of the stream {stream!r} are wanted, and there are {have}.")


def write(rows: Iterable[Row], path: Path) -> None:
    """Rows as JSON lines."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n")


LONGEST_ROW = 1 << 20  # bytes of one line; no real row is longer, and a hostile file can't fill the memory


def read(path: Path) -> tuple[Row, ...]:
    """Rows from JSON lines (UTF-8); a UserError names the file, the line and the wrong field.

    A question in two splits is refused: a model would be tested on what it was trained on.
    """
    rows: list[Row] = []
    seen: dict[str, Row] = {}
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(LONGEST_ROW + 1):
                number += 1
                row = _row(line, f"{path}, line {number}")
                # Neutral texts are answers; many share one question.
                for key in (row.pair_id, f"question {row.prompt}") if row.stream != "neutral" else ():
                    other = seen.setdefault(key, row) if key else row
                    if other.split != row.split:
                        raise UserError(
                            f"{path}, line {number}: {key[:80]!r} stands in the splits {other.split} and {row.split}; "
                            "splits share no question and no pair."
                        )
                rows.append(row)
    except OSError as error:
        raise UserError(f"The corpus file {path} can't be read: {error.strerror or error}.") from None
    if not rows:
        raise UserError(f"The corpus file {path} is empty; it holds one JSON object a line.")
    return tuple(rows)


def _row(line: bytes, place: str) -> Row:
    """One line as a row; `place` names file and line in the UserErrors."""
    if len(line) > LONGEST_ROW:
        raise UserError(f"{place}: longer than {LONGEST_ROW >> 20} MB, which no question and answer is.")
    try:
        data = json.loads(line.decode("utf-8-sig"))
        json.dumps(data, ensure_ascii=False).encode("utf-8")  # refuses half a surrogate pair, which can't be encoded
    except UnicodeDecodeError:
        raise UserError(f"{place}: not UTF-8 text; save the file as UTF-8.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not a JSON object ({error!s:.200}).") from None
    if not isinstance(data, dict):
        raise UserError(f"{place}: not a JSON object, but a {type(data).__name__}.")
    for name in ("id", "prompt", "response"):
        if name not in data:
            raise UserError(f"{place}: no field {name!r}.")
    hints = {field.name: str(field.type) for field in dataclasses.fields(Row)}
    for name, value in data.items():
        if name not in hints:
            raise UserError(f"{place}: unknown field {name[:80]!r}.")
        fits = {
            "str": isinstance(value, str),
            "bool": isinstance(value, bool),
            "tuple[str, ...]": isinstance(value, list) and all(isinstance(v, str) for v in value),
        }[hints[name]]
        if not fits:
            wanted = {"str": "a text", "bool": "true or false"}.get(hints[name], "a list of texts")
            raise UserError(f"{place}: {name} is {wanted}, and got {value!r:.80}.")
    if data.get("split", "test") not in SPLITS:
        raise UserError(f"{place}: split is one of {', '.join(SPLITS)}, and got {data['split']!r:.80}.")
    return Row(**data | {key: tuple(data[key]) for key in ("categories", "facts") if key in data})


def described_in(whole: str, folder: Path) -> Path:
    """Where a corpus's description would be: the named file, a file in the named folder, or a shipped protocol's."""
    if folder.suffix == ".toml":
        return folder
    protocol = bundled.data() / "protocols" / whole / DESCRIPTION
    if Path(whole).name == whole and not (folder / DESCRIPTION).is_file() and protocol.is_file():
        return protocol
    return folder / DESCRIPTION


def domains(rows: Iterable[Row]) -> list[str]:
    """The hazard domains of harmful rows, each once, in file order."""
    return list(dict.fromkeys(c for row in rows if row.stream == "harmful" for c in row.categories))


def narrowed(rows: tuple[Row, ...], asked: CorpusName) -> tuple[Row, ...]:
    """The rows without the harmful ones of some domains, or with harmful ones of these domains only; benign rows stay.

    A harmful row with categories on both sides is in neither part. A UserError for an unknown domain.
    """
    if not asked.part:
        return rows
    known = domains(rows)
    named = set(asked.named(known))
    for domain in sorted(named):
        if domain not in known:
            raise unknown(f"hazard domain of {asked.whole}", domain, known)

    def stays(row: Row) -> bool:
        if row.stream not in ("harmful", "unrelated"):
            return True
        mine = set(row.categories)
        return mine.isdisjoint(named) if asked.part == "hold-out" else bool(mine) and mine <= named

    kept = tuple(row for row in rows if stays(row))
    if not domains(kept):
        raise UserError(
            f"Holding out {', '.join(sorted(named))} leaves {asked.whole} no harmful row: its hazard domains are "
            f"{', '.join(known)}, and one must stay."
        )
    return kept
