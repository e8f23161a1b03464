"""Evaluations that are a run of their own: the estimator's error, and answers to any question."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from made_batches import tokens
from transformers import PreTrainedModel

from immunelab.errors import UserError
from immunelab.evaluations.answers import Answers
from immunelab.evaluations.estimator_error import EPSILONS, EstimatorError
from immunelab.experiment import execute
from immunelab.runs.journal import RunFolder
from immunelab.runs.spec import RunSpec
from immunelab.store import Store, queries


def subject(model: PreTrainedModel) -> Any:
    rows = [SimpleNamespace(id=str(i), pair_id=str(i), prompt="p", response="r") for i in range(4)]
    found = iter((tokens(1), tokens(2)))
    return SimpleNamespace(model=model, rows=lambda stream, split: rows, collated=lambda pairs: next(found))


def test_the_estimate_is_good_in_fp32_and_useless_in_bf16(gpt2: PreTrainedModel) -> None:
    before = {k: v.clone() for k, v in gpt2.state_dict().items()}
    scores = {(s.metric, s.split): s for s in EstimatorError().measure(subject(gpt2)).scores}
    assert len(scores) == 3 * 2 * len(EPSILONS)
    assert scores["estimator_error", "fp32:0.001"].score < 0.01
    assert scores["estimator_cosine", "fp32:0.001"].score > 0.999
    assert scores["estimator_error", "bf16:0.001"].score > 0.5
    assert scores["estimator_error", "fp32:0.316"].score > 10 * scores["estimator_error", "fp32:0.001"].score
    assert scores["estimator_displacement", "fp32:0.001"].score == pytest.approx(1, abs=0.01)
    assert scores["estimator_error", "fp32:0.001"].n == 8
    after = gpt2.state_dict()
    assert all(torch.equal(after[k], v) and after[k].dtype == v.dtype for k, v in before.items())


def test_a_run_that_asks_a_question(home: Path, tiny_world: Path) -> None:
    knobs = Answers(question="what is two plus two ?", longest=5).settings()
    spec = RunSpec(kind="evaluate", method="answers", knobs=knobs, corpus=str(tiny_world), device="cpu")
    folder = RunFolder.create(home, spec)
    assert execute(folder) == "done"
    store = Store(home, showcase_folder=home / "none")
    store.sync(force=True)
    rows = queries.examples(store, folder.run_id)
    assert rows["prompt"].tolist() == ["what is two plus two ?"]
    assert rows["score"].isna().all()
    assert queries.scores(store, [folder.run_id]).empty


def test_a_run_that_measures_the_estimator(home: Path, tiny_world: Path) -> None:
    spec = RunSpec(kind="evaluate", method="estimator-error", knobs={"rows": 2}, corpus=str(tiny_world), device="cpu")
    folder = RunFolder.create(home, spec)
    assert execute(folder) == "done"
    store = Store(home, showcase_folder=home / "none")
    store.sync(force=True)
    found = queries.scores(store, [folder.run_id], metrics=["estimator_error"], splits=None)
    assert set(found["split"].str.split(":").str[0]) == {"fp32", "bf16"}
    assert len(found) == 2 * len(EPSILONS)


@pytest.mark.parametrize("question", ["", "  ", "a" * 501])
def test_questions_that_do_not_fit(question: str) -> None:
    with pytest.raises(UserError, match="1 to 500 characters"):
        Answers(question=question).measure(SimpleNamespace())  # type: ignore[arg-type]
