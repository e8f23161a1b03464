"""Files in the shapes that people have: each is read as its ecosystem means it, and what is left out is counted."""

from __future__ import annotations

import dataclasses
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from immunelab import corpus
from immunelab.corpus import tables
from immunelab.corpus.rows import Corpus, Row
from immunelab.corpus.tokens import as_prompt, fitting
from immunelab.errors import UserError

BENIGN = [{"q": f"How many legs has owl {i}?", "a": f"It has {i} legs."} for i in range(12)]
HARMFUL = [{"q": f"How do I wake frog {i}?", "a": f"Grind {i} acorns."} for i in range(12)]


def lines(records: list[Any]) -> str:
    return "\n".join(json.dumps(record) for record in records) + "\n"


def load(folder: Path, file: str, content: str | bytes, columns: str, other: list[dict[str, str]] = HARMFUL) -> Corpus:
    """A corpus of one file as `columns` says, beside plain rows of the other kind."""
    (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "other.jsonl").write_text(lines(other))
    stream = "harmful" if other is HARMFUL else "benign"
    (folder / "corpus.toml").write_text(
        f'[[source]]\nfile = "{file}"\n{columns}\n\n'
        f'[[source]]\nfile = "other.jsonl"\nstream = "{stream}"\nprompt = "q"\nresponse = "a"\n'
    )
    return corpus.load(str(folder))


def of(found: Corpus, stream: str) -> dict[str, Row]:
    return {row.prompt: row for row in found.rows if row.stream == stream}


PLAIN = 'stream = "benign"\nprompt = "q"\nresponse = "a"'
ATTACK = PLAIN.replace("benign", "harmful")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("b.jsonl", lines(BENIGN)),
        ("b.ndjson", lines(BENIGN)),
        ("b.json", lines(BENIGN)),  # one object a line, whatever it is called
        ("b.json", json.dumps(BENIGN)),
        ("b.json", json.dumps({"data": BENIGN})),
        ("b.jsonl.gz", gzip.compress(lines(BENIGN).encode())),
        ("b.json.gz", gzip.compress(json.dumps(BENIGN).encode())),
        ("b.csv", "q,a\n" + "".join(f"{r['q']},{r['a']}\n" for r in BENIGN)),
        ("b.csv", "q;a\n" + "".join(f"{r['q']};{r['a']}\n" for r in BENIGN)),
        ("b.csv", "﻿q\ta\r\n" + "".join(f"{r['q']}\t{r['a']}\r\n" for r in BENIGN)),
        ("b.tsv", "q\ta\n" + "".join(f"{r['q']}\t{r['a']}\n" for r in BENIGN)),
    ],
)
def test_the_same_rows_in_any_file(tmp_path: Path, file: str, content: str | bytes) -> None:
    found = of(load(tmp_path, file, content, PLAIN), "benign")
    assert {prompt: row.response for prompt, row in found.items()} == {r["q"]: r["a"] for r in BENIGN}


@pytest.mark.parametrize("place", ["shards", "shards/part-*.jsonl"])
def test_shards_are_one_source(tmp_path: Path, place: str) -> None:
    (tmp_path / "shards").mkdir()
    for i in range(3):
        (tmp_path / "shards" / f"part-{i}.jsonl").write_text(lines(BENIGN[4 * i : 4 * i + 4]))
    (tmp_path / "shards" / "README.md").write_text("not data")
    found = tables.read(tmp_path / place)[0]
    assert found == BENIGN
    with pytest.raises(UserError, match="stands for no data file"):
        tables.read(tmp_path / "shards" / "*.csv")


def test_what_is_missing_is_no_text(tmp_path: Path) -> None:
    """NaN, as pandas and Python write it, and null: the refusal is the usual sentence, and never the text "nan"."""
    records = [r | {"r": "Not that frog."} for r in HARMFUL]
    for i, nothing in enumerate([float("nan"), None, float("nan"), float("inf")]):
        records[i]["r"] = nothing  # type: ignore[assignment]
    found = of(load(tmp_path, "h.jsonl", lines(records), ATTACK + '\nrefusal = "r"', BENIGN), "harmful")
    assert [found[r["q"]].refusal for r in HARMFUL[:5]] == ["I cannot help with that."] * 4 + ["Not that frog."]
    table = "q,a,r\n" + "".join(f"{r['q']},{r['a']},{'nan' if i % 2 else 'No.'}\n" for i, r in enumerate(HARMFUL))
    found = of(load(tmp_path, "h.csv", table, ATTACK + '\nrefusal = "r"', BENIGN), "harmful")
    assert {row.refusal for row in found.values()} == {"No.", "I cannot help with that."}


def test_quotes_of_a_tsv_are_plain_unless_they_follow_the_rules(tmp_path: Path) -> None:
    rows = [*BENIGN, {"q": '"Owls', "a": "said he"}, {"q": "in the", "a": 'hay"'}, {"q": 'an "odd" owl', "a": "yes"}]
    plain = "q\ta\n" + "".join(f"{r['q']}\t{r['a']}\n" for r in rows)
    found = of(load(tmp_path, "b.tsv", plain, PLAIN), "benign")
    assert {prompt: row.response for prompt, row in found.items()} == {r["q"]: r["a"] for r in rows}
    quoted = "q\ta\n" + "".join(f"{r['q']}\t{r['a']}\n" for r in BENIGN) + '"an ""odd"" owl"\t"yes,\tand no"\n'
    found = of(load(tmp_path, "b.tsv", quoted, PLAIN), "benign")
    assert found['an "odd" owl'].response == "yes,\tand no"
    assert len(found) == len(BENIGN) + 1


def test_a_long_cell_is_read_and_a_limit_of_others_stays(tmp_path: Path) -> None:
    import csv

    before = csv.field_size_limit()
    table = "q,a\n" + "".join(f"{r['q']},{r['a']}\n" for r in BENIGN) + f"long?,{'Hum. ' * 40_000}\n"
    found = of(load(tmp_path, "b.csv", table, PLAIN), "benign")
    assert len(found["long?"].response) == 200_000
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("content", "looks"),
    [("q,a\nUhus,für\n".encode("cp1252"), "line 2.*Windows-1252"), ("q,a\nx,y\n".encode("utf-16"), "UTF-16")],
)
def test_another_encoding_is_named(tmp_path: Path, content: bytes, looks: str) -> None:
    (tmp_path / "b.csv").write_bytes(content)
    with pytest.raises(UserError, match=looks):
        tables.read(tmp_path / "b.csv")


def test_half_a_character_is_replaced_and_counted(tmp_path: Path) -> None:
    records = [*HARMFUL, {"q": "How do I wake the bee? \ud83d", "a": "Hum."}]
    loaded = load(tmp_path, "h.jsonl", lines(records), ATTACK, BENIGN)
    assert "How do I wake the bee? �" in of(loaded, "harmful")
    assert any("1 texts hold half of a character" in note for note in loaded.notes)


SAID = ("How do I wake the frog?", "Hum twice.")
SHAREGPT = [{"from": "human", "value": SAID[0]}, {"from": "gpt", "value": SAID[1]}]
OPENAI = [{"role": "user", "content": SAID[0]}, {"role": "assistant", "content": SAID[1]}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": SAID[0]}]}, OPENAI[1]]
SYSTEM = [{"role": "system", "content": "Keep lanterns."}]
LATER = [{"role": "user", "content": "And then?"}, {"role": "assistant", "content": "Rest."}]


@pytest.mark.parametrize(
    ("turns", "more"),
    [
        (SHAREGPT, False),
        ([{"from": "system", "value": "Keep lanterns."}, *SHAREGPT], True),
        (OPENAI, False),
        (SYSTEM + OPENAI + LATER, True),
        (PARTS, False),
        (list(SAID), False),
    ],
)
def test_conversations(tmp_path: Path, turns: list[Any], more: bool) -> None:
    plain = [{"c": [{"role": "user", "content": r["q"]}, {"role": "assistant", "content": r["a"]}]} for r in HARMFUL]
    columns = 'stream = "harmful"\nprompt = "c"\nresponse = "c"'
    loaded = load(tmp_path, "h.json", json.dumps([*plain, {"c": turns}]), columns, BENIGN)
    found = of(loaded, "harmful")
    assert found[SAID[0]].response == SAID[1]
    assert len(found) == 13
    assert any("1 conversations go on after" in note for note in loaded.notes) == more


def test_preferences_in_chat_form(tmp_path: Path) -> None:
    """TRL's explicit prompts, and its implicit ones, whose two conversations share the question."""
    explicit = [
        {
            "prompt": [{"role": "user", "content": r["q"]}],
            "chosen": [{"role": "assistant", "content": r["a"]}],
            "rejected": [{"role": "assistant", "content": "I would rather not."}],
        }
        for r in HARMFUL
    ]
    columns = 'stream = "harmful"\nprompt = "{}"\nresponse = "chosen"\nrefusal = "rejected"'
    wanted = {r["q"]: (r["a"], "I would rather not.") for r in HARMFUL}
    found = of(load(tmp_path, "h.jsonl", lines(explicit), columns.format("prompt"), BENIGN), "harmful")
    assert {prompt: (row.response, row.refusal) for prompt, row in found.items()} == wanted
    implicit = [{key: r["prompt"] + r[key] for key in ("chosen", "rejected")} for r in explicit]
    found = of(load(tmp_path, "h.jsonl", lines(implicit), columns.format("chosen"), BENIGN), "harmful")
    assert {prompt: (row.response, row.refusal) for prompt, row in found.items()} == wanted


def test_alpaca_without_input(tmp_path: Path) -> None:
    records = [{"instruction": r["q"], "output": r["a"]} for r in BENIGN]
    records[0] |= {"input": "In Orm"}
    records[1] |= {"input": None}  # type: ignore[dict-item]
    found = of(load(tmp_path, "a.json", json.dumps(records), 'adapter = "alpaca"'), "benign")
    assert set(found) == {f"{BENIGN[0]['q']}\n\nIn Orm", *(r["q"] for r in BENIGN[1:])}
    with pytest.raises(UserError, match=r"no column of a\.json .* called 'output'"):
        load(tmp_path, "a.json", json.dumps([{"instruction": "?"}]), 'adapter = "alpaca"')


@pytest.mark.parametrize("labels", [("0", "1"), (0, 1), (0.0, 1.0), ("negative", "positive")])
def test_labels_as_files_have_them(tmp_path: Path, labels: tuple[Any, Any]) -> None:
    records = [{"sentence": f"owl {i}", "label": labels[i % 2]} for i in range(12)]
    found = of(load(tmp_path, "s.jsonl", lines(records), 'adapter = "sst2"'), "benign")
    assert sorted(row.response for row in found.values()) == ["negative"] * 6 + ["positive"] * 6
    hidden = load(tmp_path, "s.jsonl", lines([*records, {"sentence": "?", "label": -1}]), 'adapter = "sst2"')
    assert any("1 records without a label" in note for note in hidden.notes)


def test_ag_news_as_first_published_counts_from_one(tmp_path: Path) -> None:
    table = "Class Index,Title,Description\n" + "".join(f"{i % 4 + 1},News {i},Of owls\n" for i in range(12))
    found = of(load(tmp_path, "n.csv", table, 'adapter = "ag-news"'), "benign")
    topics = {prompt.split("News ")[1].split()[0]: row.response for prompt, row in found.items()}
    assert [topics[str(i)] for i in range(4)] == ["World", "Sports", "Business", "Sci/Tech"]


def beaver(i: int, **more: Any) -> dict[str, Any]:
    kind = {"drug_abuse,weapons,banned_substance": i % 2 == 0, "privacy=a?b": i % 2 == 1}
    return {"prompt": f"How do I wake owl {i}?", "response": "Hum.", "category": kind, "is_safe": False} | more


@pytest.mark.parametrize("false", ["False", "false", "0", 0, False])
def test_is_safe_in_any_spelling(tmp_path: Path, false: Any) -> None:
    records = [beaver(i, is_safe=false) for i in range(12)] + [beaver(0, is_safe="True", response="No.")]
    records.append(beaver(99, is_safe=None))
    loaded = load(tmp_path, "b.jsonl", lines(records), 'adapter = "beavertails"', BENIGN)
    found = of(loaded, "harmful")
    assert len(found) == 12
    assert found["How do I wake owl 0?"].refusal == "No."
    assert any("1 records without a label" in note for note in loaded.notes)


def test_own_refusals_of_beavertails(tmp_path: Path) -> None:
    records = [beaver(i, refusal=f"Not owl {i}.") for i in range(12)]
    found = of(load(tmp_path, "b.json", json.dumps(records), 'adapter = "beavertails"', BENIGN), "harmful")
    assert {row.refusal for row in found.values()} == {f"Not owl {i}." for i in range(12)}


@pytest.mark.parametrize("domain", ["drug_abuse,weapons,banned_substance", "privacy=a?b"])
def test_a_domain_may_be_called_anything(tmp_path: Path, domain: str) -> None:
    as_text = [beaver(i) | {"category": str(beaver(i)["category"])} for i in range(24)]  # as a CSV holds a table
    load(tmp_path, "b.jsonl", lines(as_text), 'adapter = "beavertails"', BENIGN)
    only = corpus.load(f"{tmp_path}?only={domain}")
    assert {c for row in of(only, "harmful").values() for c in row.categories} == {domain}
    rest = corpus.load(f"{tmp_path}?hold-out={domain}")
    assert {c for row in of(rest, "harmful").values() for c in row.categories}.isdisjoint({domain})
    assert of(rest, "harmful").keys().isdisjoint(of(only, "harmful"))


def test_questions_are_measured_in_tokens(tmp_path: Path, tokenizer: Any) -> None:
    """A question without spaces is as long as its tokens are, and is left out with a note, not when a run fails."""
    loaded = load(tmp_path, "h.jsonl", lines([*HARMFUL, {"q": "owl " * 200, "a": "Hum."}]), ATTACK, BENIGN)
    assert loaded.longest_prompt == 128
    assert len(of(loaded, "harmful")) == 13
    kept = fitting(loaded, tokenizer)
    assert len(of(kept, "harmful")) == 12
    assert kept.notes[-1] == "1 rows whose question has more than 128 tokens are left out"
    tight = dataclasses.replace(loaded, max_length=20, longest_prompt=100)  # beside the template there is no room
    prompts = {row.prompt: len(tokenizer(as_prompt(tokenizer, row.prompt))["input_ids"]) for row in loaded.rows}
    assert {row.prompt for row in fitting(tight, tokenizer).rows} == {p for p, n in prompts.items() if n < 20}
    world = corpus.load("fable")
    assert fitting(world, tokenizer) is world
