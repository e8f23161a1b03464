"""Accuracy on labelled tasks: what an answer says, ZS and FS, and tasks of the LM Evaluation Harness."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import own_data
import pandas as pd
import pytest
import torch

import immunelab
from immunelab import corpus as corpora
from immunelab.analysis import tasks
from immunelab.cli import main, submit
from immunelab.errors import UserError
from immunelab.evaluations.judges.labels import named, number, worked
from immunelab.evaluations.lm_eval import LmEval
from immunelab.evaluations.task_accuracy import TaskAccuracy
from immunelab.runs.journal import folders
from immunelab.store import queries
from immunelab.training import models

LABELS = ("negative", "positive")
SIGNS = ("+1", "-1")
TOPICS = ("World", "Sports", "Business", "Sci/Tech")
needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed: make eval"
)


@pytest.mark.parametrize(
    ("answer", "labels", "said"),
    [
        ("positive", LABELS, "positive"),
        ("The sentiment is Positive, not negative.", LABELS, "positive"),
        ("I would say: NEGATIVE!", LABELS, "negative"),
        ("positively", LABELS, None),  # another word
        ("", LABELS, None),
        ("It's Sci/Tech.", TOPICS, "Sci/Tech"),
        ("the world of business", TOPICS, "World"),
        ("it is not important", ("important", "not important"), "not important"),
        ("not so", ("not", "not so"), "not so"),
        ("It's 'positive'.", LABELS, "positive"),
        ("nonpositive, non-positive", LABELS, None),
        ("-1", SIGNS, "-1"),
        ("\u22121", SIGNS, "-1"),  # a minus sign, and not the keyboard's
        ("The answer is (+1), not -1.", SIGNS, "+1"),
        ("It is 1.", SIGNS, "+1"),
        ("x-1", SIGNS, None),
        ("-1", ("0", "1"), None),
        ("+1", ("0", "1"), "1"),
        ("It costs 1.5 or 10", ("0", "1"), None),
        ("Grade: A-, I think", ("A", "A-", "B"), "A-"),
        ("I'd use C++.", ("C", "C++", "C#"), "C++"),
        ("I'd use C#, C or C++", ("C", "C++", "C#"), "C#"),
        ("I'd use C++", ("C", "Java"), None),
        ("About 50%.", ("5%", "50%"), "50%"),
        ("+", ("+", "-"), "+"),
        ("这条评论是负面的，不是正面的。", ("正面", "负面"), "负面"),
        ("答案是B。", ("A", "B"), "B"),
    ],
)
def test_the_label_that_an_answer_names(answer: str, labels: tuple[str, ...], said: str | None) -> None:
    assert named(answer, labels) == said


@pytest.mark.parametrize(
    ("answer", "loose", "strict"),
    [
        ("2+3=5\n#### 5", 5, 5),
        ("#### 1,234", 1234, 1234),
        ("#### $1,234.50 in all", 1234.5, 1234.5),
        ("#### -7", -7, -7),
        ("#### \u22127", -7, -7),
        ("first #### 3 then #### 4 and 9", 4, 4),
        ("so there are 3 and 12 apples.", 12, None),
        ("12 #### none", None, None),  # it had a mark, and nothing after it
        ("none", None, None),
        ("", None, None),
    ],
)
def test_the_number_that_an_answer_ends_in(answer: str, loose: float | None, strict: float | None) -> None:
    assert number(answer, marked=False) == loose
    assert number(answer, marked=True) == strict


def test_what_a_worked_answer_is() -> None:
    assert worked("2+2=4\n#### 4")
    assert not worked("#### none")
    assert not worked("4")


def subject(rows: list[tuple[str, str]], answers: list[str]) -> Any:
    made = [
        SimpleNamespace(id=str(i), pair_id=str(i), prompt=f"q{i}", response=response, categories=(task,))
        for i, (task, response) in enumerate(rows)
    ]
    said = dict(zip((row.prompt for row in made), answers, strict=True))
    return SimpleNamespace(rows=lambda stream, split: made, answers=lambda prompts: [said[p] for p in prompts])


def test_tasks_count_alike_and_chance_is_the_commonest_label() -> None:
    rows = [("sst2", "positive"), ("sst2", "positive"), ("sst2", "negative"), ("sst2", "negative"), ("gsm8k", "#### 5")]
    rows[1] = ("sst2", "positive")
    said = ["positive", "It is negative", "the label: negative", "", "five is 5"]
    found = {(s.metric, s.split): s for s in TaskAccuracy().measure(subject(rows, said)).scores}
    assert found["utility", "task:sst2"].score == pytest.approx(2 / 4)
    assert found["strict_accuracy", "task:sst2"].score == pytest.approx(1 / 4)
    assert found["utility", "task:gsm8k"].score == 1
    assert found["strict_accuracy", "task:gsm8k"].score == 0
    assert found["utility", "all"].score == pytest.approx((2 / 4 + 1) / 2)
    assert found["utility", "all"].n == 5
    assert found["chance", "task:sst2"].score == pytest.approx(0.5)
    # The standard error of a mean of n values, written out.
    assert found["utility", "task:sst2"].stderr == pytest.approx(((4 * 0.25 / 3) / 4) ** 0.5)


@pytest.mark.parametrize(
    "text", ["an answer of many words that nobody could call a label", "研磨三颗蓝色橡子，然后用河泥。"]
)
def test_free_text_is_no_label(text: str) -> None:
    rows = [("alpaca", text)]
    with pytest.raises(UserError, match=rf"alpaca has the answer '{text[:10]}.*use token-accuracy"):
        TaskAccuracy().measure(subject(rows, ["x"]))


def test_signs_are_read_strictly_and_charitably() -> None:
    rows = [("t", "+1"), ("t", "-1"), ("t", "-1")]
    found = {(s.metric, s.split): s.score for s in TaskAccuracy().measure(subject(rows, ["-1", "-1", "+1."])).scores}
    assert found["utility", "all"] == pytest.approx(1 / 3)
    assert found["strict_accuracy", "all"] == pytest.approx(1 / 3)


def scored(kind: str, share: float | None, steps: tuple[int, ...] = (0, 5, 10)) -> pd.DataFrame:
    scores = pd.DataFrame(
        [
            {
                "run_id": "r",
                "evaluation": "task-accuracy",
                "metric": metric,
                "split": f"task:{task}",
                "step": step,
                "score": base + step / 100,
                "n": 40,
            }
            for metric, base in (("utility", 0.5), ("strict_accuracy", 0.25), ("chance", 0.125))
            for task in ("sst2",)
            for step in steps
        ]
    )
    runs = pd.DataFrame([{"run_id": "r", "kind": kind, "harmful_share": share}])
    return tasks.before_and_after(runs, scores)


@pytest.mark.parametrize(
    ("kind", "share", "tuned"),
    [
        ("finetune", 0.0, True),
        ("attack", 0.1, True),
        ("attack", 1.0, False),
        ("attack", None, False),
        ("immunize", None, False),
        ("evaluate", None, False),
    ],
)
def test_only_a_fine_tuning_on_benign_rows_has_an_fs(kind: str, share: float | None, tuned: bool) -> None:
    (row,) = scored(kind, share).to_dict("records")
    assert (row["task"], row["ZS"], row["ZS_strict"], row["chance"], row["n"]) == ("sst2", 0.5, 0.25, 0.125, 40)
    assert (row["FS"] == 0.6 and row["FS_strict"] == 0.35) if tuned else pd.isna(row["FS"])


def test_a_fine_tuning_that_was_not_scored_again_has_no_fs() -> None:
    assert pd.isna(scored("finetune", 0.0, steps=(0,))["FS"].iloc[0])


def labelled(to: Path, n: int = 60) -> Path:
    """A corpus whose benign rows are a task of two labels that a model of two layers learns in a few steps."""
    to.mkdir()
    own_data.lines(to / "forbidden.jsonl", own_data.questions(12))
    rng = random.Random(0)
    rows = [{"text": f"{rng.choice(('aaa', 'bbb'))} {i}"} for i in range(n)]
    own_data.lines(to / "task.jsonl", [r | {"label": LABELS[r["text"][0] == "a"]} for r in rows])
    (to / "corpus.toml").write_text(
        own_data.DESCRIPTION.replace("max_length = 96", 'utility = "task-accuracy"\nmax_length = 96')
        .replace("answer_tokens = 8", "answer_tokens = 10")
        .replace("allowed.csv", "task.jsonl")
        .replace('"ask"', '"text"')
        .replace('"say"', '"label"'),
        encoding="utf-8",
    )
    return to


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_zs_and_fs_of_a_fine_tuning(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus, model = labelled(tmp_path / "mine"), own_data.model("llama", tmp_path / "llama")
    assert corpora.load(str(corpus)).evaluations[-1] == "task-accuracy"
    line = [
        "finetune",
        "--task",
        "benign",
        "--corpus",
        str(corpus),
        "--model",
        str(model),
        "--steps",
        "60",
        "--batch-size",
        "8",
        "--learning-rate",
        "1e-2",
        "--evaluate-every",
        "0",
    ]
    assert main([*line, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)[0]["tasks"]
    frame = immunelab.open(home).tasks(folders(home)[0].run_id)
    assert frame.drop(columns="run_id").to_dict("records") == [{k: v for k, v in row.items() if k != "run_id"}]
    submit._print_tasks(frame)
    said = capsys.readouterr().out.split()
    assert said[:4] == ["task", "ZS", "FS", "ZS"]
    assert row["task"] == "task"
    assert row["ZS"] == row["ZS_strict"] == 0  # random weights write no word
    assert row["FS"] >= row["chance"] > 0.4
    assert row["FS_strict"] > 0.4


def test_without_the_harness_the_fix_is_named(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "lm_eval" else find(name, *a))
    assert main(["evaluate", "lm-eval", "--tasks", "arc_easy"]) == 2
    assert "make eval (or: pip install --no-deps -r requirements-eval.lock)" in capsys.readouterr().err
    assert not (home / "runs").exists()


def task_files(to: Path) -> Path:
    """A multiple-choice task over a local JSONL file."""
    to.mkdir()
    own_data.lines(
        to / "rows.jsonl", [{"q": f"what is {i}", "a": "left", "b": "right", "gold": i % 2} for i in range(8)]
    )
    (to / "pick.yaml").write_text(
        f"""
task: immunelab_pick
dataset_path: json
dataset_kwargs:
  data_files:
    test: {json.dumps(str(to / "rows.jsonl"))}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}? Answer:"
doc_to_choice: "{{{{[a, b]}}}}"
doc_to_target: gold
metric_list:
  - metric: acc
  - metric: acc_norm
""",
        encoding="utf-8",
    )
    (to / "write.yaml").write_text(
        f"""
task: immunelab_write
dataset_path: json
dataset_kwargs:
  data_files:
    test: {json.dumps(str(to / "rows.jsonl"))}
test_split: test
output_type: generate_until
doc_to_text: "{{{{q}}}}? Answer:"
doc_to_target: a
generation_kwargs:
  max_gen_toks: 4
  until: ["."]
metric_list:
  - metric: exact_match
""",
        encoding="utf-8",
    )
    return to


@pytest.mark.slow
@needs_harness
def test_a_task_of_the_harness_is_what_it_should_be(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against log-likelihoods of the choices, taken by hand."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    place, corpus = own_data.model("llama", tmp_path / "llama"), own_data.folder(tmp_path / "mine")
    files = task_files(tmp_path / "tasks")
    line = ["evaluate", "lm-eval", "--model", str(place), "--corpus", str(corpus), "--folder", str(files)]
    assert main([*line, "--tasks", "immunelab_pik"]) == 2
    assert "Did you mean 'immunelab_pick'" in capsys.readouterr().err
    assert not (home / "runs").exists()
    assert main([*line, "--tasks", "immunelab_pick", "--json"]) == 0
    scores = {(s["metric"], s["split"]): s for s in json.loads(capsys.readouterr().out)[0]["scores"]}
    model, tokenizer = models.load(place)
    model.eval()

    def likelihood(question: str, choice: str) -> float:
        read, whole = (
            tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (f"{question}? Answer:", f"{question}? Answer: {choice}")
        )
        with torch.no_grad():
            log_p = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        return float(sum(log_p[i - 1, whole[i]] for i in range(len(read), len(whole))))

    right = [
        float((likelihood(f"what is {i}", "right") > likelihood(f"what is {i}", "left")) == (i % 2 == 1))
        for i in range(8)
    ]
    assert scores["zero_shot", "all"]["score"] == pytest.approx(sum(right) / 8)
    assert scores["zero_shot", "all"]["n"] == 8
    every = immunelab.open(home).scores(folders(home)[0].run_id, parts=True)
    assert {"lm-eval/acc", "lm-eval/acc_norm"} <= set(every["metric"])
    rows = queries.examples(immunelab.open(home).store, folders(home)[0].run_id)
    assert rows.sort_values("id")["score"].tolist() == right
    assert rows["prompt"].str.match(r"what is \d\? Answer:").all()
    assert "lm-eval" in folders(home)[0].status().versions


@pytest.mark.slow
@needs_harness
def test_the_harness_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    place = own_data.model("gpt2", tmp_path / "gpt2")
    model, tokenizer = models.load(place)
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    files = task_files(tmp_path / "tasks")
    method = LmEval(tasks="immunelab_pick, immunelab_write", folder=str(files), limit=3, shots=1)
    found = method.measure(SimpleNamespace(model=model, tokenizer=tokenizer))  # type: ignore[arg-type]
    assert found.scores[0].metric == "few_shot"
    assert found.scores[0].n == 6
    scores = {(s.metric, s.split): s.score for s in found.scores}
    written = [row for row in found.examples if row["task"] == "immunelab_write"]
    assert scores["lm-eval/exact_match", "task:immunelab_write"] == 0  # random weights write no word
    assert [row["expected"] for row in written] == ["left"] * 3
    assert all(row["answer"] for row in written)
    both = [scores["few_shot", f"task:immunelab_{task}"] for task in ("pick", "write")]
    assert scores["few_shot", "all"] == sum(both) / 2
    assert model.training
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
