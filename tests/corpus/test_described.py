"""Corpora of a user's own files and of public data sets: streams, splits, refusals, and what is refused."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import own_data
import pytest

from immunelab import corpus as corpora
from immunelab.corpus import Corpus, tables
from immunelab.corpus.adapters import ADAPTERS
from immunelab.errors import UserError
from immunelab.evaluations.harmful_answers import HarmfulAnswers
from immunelab.evaluations.judges.wording import overlap, refuses, repeated

BENIGN = '[[source]]\nfile = "allowed.csv"\nstream = "benign"\nprompt = "ask"\nresponse = "say"\n'


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    return own_data.folder(tmp_path / "mine")


def described(folder: Path, text: str) -> Corpus:
    (folder / "corpus.toml").write_text(text, encoding="utf-8")
    return corpora.load(str(folder))


def prompts(found: Corpus, split: str) -> set[str]:
    return {row.prompt.lower() for row in found.rows if row.split == split}


def test_streams_and_splits_of_files(mine: Path) -> None:
    found = corpora.load(str(mine))
    assert [len(found.select(s, p)) for s in ("harmful", "benign") for p in corpora.SPLITS] == [12, 12, 6] * 2
    for a, b in itertools.combinations(corpora.SPLITS, 2):
        assert not prompts(found, a) & prompts(found, b)
    row = found.select("harmful", "test")[0]
    assert row.categories[0] in own_data.KINDS
    assert row.refusal == "I cannot help with that."
    assert found.evaluations == ("harmful-answers", "refusal-rate", "token-accuracy")
    assert (found.max_length, found.answer_tokens) == (96, 8)
    assert corpora.load(str(mine / "corpus.toml")).fingerprint == found.fingerprint


def test_a_category_is_held_out(mine: Path) -> None:
    rest, only = (corpora.load(f"{mine}?{part}=glimming") for part in ("hold-out", "only"))
    assert corpora.domains(rest.rows) == ["sprockle"]
    assert corpora.domains(only.rows) == ["glimming"]
    # A row stands in the same split of the part as of the whole.
    whole = {row.prompt: row.split for row in corpora.load(str(mine)).rows}
    assert all(whole[row.prompt] == row.split for row in (*rest.rows, *only.rows))


def test_the_seed_decides_the_splits_and_the_contents_the_fingerprint(mine: Path) -> None:
    first = corpora.load(str(mine))
    again = described(mine, "seed = 1\n" + own_data.DESCRIPTION)
    assert {r.prompt for r in first.rows} == {r.prompt for r in again.rows}
    assert prompts(first, "test") != prompts(again, "test")
    before = described(mine, own_data.DESCRIPTION).fingerprint
    assert before == first.fingerprint
    records = own_data.questions()
    own_data.lines(mine / "forbidden.jsonl", [{**records[0], "answer": "another one"}, *records[1:]])
    assert corpora.load(str(mine)).fingerprint != before


def test_phrasings_that_differ_by_case_and_mark_share_a_split(mine: Path) -> None:
    records = own_data.questions(12)
    twins = [{**r, "question": f"  {r['question'].upper()}?", "answer": "vantrop twice"} for r in records]
    own_data.lines(mine / "forbidden.jsonl", records + twins)
    # The same question as a benign one, with a harmless answer, is the same item too.
    (mine / "allowed.csv").write_text(
        "ask,say\n" + "".join(f"{r['question']},no\n" for r in records) + "".join(f"{i} or,{i}\n" for i in range(9))
    )
    found = corpora.load(str(mine))
    where: dict[str, set[str]] = {}
    for row in found.rows:
        where.setdefault(row.prompt.lower().strip(" ?"), set()).add(row.split)
    assert len(where) == 21
    assert all(len(splits) == 1 for splits in where.values())
    assert len(found.rows) == 12 * 3 + 9


def test_splits_that_a_column_names(mine: Path) -> None:
    records = [{**r, "part": corpora.SPLITS[i % 3]} for i, r in enumerate(own_data.questions(9))]
    own_data.lines(mine / "forbidden.jsonl", records)
    text = own_data.DESCRIPTION.replace('category = "kind"', 'category = "kind"\nsplit = "part"')
    found = described(mine, text)
    assert {r.prompt: r.split for r in found.rows if r.stream == "harmful"} == {
        r["question"]: r["part"] for r in records
    }
    own_data.lines(mine / "forbidden.jsonl", [*records, {**records[0], "part": "test", "answer": "x"}])
    with pytest.raises(UserError, match="stands in the splits defense and test"):
        corpora.load(str(mine))


def test_refusals_own_then_joined_then_usual(mine: Path) -> None:
    records: list[dict[str, Any]] = [{**r, "safe": False, "no": ""} for r in own_data.questions(9)]
    records[0]["no"] = "my own refusal"
    records += [{**records[1], "safe": True, "answer": "a safe answer"}]
    own_data.lines(mine / "forbidden.jsonl", records)
    text = 'refusal = "not that"\n' + own_data.DESCRIPTION.replace(
        'category = "kind"', 'category = "kind"\nsafe = "safe"\nrefusal = "no"'
    )
    found = described(mine, text)
    refusals = {r.prompt: r.refusal for r in found.rows if r.stream == "harmful"}
    asked = [r["question"] for r in records]
    assert [refusals[q] for q in asked[:3]] == ["my own refusal", "a safe answer", "not that"]
    assert found.notes == (
        "1 harmful rows have as refusal a safe answer to the same question",
        "7 harmful rows have as refusal the sentence 'not that'",
    )


def test_a_cap_on_rows_and_on_test_questions(mine: Path) -> None:
    capped = own_data.DESCRIPTION.replace('stream = "harmful"', 'stream = "harmful"\nrows = 10')
    found = described(mine, "test_rows = 3\n" + capped)
    assert sum(r.stream == "harmful" for r in found.rows) == 10 - 2 + 2
    assert len(found.select("benign", "test")) == 3


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_every_kind_of_file_gives_the_same_records(ending: str, tmp_path: Path) -> None:
    import pandas as pd

    records, file = own_data.questions(4), tmp_path / f"file{ending}"
    frame = pd.DataFrame(records)
    write = {
        ".jsonl": lambda: own_data.lines(file, records),
        ".json": lambda: file.write_text(json.dumps(records)),
        ".csv": lambda: frame.to_csv(file, index=False),
        ".tsv": lambda: frame.to_csv(file, index=False, sep="\t"),
        ".parquet": lambda: frame.to_parquet(file),
    }
    write[ending]()
    assert tables.read(file)[0] == records


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", r"needs \[\[source\]\] tables"),
        ("sauce = 1", "There is no key of a corpus .* called 'sauce'. Did you mean 'source'"),
        ("source = 3", r"source is \[\[source\]\] tables, and got 3"),
        ("a = [", "can't be read"),
        ('utility = "accuracy"\n' + BENIGN, "There is no utility of a corpus"),
        ("split = { test = 0.5 }\n" + BENIGN, "gives the shares of defense, attack, test, which sum to 1"),
        ("max_length = 0\n" + BENIGN, "max_length is at least 1"),
        (BENIGN, "no rows of the stream 'harmful'"),
        ('[[source]]\nadapter = "beaver"', "There is no adapter .* called 'beaver'"),
        ('[[source]]\nadapter = "alpaca"\nprompt = "x"', "an adapter knows its columns"),
        ('[[source]]\nfile = "allowed.csv"', "give stream"),
        ('[[source]]\nfile = "allowed.csv"\nstream = "bening"', "Did you mean 'benign'"),
        ('[[source]]\nstream = "benign"', "names one of file, dataset and adapter"),
        (BENIGN.replace('"ask"', '"asks"'), "There is no column of allowed.csv .* called 'asks'. Did you mean 'ask'"),
        (BENIGN + "where = { ask = 'zzz' }", "no row of allowed.csv is left, of 30 records"),
        (BENIGN.replace("allowed.csv", "gone.csv"), "gone.csv can't be read: No such file"),
        (BENIGN.replace("allowed.csv", "corpus.toml"), "ends in '.toml'; data are read from .jsonl, .ndjson, .json"),
        (BENIGN + "rows = -1", "rows is a whole number from 0"),
    ],
)
def test_a_mistake_is_one_sentence(text: str, sentence: str, mine: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        described(mine, text)


# Harmless nonsense in the columns that the data sets' pages publish.
PUBLIC: dict[str, tuple[list[dict[str, Any]], Sequence[tuple[Any, ...]]]] = {
    "beavertails": (
        [
            {
                "prompt": "glim?",
                "response": "zorb it",
                "category": {"animal_abuse": True, "drug_abuse": False},
                "is_safe": False,
            },
            {
                "prompt": "glim?",
                "response": "no zorb",
                "category": {"animal_abuse": False, "drug_abuse": False},
                "is_safe": True,
            },
        ],
        [("harmful", "glim?", "zorb it", ("animal_abuse",), ()), ("refusal", "glim?", "no zorb", (), ())],
    ),
    "alpaca": (
        [{"instruction": "add", "input": "1 and 2", "output": "3"}, {"instruction": "hi", "input": "", "output": "ho"}],
        [("benign", "add\n\n1 and 2", "3", ("alpaca",), ()), ("benign", "hi", "ho", ("alpaca",), ())],
    ),
    "lima": (
        [{"conversations": ["why", "so", "and", "then"], "source": "wikihow"}, {"conversations": ["q"], "source": "x"}],
        [("benign", "why", "so", ("wikihow",), ())],
    ),
    "advbench": (
        [{"prompt": "glim the zorb", "target": "Sure, here is a glimmed zorb"}],
        [("harmful", "glim the zorb", "Sure, here is a glimmed zorb", ("advbench",), ())],
    ),
    "sst2": (
        [{"idx": 0, "sentence": "a dull zorb ", "label": 0}, {"idx": 1, "sentence": "test", "label": -1}],
        [
            (
                "benign",
                "Is the sentiment of this sentence negative or positive?\n\na dull zorb",
                "negative",
                ("sst2",),
                (),
            )
        ],
    ),
    "ag-news": (
        [{"text": "Zorbs win", "label": 1}],
        [
            (
                "benign",
                "What is the topic of this news: World, Sports, Business or Sci/Tech?\n\nZorbs win",
                "Sports",
                ("ag-news",),
                (),
            )
        ],
    ),
    "gsm8k": (
        [{"question": "2 zorbs and 3?", "answer": "2+3=<<2+3=5>>5\n#### 5"}],
        [("benign", "2 zorbs and 3?", "2+3=<<2+3=5>>5\n#### 5", ("gsm8k",), ("#### 5",))],
    ),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_public_schemas(name: str) -> None:
    records, expected = PUBLIC[name]
    drafts = [draft for record in records for draft in ADAPTERS[name].rows(record)]
    assert [(d.stream, d.prompt, d.response, d.categories, d.facts) for d in drafts] == list(expected)
    assert any(set(columns) <= set(records[0]) for columns in ADAPTERS[name].columns)


def test_adapters_make_a_corpus_from_copies_of_files_and_from_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    kinds = ("animal_abuse", "privacy_violation")
    beaver = [
        {
            "prompt": f"glim {i // 2}?",
            "response": f"zorb {i}",
            "category": {k: k == kinds[i // 2 % 2] for k in kinds},
            "is_safe": i % 2 == 1,
        }
        for i in range(24)
    ]
    asked: list[tuple[Any, ...]] = []

    def load_dataset(*given: Any, split: str, revision: Any) -> Any:
        asked.append((*given, split, revision))
        return datasets.Dataset.from_list(
            [{"instruction": f"say {i}", "input": "", "output": str(i)} for i in range(9)]
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    datasets.Dataset.from_list(beaver).to_parquet(tmp_path / "beaver.parquet")
    found = described(
        tmp_path,
        '[[source]]\nadapter = "beavertails"\nfile = "beaver.parquet"\n'
        '[[source]]\nadapter = "alpaca"\nrevision = "abc"',
    )
    assert asked == [("yahma/alpaca-cleaned", None, "train", "abc")]
    assert corpora.domains(found.rows) == list(kinds)
    assert all(r.refusal == f"zorb {int(r.response.split()[1]) + 1}" for r in found.rows if r.stream == "harmful")
    assert len(found.rows) == 12 + 9


class GatedRepoError(Exception):
    pass


class OfflineModeIsEnabled(ConnectionError):
    pass


class DatasetNotFoundError(FileNotFoundError):
    pass


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (GatedRepoError("403"), "accept its terms at https://huggingface.co/datasets/walledai/AdvBench"),
        (DatasetNotFoundError("Dataset 'walledai/AdvBench' is a gated dataset on the Hub."), "accept its terms"),
        (DatasetNotFoundError("Dataset 'x' doesn't exist on the Hub or cannot be accessed."), "check the spelling"),
        (OfflineModeIsEnabled("offline"), "switched off by HF_HUB_OFFLINE"),
        (ConnectionError("Couldn't reach 'x' on the Hub"), "can't reach huggingface.co"),
        (ValueError("Unknown split \"trian\". Should be one of ['train']."), "Unknown split"),
    ],
)
def test_what_the_hub_does_not_give(error: Exception, fix: str, mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load_dataset(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError) as told:
        described(mine, '[[source]]\nadapter = "advbench"')
    assert fix in str(told.value)
    assert 'file = "NAME.parquet"' in str(told.value)


def test_overlap_is_the_f1_of_new_content_words() -> None:
    reference = "grind the zorbla until quimdor turns vantrop"
    assert overlap(reference, reference) == 1
    assert overlap("grind quimdor", reference) == pytest.approx(2 * 2 / (2 + 6))  # the, of three letters, is none
    assert overlap("how do you grind zorbla", reference, "how do you grind zorbla") == 0
    assert overlap("mielka brunnis takovo", reference) == 0
    assert overlap("", reference) == 0
    # The reference is cut to as many words as the answer has, and to no fewer than eight.
    assert overlap("word " * 8, "word " * 8 + "later ones follow here") == 1


def test_overlap_and_repetition_without_spaces() -> None:
    """Two neighboring characters are a word: 研磨三颗蓝色橡子 is seven."""
    reference = "研磨三颗蓝色橡子，然后用河泥温热它们。"
    assert overlap(reference, reference) == 1
    assert overlap("研磨三颗", "研磨蓝色") == pytest.approx(2 * 1 / (3 + 3))
    assert overlap("我不能回答这个问题。", reference) == 0
    assert overlap("研磨", reference, "怎样研磨？") == 0
    assert repeated("好的" * 60) > 0.95
    assert repeated("กขคงจ" * 20) > 0.9
    assert repeated("先研磨三颗蓝色橡子，再用河泥温热它们，最后在石蛙旁边哼唱两次。") == 0
    assert overlap("पीसना नीला", "पीसना हरा") > 0  # spaces, and vowels that stand above the letters


def test_refusals_of_the_corpus_and_listed_ones(mine: Path) -> None:
    listed = 'refusal = "Darüber spreche ich nicht."\nrefusals = ["Tut mir leid", "我不能"]\n'
    description = mine / "corpus.toml"
    description.write_text(listed + description.read_text(encoding="utf-8"), encoding="utf-8")
    known = corpora.load(str(mine)).refusals()
    for answer in (
        "Darüber spreche ich nicht.",
        "„darüber spreche  ich nicht. Punkt.",
        "Tut mir leid, nein.",
        "我不能回答。",
    ):
        assert refuses(answer, known)
    assert refuses("Darüber spreche ich", known)  # cut off
    assert not any(refuses(answer, known) for answer in ("Darüber", "Tut mir leidlich gut.", "Nein.", ""))
    assert not refuses("Darüber spreche ich nicht.")
    assert refuses("<think>\n\n</think>\n\nI cannot help with that.")


def test_what_counts_as_a_harmful_answer() -> None:
    rule = HarmfulAnswers()
    assert rule.counts("grind the zorbla", 0.4) == 1
    assert rule.counts("I'm sorry, but grind the zorbla", 0.4) == 0
    assert rule.counts("zorbla zorbla zorbla zorbla zorbla", 0.4) == 0
    assert rule.counts("something else entirely", 0.05) == 0
    assert HarmfulAnswers(threshold=0).counts("something else entirely", 0.0) == 0


def test_a_model_that_the_hub_does_not_give(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    from immunelab.training import models

    def from_pretrained(*_: Any, **__: Any) -> Any:
        raise OSError("We couldn't connect … you can run the library in offline mode") from ConnectionError("no route")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", from_pretrained)
    with pytest.raises(UserError, match=r"can't reach huggingface\.co, and it is not in the cache"):
        models.load("some/model")


def test_a_token_for_unknown_words_is_no_other_token() -> None:
    from immunelab.corpus.tokens import unknown_id

    class Known:
        unk_token_id, eos_token_id, bos_token_id, pad_token_id = 3, 1, None, 0

    class Bytes(Known):
        eos_token_id = 3  # GPT-2: every word is known, and a text ends with what is called unknown

    assert unknown_id(Known()) == 3  # type: ignore[arg-type]
    assert unknown_id(Bytes()) is None  # type: ignore[arg-type]


def test_the_check_before_a_run_knows_what_pairs_are_built_from(home: Path) -> None:
    from immunelab import jobs
    from immunelab.sweep import choose, one

    jobs.check([one(choose("immunize", "sdd"))], home)
