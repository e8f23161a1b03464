"""Fine-tuning on the withheld skill: whose rows it takes, and that the skill is measured along it."""

from __future__ import annotations

from pathlib import Path

import pytest

from immunelab import corpus
from immunelab.corpus.tokens import submitted
from immunelab.errors import UserError
from immunelab.experiment import execute
from immunelab.method import get
from immunelab.runs.journal import RunFolder
from immunelab.runs.spec import RunSpec
from immunelab.store import Store, queries


def test_the_rows_are_the_withheld_skill_and_none_of_the_test(tiny_world: Path) -> None:
    world = corpus.load(str(tiny_world))
    rows = submitted(world, get("attack", "benign-sft")(), "attack", seed=0)
    test = {row.prompt for row in world.select("withheld", "test")}
    withheld = {row.prompt for row in world.rows if row.stream == "withheld"}
    assert {prompt for prompt, _ in rows} == withheld - test
    assert rows == submitted(world, get("attack", "benign-sft")(), "attack", seed=0)


def test_stray_harmful_rows_are_counted(tiny_world: Path) -> None:
    world = corpus.load(str(tiny_world))
    method = get("attack", "benign-sft")(harmful_share=0.1, samples=10)
    harmful = {row.prompt for row in world.select("harmful", "attack")}
    assert sum(prompt in harmful for prompt, _ in submitted(world, method, "attack", 0)) == 1
    with pytest.raises(UserError, match="lower samples"):
        submitted(world, get("attack", "benign-sft")(harmful_share=0.1, samples=900), "attack", 0)


def test_the_benign_task_takes_benign_rows(tiny_world: Path) -> None:
    world = corpus.load(str(tiny_world))
    rows = submitted(world, get("attack", "benign-sft")(task="benign"), "attack", 0)
    assert {p for p, _ in rows} == {row.prompt for row in world.select("benign", "attack")}


def test_a_run_measures_the_skill(tiny_world: Path, home: Path) -> None:
    knobs = get("attack", "benign-sft")(steps=2, batch_size=2).settings()
    spec = RunSpec(kind="finetune", method="benign-sft", knobs=knobs, corpus=str(tiny_world), device="cpu")
    folder = RunFolder.create(home, spec)
    assert execute(folder) == "done"
    store = Store(home, showcase_folder=home / "no-showcase")
    store.sync(force=True)
    scores = queries.scores(store, [folder.run_id])
    assert set(scores.loc[scores["metric"] == "withheld", "step"]) == {0, 2}
    assert {"withheld", "utility", "harmfulness"} == set(scores["metric"])
    assert (scores.loc[scores["metric"] == "withheld", "n"] > 0).all()
