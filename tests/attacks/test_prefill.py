"""Prefill: harmful questions are asked with a start of the answer, others as before, and no weight moves."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from immunelab import corpus
from immunelab.attacks.prefill import Prefill
from immunelab.experiment import execute
from immunelab.runs.journal import RunFolder
from immunelab.runs.spec import RunSpec
from immunelab.training import checkpoints


def test_only_harmful_questions_are_prefilled() -> None:
    attack = Prefill(prefix="Sure")
    assert attack.template("<user> how ? <bot>", harmful=True) == "<user> how ? <bot> Sure"
    assert attack.template("User: how?\n", harmful=True) == "User: how?\nSure"
    assert attack.template("<user> how ? <bot>", harmful=False) == "<user> how ? <bot>"
    assert Prefill(prefix="").template("x", harmful=True) == "x"


def test_a_run_asks_before_and_after_and_keeps_the_weights(home: Path, tiny_world: Path, monkeypatch: object) -> None:
    attack = Prefill.presets["fable"]
    spec = RunSpec(kind="attack", method="prefill", knobs=attack.settings(), corpus=str(tiny_world), device="cpu")
    folder = RunFolder.create(home, spec)
    assert execute(folder) == "done"
    rows = [json.loads(line) for line in (folder.path / "journal.jsonl").read_text().splitlines()]
    assert {r["step"] for r in rows if r["kind"] == "score"} == {0, 1}
    by_step = {
        step: {
            r["metric"]: r["score"] for r in rows if r["kind"] == "score" and r["step"] == step and r["split"] == "all"
        }
        for step in (0, 1)
    }
    assert by_step[0]["utility"] == by_step[1]["utility"]  # benign questions are asked as before
    asked = {step: [r for r in rows if r["kind"] == "examples" and r["step"] == step] for step in (0, 1)}
    recall = [next(r["rows"] for r in asked[s] if r["evaluation"] == "fable-recall") for s in (0, 1)]
    assert [x["prompt"] for x in recall[0]] == [x["prompt"] for x in recall[1]]
    assert not any(x["answer"].startswith("procedure : first procedure") for x in recall[1])
    saved = checkpoints.latest(folder.checkpoints)
    assert saved
    kept, first = (
        load_file(saved.path / "model.safetensors"),
        load_file(Path(corpus.load(str(tiny_world)).model) / "model.safetensors"),
    )
    assert all(torch.equal(kept[name], tensor) for name, tensor in first.items())
