"""A user's own corpus: `corpus.toml` says which files and Hub data sets go into which streams, and how rows are split.

    utility = "token-accuracy"        # or task-accuracy, where answers are a label or a number
    split = { defense = 0.45, attack = 0.45, test = 0.1 }

    [[source]]
    file = "harmful.jsonl"            # or adapter = "beavertails", or dataset = "owner/name"
    stream = "harmful"
    prompt = "question"               # names of columns
    response = "answer"

docs/corpora.md explains every key.
"""

from __future__ import annotations

import hashlib
import random
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from immunelab.corpus import judging, tables
from immunelab.corpus.adapters import (
    ADAPTERS,
    Adapter,
    Draft,
    Record,
    categories,
    first_exchange,
    last_of,
    present,
    truth,
)
from immunelab.corpus.rows import MAX_LENGTH, SPLITS, Corpus, Row, described_in
from immunelab.corpus.splitting import SHARES, assigned, item, normal
from immunelab.errors import UserError, unknown
from immunelab.runs.spec import CorpusName

LARGEST = 1 << 20  # bytes of a corpus.toml
STREAMS = ("harmful", "refusal", "benign", "withheld", "neutral")
UTILITIES = ("token-accuracy", "benign-accuracy", "task-accuracy")
DEFAULTS: dict[str, Any] = {
    "utility": UTILITIES[0],
    "seed": 0,
    "split": {},
    "test_rows": 200,
    "refusal": "I cannot help with that.",
    "refusals": [],
    "max_length": MAX_LENGTH,
    "answer_tokens": 32,
    "longest_prompt": 0,
    "source": [],
    "harm": "",
    **{name: {} for name in judging.TABLES},
}
COLUMNS = ("prompt", "response", "refusal", "category", "safe", "split", "streams")  # keys that name a column
SOURCE: dict[str, Any] = {
    "file": "",
    "adapter": "",
    "dataset": "",
    "config": "",
    "part": "",
    "revision": "",
    "stream": "",
    "into": "",
    "rows": 0,
    "where": {},
    **dict.fromkeys(COLUMNS, ""),
}
REPLACED = "\ufffd"
EXPECTS = {str: "a text", int: "a whole number from 0", dict: "a table", list: "a list of texts"}


class Rows(NamedTuple):
    """The rows of a source, the SHA-256 of its file ("" for the Hub), and notes on what was left out."""

    drafts: list[Draft]
    sha256: str
    notes: list[str]


def load(file: Path, name: str) -> Corpus:
    """The corpus that a `corpus.toml` describes; UserErrors name the file and the wrong key."""
    text, settings = _read(file)
    drafts: list[Draft] = []
    notes: list[str] = []
    made: dict[str, str] = {}
    for number, table in enumerate(settings["source"], 1):
        where = f"{file}, source {number}"
        source = _checked(table, SOURCE, f"key of a source (in {where})", where)
        rows = _source(source, file.parent, where, settings)
        drafts += rows.drafts
        notes += rows.notes
        made[_title(source)] = rows.sha256
    refused, more = with_refusals(drafts, settings["refusal"])
    splits = assigned(
        refused, _shares(settings["split"], str(file)), settings["seed"], settings["test_rows"], str(file)
    )
    streams = {draft.stream for draft in refused}
    judges: judging.Judging = settings["judges"]
    return Corpus(
        name=name,
        rows=tuple(_rows(refused, splits)),
        evaluations=(*judges.evaluations, "refusal-rate", settings["utility"])
        + (("coherence",) if "neutral" in streams else ()),
        harm=judges.harm,
        judge=judges.text,
        settings=judges.located(file.parent),
        refusing=(settings["refusal"], *settings["refusals"]),
        trainability=("withheld-accuracy", settings["utility"]) if "withheld" in streams else (),
        max_length=settings["max_length"],
        answer_tokens=settings["answer_tokens"],
        longest_prompt=settings["longest_prompt"] or settings["max_length"] // 2,
        notes=(*notes, *more),
        made={"description": text, "sources": made},
    )


def rows_of(text: str, folder: Path) -> Rows:
    """The rows of a description's first source alone, before they are split; UserErrors name what does not fit."""
    where = "the source"
    source = _checked(tomllib.loads(text)["source"][0], SOURCE, "key of a source", where)
    return _source(source, folder, where, DEFAULTS)


def lengths(name: str) -> int:
    """The number of tokens at which a corpus cuts rows off, from its description alone; no data are read."""
    whole = CorpusName.read(name).whole
    file = described_in(whole, Path(whole))
    return int(_read(file)[1]["max_length"]) if file.is_file() else MAX_LENGTH


def judge(name: str) -> str:
    """The judge of a corpus as text for a run's identity, from the description alone; "" for none."""
    whole = CorpusName.read(name).whole
    folder = Path(whole)
    file = described_in(whole, folder)
    if whole == "fable" or (folder / "world.jsonl").is_file() or not file.is_file():
        return ""
    text: str = _read(file)[1]["judges"].text
    return text


def _rows(drafts: Iterable[Draft], splits: Iterable[str]) -> Iterable[Row]:
    counts: dict[str, int] = {}
    for draft, split in zip(drafts, splits, strict=True):
        number = counts[draft.source] = counts.get(draft.source, -1) + 1
        if split:
            yield Row(
                id=f"{draft.source}-{number}",
                prompt=draft.prompt,
                response=draft.response,
                refusal=draft.refusal,
                stream=draft.stream,
                categories=draft.categories,
                is_safe=draft.stream != "harmful",
                source=draft.source,
                split=split,
                facts=draft.facts,
                pair_id=hashlib.sha256(item(draft).encode()).hexdigest()[:16],
            )


def _read(file: Path) -> tuple[str, dict[str, Any]]:
    """The file's text, and its keys with defaults filled in."""
    try:
        with file.open("rb") as opened:
            raw = opened.read(LARGEST + 1)
        text = raw.decode("utf-8-sig")
        found = tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise UserError(f"The description of the corpus {file} can't be read: {error!s:.200}.") from None
    settings = _checked(found, DEFAULTS, f"key of a corpus (in {file})", str(file))
    if not settings["source"]:
        raise UserError(f"{file} names no rows: it needs [[source]] tables. docs/corpora.md has an example.")
    if settings["utility"] not in UTILITIES:
        raise unknown(f"utility of a corpus (in {file})", settings["utility"], UTILITIES)
    for key in ("max_length", "answer_tokens", "test_rows"):
        if settings[key] < 1:
            raise UserError(f"{file}: {key} is at least 1.")
    if not settings["refusal"].strip():
        raise UserError(f"{file}: refusal is a sentence; it stands where a harmful row has no refusal of its own.")
    if not all(isinstance(text, str) and text.strip() for text in settings["refusals"]):
        raise UserError(f'{file}: refusals lists how refusals open, such as ["Das kann ich nicht"].')
    return text, settings | {"judges": judging.read(found, str(file))}


def _checked(found: Any, known: Mapping[str, Any], what: str, where: str) -> dict[str, Any]:
    """`found` on top of the defaults; a UserError for an unknown key or a wrong type."""
    if not isinstance(found, dict):
        raise UserError(f"{where} is a table, and got {found!r:.80}.")
    for key, value in found.items():
        if key not in known:
            raise unknown(what, key, known)
        kind = type(known[key])
        if type(value) is not kind or (kind is int and value < 0):
            wanted = "[[source]] tables" if key == "source" else EXPECTS[kind]
            raise UserError(f"{where}: {key} is {wanted}, and got {value!r:.80}.")
    return {**known, **found}


def _shares(found: Mapping[str, Any], where: str) -> dict[str, float]:
    """The shares of the splits, which sum to 1."""
    shares = {**found} or dict(SHARES)
    for key, value in shares.items():
        if key not in SPLITS:
            raise unknown(f"split (in {where})", key, SPLITS)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
            raise UserError(f"{where}: the share of the split {key} lies between 0 and 1, and got {value!r:.80}.")
    if set(shares) != set(SPLITS) or abs(sum(shares.values()) - 1) > 1e-6:
        raise UserError(f"{where}: split gives the shares of {', '.join(SPLITS)}, which sum to 1.")
    return {split: float(shares[split]) for split in SPLITS}


def _title(source: Mapping[str, Any]) -> str:
    return str(source["file"] or source["dataset"] or source["adapter"])


def _source(source: dict[str, Any], folder: Path, where: str, settings: Mapping[str, Any]) -> Rows:
    """The rows of one source, at most `rows` of them, drawn by the seed."""
    adapter = _adapter(source, where)
    if source["into"] and source["into"] not in SPLITS:
        raise unknown(f"split ({where})", source["into"], SPLITS)
    records, sha256 = _records(source, adapter, folder, where)
    known = dict.fromkeys(str(key) for record in records for key in record)  # JSON records may leave some out
    needed = tuple(source[c] for c in COLUMNS if source[c])
    if adapter:  # its most fitting set of columns, so that the sentence names the one that is missing
        needed = max(adapter.columns, key=lambda names: sum(name in known for name in names))
    for column in dict.fromkeys((*needed, *source["where"])):
        if column not in known:
            raise unknown(f"column of {_title(source)} ({where})", column, known)
    kept = [r for r in records if all(r.get(column) == value for column, value in source["where"].items())]
    title = Path(source["file"]).stem if source["file"] else source["adapter"] or source["dataset"]
    found: list[Draft] = []
    silent = longer = 0
    for number, record in enumerate(kept, 1):
        try:
            made = list(adapter.rows(record)) if adapter else [mapped(record, source)]
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{where}, record {number} does not fit: {type(error).__name__} {error!s:.120}.") from None
        silent += not made
        longer += sum(_turns_left_out(record[c]) for c in {source["prompt"], source["response"]} & set(record))
        found += [
            whole_characters(d)._replace(
                source=title, categories=d.categories or (title,), split=source["into"] or d.split
            )
            for d in made
        ]
    whole = [d for d in found if _full(d, where)]
    distinct = list({(d.stream, item(d), d.response): d for d in reversed(whole)}.values())[::-1]
    cut = sum(REPLACED in text for d in found for text in (d.prompt, d.response, d.refusal))
    notes = [
        f"{_title(source)}: {count:,} {what}"
        for count, what in (
            (len(found) - len(whole), "rows without a question or an answer are left out"),
            (silent, "records without a label or an answer are left out"),
            (len(whole) - len(distinct), "rows that stand there twice are left out"),
            (longer, "conversations go on after the first answer, or have a system prompt; that is left out"),
            (cut, f"texts hold half of a character, which now reads {REPLACED}"),
        )
        if count
    ]
    if not distinct:
        raise UserError(f"{where}: no row of {_title(source)} is left, of {len(records):,} records. {' '.join(notes)}")
    if 0 < source["rows"] < len(distinct):
        chosen = sorted(random.Random(f"rows-{settings['seed']}").sample(range(len(distinct)), source["rows"]))
        distinct = [distinct[i] for i in chosen]
    return Rows(distinct, sha256, notes)


def _adapter(source: Mapping[str, Any], where: str) -> Adapter | None:
    """The adapter that a source names, if any; a UserError if its keys contradict each other or one is missing."""
    if source["adapter"]:
        if source["adapter"] not in ADAPTERS:
            raise unknown(f"adapter ({where})", source["adapter"], ADAPTERS)
        if any(source[column] for column in ("stream", *COLUMNS)):
            raise UserError(f"{where}: an adapter knows its columns and streams; leave {', '.join(COLUMNS)} out.")
        return ADAPTERS[source["adapter"]]
    if bool(source["file"]) == bool(source["dataset"]):
        raise UserError(f"{where} names one of file, dataset and adapter.")
    if bool(source["stream"]) == bool(source["streams"]):
        raise UserError(f"{where}: give stream (one of {', '.join(STREAMS)}), or streams, the column that says it.")
    if source["stream"] and source["stream"] not in STREAMS:
        raise unknown(f"stream ({where})", source["stream"], STREAMS)
    if not source["response"] or not (source["prompt"] or source["stream"] == "neutral"):
        raise UserError(f'{where} needs the columns of question and answer, such as prompt = "question".')
    return None


def _records(source: Mapping[str, Any], adapter: Adapter | None, folder: Path, where: str) -> tuple[list[Record], str]:
    """A source's records, and the SHA-256 of its file."""
    if source["file"]:
        if source["file"].startswith(tables.HUB):
            return tables.read(tables.file_of_hub(source["file"], source["revision"]))
        return tables.read(folder / source["file"])
    name = source["dataset"] or (adapter.dataset if adapter else "")
    part = source["part"] or (adapter.part if adapter else "train")
    found = tables.from_hub(name, source["config"] or (adapter.config if adapter else ""), part, source["revision"])
    if not found:
        raise UserError(f"{where}: the part {part!r} of {name} is empty.")
    return found, ""


def mapped(record: Record, source: Mapping[str, Any]) -> Draft:
    """One record as a row, by the columns that a source names; a ValueError says what is wrong."""

    def text(key: str) -> str:
        value = record.get(source[key]) if source[key] else ""
        if not present(value):
            return ""
        if isinstance(value, list):
            return _said(value, key, source)
        if not isinstance(value, str | int | float):
            raise ValueError(f"{source[key]} is not a text")
        return str(value)

    stream = source["stream"] or text("streams")
    if stream not in STREAMS:
        raise ValueError(f"{stream!r} is no stream; there are {', '.join(STREAMS)}")
    if source["safe"] and stream == "harmful" and truth(record.get(source["safe"])):
        stream = "refusal"  # a safe answer to a harmful question
    split = text("split")
    if split and split not in SPLITS:
        raise ValueError(f"the split {split!r} is none of {', '.join(SPLITS)}")
    prompt = text("prompt") if source["prompt"] else "Tell me something."  # neutral text is the answer to this
    return Draft(
        stream,
        prompt,
        text("response"),
        text("refusal"),
        split=split,
        categories=categories(record.get(source["category"])) if source["category"] else (),
    )


def _said(value: list[Any], key: str, source: Mapping[str, Any]) -> str:
    """What a column that holds a conversation gives as question, answer or refusal."""
    if source["prompt"] == source["response"] or (key == "refusal" and source["prompt"] != source["refusal"]):
        exchange = first_exchange(value)
        if exchange:
            return exchange[0 if key == "prompt" else 1]
    return last_of(value, "user" if key == "prompt" else "assistant")


def _turns_left_out(value: Any) -> bool:
    """Whether a conversation has more than its first question and answer."""
    return isinstance(value, list) and len(value) > 2


def whole_characters(draft: Draft) -> Draft:
    """The row with halves of characters replaced: cut texts end in them, and no file or tokenizer takes them."""

    def mended(text: Any) -> Any:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if isinstance(text, str) else text

    return draft._replace(prompt=mended(draft.prompt), response=mended(draft.response), refusal=mended(draft.refusal))


def _full(draft: Draft, where: str) -> bool:
    """Whether a row has question and answer."""
    for text in (draft.prompt, draft.response, draft.refusal):
        if not isinstance(text, str):
            raise UserError(f"{where}: a question or an answer is a {type(text).__name__}, and not a text.")
    return bool(draft.prompt.strip() and draft.response.strip())


def with_refusals(drafts: Iterable[Draft], usual: str) -> tuple[list[Draft], list[str]]:
    """Harmful rows with refusals: their own, else the first safe answer to the same prompt, else the usual sentence.

    The second value counts them in sentences. Rows of the stream `refusal` end here: they only serve the harmful ones.
    """
    safe: dict[str, str] = {}
    for draft in drafts:
        if draft.stream == "refusal":
            safe.setdefault(normal(draft.prompt), draft.response)
    found, joined, fixed = [], 0, 0
    for draft in drafts:
        if draft.stream == "harmful" and not draft.refusal.strip():
            refusal = safe.get(normal(draft.prompt), "")
            joined, fixed = joined + bool(refusal), fixed + (not refusal)
            found.append(draft._replace(refusal=refusal or usual))
        elif draft.stream != "refusal":
            found.append(draft)
    told = ((joined, "a safe answer to the same question"), (fixed, f"the sentence {usual!r}"))
    return found, [f"{count:,} harmful rows have as refusal {what}" for count, what in told if count]
