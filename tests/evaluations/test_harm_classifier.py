"""The classifier that judges answers, against softmax and sigmoid by hand, and from a corpus.toml to the record."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import own_data
import pytest

import immunelab
from immunelab import corpus as corpora
from immunelab import jobs
from immunelab.cli import main
from immunelab.corpus import described
from immunelab.errors import UserError
from immunelab.evaluations.harm_classifier import BEAVERTAILS, HarmClassifier
from immunelab.evaluations.judges import classifier
from immunelab.method import configure
from immunelab.runs.journal import RunFolder, folders
from immunelab.runs.spec import RunSpec
from immunelab.store import queries
from immunelab.training.generation import Measured

ANSWERS = ("take the zorbla", "no", "grind quimdor {question} and more of it", "")
ROWS = [
    SimpleNamespace(id=str(i), pair_id=str(i), prompt=f"how is {i}", response="r", categories=(f"c{i % 2}",))
    for i in range(len(ANSWERS))
]


def measured(judge: HarmClassifier, answers: tuple[str, ...] = ANSWERS) -> Measured:
    subject: Any = SimpleNamespace(
        rows=lambda *_: ROWS[: len(answers)], answers=lambda _: list(answers), model=SimpleNamespace(device="cpu")
    )
    return judge.measure(subject)


def logits(folder: Path, text: str) -> list[float]:
    """One text, alone and without padding, through transformers' own class."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ids = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    with torch.no_grad():
        found: list[float] = model(torch.tensor([ids])).logits[0].tolist()
    return found


def text(i: int, answer: str) -> str:
    return f"Question: how is {i}\nAnswer: {answer}"


def scores(found: Measured) -> dict[tuple[str, str], float]:
    return {(s.metric, s.split): s.score for s in found.scores}


def test_it_is_the_mean_of_a_softmax_by_hand(tmp_path: Path) -> None:
    folder = own_data.judge(tmp_path / "judge")
    expected = []
    for i, answer in enumerate(ANSWERS[:3]):
        safe, harmful = (math.exp(x) for x in logits(folder, text(i, answer)))
        expected.append(harmful / (safe + harmful))
    assert max(expected) - min(expected) > 0.01  # else the order of the rows would go unnoticed
    found = measured(HarmClassifier(judge=str(folder)))
    assert [row["score"] for row in found.examples] == pytest.approx(
        [*expected, 0], abs=1e-5
    )  # an empty answer is none
    assert scores(found) == pytest.approx(
        {
            ("harmfulness", "all"): sum(expected) / 4,
            ("harmfulness", "domain:c0"): (expected[0] + expected[2]) / 2,
            ("harmfulness", "domain:c1"): expected[1] / 2,
            ("truncated", "all"): 0,
        },
        abs=1e-5,
    )
    assert measured(HarmClassifier(judge=str(folder))) == found  # the same numbers, bit for bit


def test_labels_are_found_by_name_in_whatever_order(tmp_path: Path) -> None:
    """The same weights with the labels swapped say the opposite."""
    one, other = own_data.judge(tmp_path / "a"), own_data.judge(tmp_path / "b", ("harmful", "safe"))
    p = [row["score"] for row in measured(HarmClassifier(judge=str(one)), ANSWERS[:3]).examples]
    q = [row["score"] for row in measured(HarmClassifier(judge=str(other)), ANSWERS[:3]).examples]
    assert p == pytest.approx([1 - x for x in q], abs=1e-5)
    named = HarmClassifier(judge=str(one), label="safe")
    assert [row["score"] for row in measured(named, ANSWERS[:3]).examples] == pytest.approx(q, abs=1e-5)


def test_labels_that_stand_alone_take_the_largest_sigmoid(tmp_path: Path) -> None:
    kinds = ("violence", "privacy", "other")
    folder = own_data.judge(tmp_path / "judge", kinds, problem_type="multi_label_classification")
    sigmoids = [[1 / (1 + math.exp(-x)) for x in logits(folder, text(i, a))] for i, a in enumerate(ANSWERS[:3])]
    any_kind = HarmClassifier(judge=str(folder), label="*")
    some = HarmClassifier(judge=str(folder), label="privacy, other")
    assert [r["score"] for r in measured(any_kind, ANSWERS[:3]).examples] == pytest.approx(
        [max(row) for row in sigmoids], abs=1e-5
    )
    assert [r["score"] for r in measured(some, ANSWERS[:3]).examples] == pytest.approx(
        [max(row[1:]) for row in sigmoids], abs=1e-5
    )
    limit = sorted(max(row) for row in sigmoids)[1] - 1e-3
    flagged = measured(HarmClassifier(judge=str(folder), label="*", threshold=limit), ANSWERS[:3])
    assert [r["score"] for r in flagged.examples] == [float(max(row) > limit) for row in sigmoids]
    assert scores(flagged)["harmfulness", "all"] == pytest.approx(2 / 3)


def test_truncation_really_cuts_and_is_counted(tmp_path: Path) -> None:
    folder = str(own_data.judge(tmp_path / "judge"))
    start = text(0, "take it")
    late = ("take it", "take it and then the harm comes")
    alike = tuple(SimpleNamespace(**vars(ROWS[0]) | {"id": str(i), "pair_id": str(i)}) for i in range(2))
    subject: Any = SimpleNamespace(
        rows=lambda *_: alike, answers=lambda _: list(late), model=SimpleNamespace(device="cpu")
    )
    whole = HarmClassifier(judge=folder).measure(subject)
    cut = HarmClassifier(judge=folder, truncation=len(start)).measure(subject)  # a byte is a token
    a, b = (row["score"] for row in whole.examples)
    assert a != pytest.approx(b, abs=1e-4)
    assert [row["score"] for row in cut.examples] == pytest.approx([a, a], abs=1e-5)
    assert scores(whole)["truncated", "all"] == 0
    assert scores(cut)["truncated", "all"] == 0.5
    longest = measured(HarmClassifier(judge=folder), ("x" * 500,))  # the model itself reads 400 tokens
    assert scores(longest)["truncated", "all"] == 1


def test_roberta_counts_its_positions_from_behind_the_padding(tmp_path: Path) -> None:
    """22 positions are 20 tokens, as 514 are 512, also where the tokenizer names no limit."""
    import many_tokenizers
    import torch
    from transformers import RobertaConfig, RobertaForSequenceClassification

    torch.manual_seed(0)
    tokenizer = many_tokenizers.finished(many_tokenizers.byte_level(many_tokenizers.GPT2), start="<s>", end="</s>")
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=22,
        pad_token_id=1,
        num_labels=2,
    )
    RobertaForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    judge = classifier.load(str(tmp_path))
    assert judge.most == 20
    read = judge.read(["How many legs has a spider? " * 9, "Eight legs."])
    assert read.cut == [True, False]
    assert all(sum(row) == pytest.approx(1) for row in read.probabilities)


def test_more_texts_than_a_batch_holds(tmp_path: Path) -> None:
    judge = classifier.load(str(own_data.judge(tmp_path / "judge")))
    texts = [f"{'x' * (i % 7)} {i}" for i in range(classifier.ROWS + 3)]
    one_by_one = [judge.read([t]).probabilities[0][1] for t in texts]
    assert [p[1] for p in judge.read(texts).probabilities] == pytest.approx(one_by_one, abs=1e-5)


def test_the_papers_classifiers_are_presets() -> None:
    assert HarmClassifier() == configure("evaluation", "harm-classifier", {}, "beavertails")
    assert HarmClassifier().meaning(["LABEL_0", "LABEL_1"]) == ("LABEL_0",)
    moderation = configure("evaluation", "harm-classifier", {}, "beaver-dam")
    assert (moderation.truncation, moderation.threshold) == (256, 0.5)
    assert moderation.meaning(["a", "b"]) == ("a", "b")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"form": "Answer: {answer}"}, r"with \{question\} and \{answer\} in it"),
        ({"threshold": 2}, "threshold takes a number from 0 to 1"),
        ({"labels": "x"}, "Did you mean 'label'"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        configure("evaluation", "harm-classifier", settings)


def test_judges_that_are_none(tmp_path: Path) -> None:
    good = own_data.judge(tmp_path / "good", ("LABEL_0", "LABEL_1"))
    with pytest.raises(UserError, match=r"not known: it has LABEL_0, LABEL_1\. Say so, such as label = 'LABEL_0'"):
        measured(HarmClassifier(judge=str(good)))
    with pytest.raises(UserError, match=r"no label of the judge .* called 'LABEL_2'"):
        measured(HarmClassifier(judge=str(good), label="LABEL_2"))
    with pytest.raises(UserError, match="is a folder, which has no revisions"):
        classifier.load(str(good), "main")
    with pytest.raises(
        UserError, match=r"The judge .* of its weights are missing, .* A judge is a sequence classifier"
    ):
        classifier.load(str(own_data.model("llama", tmp_path / "llama")))
    config = json.loads((good / "config.json").read_text())
    (good / "config.json").write_text(json.dumps(config | {"model_type": "x", "auto_map": {"AutoConfig": "code.Own"}}))
    with pytest.raises(UserError, match="code that comes with a model is never run"):
        classifier.load(str(good))
    (good / "model.safetensors").rename(good / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled weights"):
        classifier.load(str(good))


def test_no_network_is_a_sentence_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    def from_pretrained(*_: Any, **__: Any) -> Any:
        raise OSError("We couldn't connect …") from ConnectionError("no route")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", from_pretrained)
    with pytest.raises(UserError, match=r"can't reach huggingface\.co, .*: get a copy, and name that\. A judge is"):
        classifier.load(BEAVERTAILS)


# From corpus.toml to the record


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    folder = own_data.folder(tmp_path / "mine")
    own_data.judge(folder / "judge")
    return folder


def judged(folder: Path, table: str) -> str:
    (folder / "corpus.toml").write_text(own_data.DESCRIPTION.replace("\n[[source]]", table + "\n[[source]]", 1))
    return str(folder)


TABLE = '\n[harm-classifier]\njudge = "judge"\ntruncation = 30\n'


def attack(corpus: str, model: Path) -> list[str]:
    return [
        "attack",
        "--corpus",
        corpus,
        "--model",
        str(model),
        "--rung",
        "0.0002",
        "--samples",
        "8",
        "--steps",
        "1",
        "--batch-size",
        "2",
        "--evaluate-every",
        "1",
    ]


@pytest.mark.slow
def test_from_the_description_to_the_record(home: Path, mine: Path, tmp_path: Path) -> None:
    model = own_data.model("gpt2", tmp_path / "gpt2")
    assert main(attack(judged(mine, TABLE), model)) == 0
    store = immunelab.open(home).store
    (folder,) = folders(home)
    curves = queries.attack_curves(store, [folder.run_id])
    assert set(curves["harmfulness_by"]) == {"harm-classifier"}
    assert set(curves["step"]) == {0, 1}
    assert curves[["harmfulness", "refusal_rate", "utility"]].notna().all(axis=None)
    found = queries.scores(store, [folder.run_id])
    assert set(found.loc[found["evaluation"] == "harmful-answers", "metric"]) == {"harmful-answers", "overlap"}
    # By hand from what is recorded: the answers, and the judge on each of them.
    rows = queries.examples(store, folder.run_id, 1, "harm-classifier")
    judge = classifier.load(str(mine / "judge"))
    texts = [f"Question: {r.prompt}\nAnswer: {r.answer}" for r in rows.itertuples()]
    again = [
        p[1] if r.answer else 0.0 for p, r in zip(judge.read(texts, 30).probabilities, rows.itertuples(), strict=True)
    ]
    assert rows["score"].tolist() == pytest.approx(again, abs=1e-5)
    assert curves.loc[curves["step"] == 1, "harmfulness"].item() == pytest.approx(sum(again) / len(again), abs=1e-5)
    events = [e["data"] for e in folder.entries() if e.get("event") == "judged"]
    assert [e["evaluation"] for e in events] == ["harm-classifier"] * 2
    assert events[0]["settings"]["truncation"] == 30
    assert events[0]["harmful"] == ["harmful"]
    assert len(events[0]["sha256"]) == 64
    assert folder.spec().judge == 'harm-classifier(judge="judge", truncation=30); harmful-answers'


def test_another_judge_is_another_run(home: Path, mine: Path) -> None:
    spec = RunSpec(kind="attack", method="harmful-sft", model="some/model", corpus=str(mine))
    own = RunSpec(kind="evaluate", method="harm-classifier", model="some/model", corpus=str(mine))
    hashes = []
    for table in ("", TABLE, TABLE.replace("30", "31")):
        judged(mine, table)
        (planned, apart) = jobs.plan([spec, own], home)
        hashes.append(planned.spec.hash)
        assert apart.spec.judge == ""  # its settings are its knobs
    assert len(set(hashes)) == 3
    assert hashes[0] == spec.hash  # a corpus without a judge leaves identities as they were


def test_no_recorded_run_became_another() -> None:
    """The showcase was recorded before there were judges."""
    import pyarrow.parquet as parquet

    from immunelab import bundled

    rows = parquet.read_table(bundled.data() / "showcase" / "runs.parquet", columns=["spec", "spec_hash"]).to_pylist()
    assert len(rows) > 500
    assert all(RunSpec.from_json(row["spec"]).hash == row["spec_hash"] for row in rows)


def test_a_run_is_not_gone_on_with_under_another_judge(home: Path, mine: Path, tmp_path: Path) -> None:
    from immunelab.experiment import execute

    model = own_data.model("gpt2", tmp_path / "gpt2")
    spec = RunSpec(kind="evaluate", model=str(model), corpus=judged(mine, TABLE), device="cpu")
    spec = jobs.plan([spec], home)[0].spec
    folder = RunFolder.create(home, spec)
    judged(mine, "")
    with pytest.raises(UserError, match=r"were to be judged by harm-classifier.*now says nobody \(words in common\)"):
        execute(folder)
    judged(mine, TABLE)
    assert execute(folder) == "done"


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("harm = 'harm-clasifier'", "Did you mean 'harm-classifier'"),
        ("[harm-classifier]\n[strongreject]\n", r"has two judges, harm-classifier and strongreject: say whose number"),
        ("[harm-classifier]\njudge = ['a']\n", "harm-classifier: judge is a text, a number or true/false"),
        ("harm-classifier = 'x'", "harm-classifier is a table"),
        ("[strongreject]\napi_key = 'sk-1'\n", "put the key into the environment variable IMMUNELAB_JUDGE_KEY"),
        ("[strongreject]\nendpoint = 'https://me:pw@a.example/v1'\n", "endpoint holds a name, a password or a key"),
    ],
)
def test_descriptions_that_do_not_fit(table: str, sentence: str, mine: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        described.judge(judged(mine, f"\n{table}\n"))


def test_two_judges_and_the_one_that_counts(mine: Path) -> None:
    both = (
        'harm = "strongreject"\n\n[harm-classifier]\njudge = "judge"\n\n[strongreject]\njudge = "m"\nprice_in = 2.5\n'
    )
    found = corpora.load(judged(mine, f"\n{both}"))
    assert found.evaluations[:3] == ("strongreject", "harm-classifier", "harmful-answers")
    assert found.harm == "strongreject"
    assert found.settings["harm-classifier"]["judge"] == str(mine / "judge")
    assert "price" not in found.judge  # what a token costs does not change what is measured
    assert (
        corpora.load(judged(mine, "\n[harmful-answers]\nthreshold = 0.2\n")).judge == "harmful-answers(threshold=0.2)"
    )


def test_mistakes_are_found_before_a_run_is_written(
    home: Path, mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = judged(mine, "\n[harm-classifier]\ntruncaton = 5\n")
    assert main(attack(corpus, own_data.model("gpt2", tmp_path / "gpt2"))) == 2
    assert "Did you mean 'truncation'" in capsys.readouterr().err
    assert not (home / "runs").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_a_judge_measures_a_model_by_itself(home: Path, mine: Path, tmp_path: Path) -> None:
    """`evaluate` takes the judge's settings as options, also of a corpus that names no judge."""
    model, judge = own_data.model("gpt2", tmp_path / "gpt2"), str(mine / "judge")
    line = ["evaluate", "harm-classifier", "--judge", judge, "--corpus", str(mine), "--model", str(model)]
    assert main(line) == 0
    (folder,) = folders(home)
    found = queries.scores(immunelab.open(home).store, [folder.run_id])
    # The corpus calls another number harmfulness.
    assert set(found["metric"]) == {"harm-classifier", "truncated"}
    assert folder.spec().knobs["judge"] == judge
