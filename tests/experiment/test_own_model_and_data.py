"""A local model folder and a user's files, from the command line to the collapse curve."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import own_data
import pytest

import immunelab
from immunelab.cli import main
from immunelab.runs.journal import folders
from immunelab.store import queries
from immunelab.sweep import joined
from immunelab.sweep.grid import expand

pytestmark = pytest.mark.slow

RUNGS = ("2e-05", "0.0002")


FAMILIES = ("llama", "qwen2", "gpt2")


def grid(model: Path, corpus: Path) -> str:
    """A sweep of few steps: SEAM and the undefended model, attacked at two rates."""
    return f"""
        model = {json.dumps(str(model))}
        corpus = {json.dumps(str(corpus))}
        evaluate_every = 1
        [[defense]]
        method = "seam"
        steps = 2
        batch_size = 2
        [[attack]]
        method = "harmful-sft"
        rung = {json.dumps(RUNGS)}
        steps = 2
        batch_size = 2
        samples = 8
        """


@pytest.mark.usefixtures("in_this_process")
def test_model_folders_and_files_give_the_collapse_curve(home: Path, tmp_path: Path) -> None:
    corpus = own_data.folder(tmp_path / "mine")
    sweeps = [expand(grid(own_data.model(family, tmp_path / family), corpus), family) for family in FAMILIES]
    specs = tmp_path / "specs.json"
    specs.write_text(json.dumps([dataclasses.asdict(spec) for spec in joined(sweeps)]))
    assert main(["run", str(specs)]) == 0  # one process, so that torch is imported once
    found = queries.attack_curves(immunelab.open(home).store)
    for family in FAMILIES:
        curves = found[found["base_model"] == str(tmp_path / family)]
        assert set(curves["defense"]) == {"undefended", "seam"}
        assert set(curves["learning_rate"]) == {float(r) for r in RUNGS}
        assert set(curves["step"]) == {0, 1, 2}
        assert len(curves) == 2 * 2 * 3
        assert set(curves["harmfulness_by"]) == {"harmful-answers"}
        assert set(curves["utility_by"]) == {"token-accuracy"}
        assert curves[["harmfulness", "utility"]].notna().all(axis=None)
    events = [json.loads(line) for line in folders(home)[0].journal_path.read_text().splitlines()]
    (made,) = [e["data"] for e in events if e.get("event") == "corpus"]
    assert made["description"] == own_data.DESCRIPTION
    assert set(made["sources"]) == {"forbidden.jsonl", "allowed.csv"}


def test_a_corpus_without_a_model_asks_for_one(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = own_data.folder(tmp_path / "mine")
    assert main(["attack", "--corpus", str(corpus), "--rung", "0.0002", "--samples", "8"]) == 2
    assert "comes without a model: name one with --model" in capsys.readouterr().err
    assert not (home / "runs").exists()


def test_more_rows_than_a_corpus_has(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = own_data.folder(tmp_path / "mine")
    given = ["attack", "--corpus", str(corpus), "--model", str(own_data.model("llama", tmp_path / "model"))]
    assert main([*given, "--rung", "0.0002"]) == 2
    assert "wants 1000 harmful rows" in capsys.readouterr().err
    assert main([*given, "--rung", "0.3"]) == 2
    assert "There is no rung of harmful-sft" in capsys.readouterr().err
