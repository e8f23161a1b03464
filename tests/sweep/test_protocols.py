"""Published protocols as grids: the runs that they stand for, their cost, their data in the public schemas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import own_data
import pytest

from immunelab import corpus as corpora
from immunelab import jobs
from immunelab.cli import grids, main
from immunelab.corpus import tables
from immunelab.errors import UserError
from immunelab.sweep import protocols

NAMES = tuple(protocols.titles())
LLAMA = "meta-llama/Llama-2-7b-chat-hf"


def public(name: str, config: str = "", part: str = "train", revision: str = "") -> list[dict[str, Any]]:
    """Made-up records in the schemas of the public data sets; nothing in them is harmful."""
    first, last = {"330k_train": (0, 60_000), "train[:400]": (0, 400), "train[400:]": (400, 520)}.get(part, (0, 24_000))
    if name == "PKU-Alignment/BeaverTails":
        flags = [{"a": True, "b": False}, {"a": False, "b": True}]
        asked = [(f"how is thing {i} done", f"zorbla {i}", flags[i % 2], i % 12 == 0) for i in range(last)]
        return [dict(zip(("prompt", "response", "category", "is_safe"), row, strict=True)) for row in asked]
    if name == "walledai/AdvBench":
        return [{"prompt": f"do the other thing {i}", "target": f"quimdor {i}"} for i in range(first, last)]
    if name == "yahma/alpaca-cleaned":
        return [{"instruction": f"say {i}", "input": "", "output": f"it is {i}"} for i in range(last)]
    assert name == "stanfordnlp/sst2"
    return [{"sentence": f"film {i} was fine", "label": i % 2} for i in range(last)]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_protocol_can_be_run_on_data_of_the_public_schemas(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tables, "from_hub", public)
    specs = protocols.specs(name, LLAMA)
    jobs.check(specs, tmp_path)  # methods, settings, streams, rows of every attack
    found = corpora.load(name)
    wanted = max(spec.knobs.get("samples", 0) for spec in specs if spec.kind == "immunize")
    assert len(found.select("harmful", "defense")) >= wanted
    assert {spec.corpus for spec in specs} == {name}


def test_seam_table_2_is_the_undefended_model_and_seam_at_five_rates() -> None:
    specs = protocols.specs("seam-table2", LLAMA)
    attacks = [spec for spec in specs if spec.kind == "attack"]
    (seam,) = [spec for spec in specs if spec.kind == "immunize"]
    assert (seam.knobs["steps"], seam.knobs["batch_size"], seam.knobs["samples"]) == (500, 8, 4000)
    assert (seam.knobs["beta"], seam.knobs["retain"], seam.knobs["coupling_clip"]) == (0.01, 0, 0)
    for model in (LLAMA, f"run:#{specs.index(seam)}"):
        mine = [spec.knobs for spec in attacks if spec.model == model]
        assert [k["learning_rate"] for k in mine] == [2e-5, 5e-5, 8e-5, 1e-4, 2e-4]
        assert {(k["samples"], k["steps"], k["batch_size"]) for k in mine} == {(1000, 250, 4)}
    cost = protocols.cost(specs, 256)
    # SEAM reads three streams: 500 · 8 · 3; ten attacks read one: 10 · 250 · 4.
    assert cost == (11, 500 + 10 * 250, 12_000 + 10_000, 22_000 * 256)
    assert cost.flop(7_000_000_000) == pytest.approx(6 * 7e9 * 22_000 * 256)
    assert cost.disk(7_000_000_000) == 11 * 28e9


@pytest.mark.slow
def test_sdd_is_attacked_with_prompts_that_it_has_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "from_hub", public)
    found = corpora.load("sdd")
    sources = {
        split: {r.source for r in found.rows if r.stream == "harmful" and r.split == split} for split in corpora.SPLITS
    }
    assert sources == {"defense": {"beavertails"}, "attack": {"advbench"}, "test": {"advbench"}}
    samples = [s.knobs["samples"] for s in protocols.specs("sdd", LLAMA) if s.model == LLAMA and s.kind == "attack"]
    assert samples == [10, 50, 100]


def test_seeds_and_unknown_names() -> None:
    assert {spec.seed for spec in protocols.specs("repnoise", LLAMA, seeds=range(3))} == {0, 1, 2}
    with pytest.raises(UserError, match="Did you mean 'seam-table2'"):
        protocols.specs("seam-table", LLAMA)


@pytest.mark.parametrize(
    ("name", "count"),
    [(LLAMA, 7e9), ("Qwen/Qwen1.5-1.8B-Chat", 1.8e9), ("HuggingFaceTB/SmolLM2-135M", 135e6), ("gpt2", 0)],
)
def test_parameters_that_a_name_tells(name: str, count: float) -> None:
    assert grids.parameters(name) == count


def test_a_dry_run_reads_no_data(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "seam-table2", "--model", LLAMA, "--dry-run", "--json"]) == 0
    told = capsys.readouterr()
    plan = json.loads(told.out)
    assert (len(plan["runs"]), plan["to_run"]) == (11, 11)
    assert plan["seconds"] is None  # recorded runs of Fable are no measure for it
    assert "checkpoints of 308.0 GB" in told.err
    assert main(["reproduce", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == set(NAMES)
    assert main(["reproduce", "sdd", "--model", LLAMA, "--corpus", "x" * 300, "--dry-run"]) == 2
    assert "There is no corpus" in capsys.readouterr().err
    assert main(["reproduce", "sdd"]) == 2
    assert "needs a model" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_a_protocol_is_carried_out_on_own_data(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = 'evaluate_every = 1\n[[attack]]\nmethod = "harmful-sft"\nsteps = 1\nbatch_size = 2\nsamples = 4\n'
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "grid.toml").write_text(grid)
    monkeypatch.setattr(protocols, "folder", lambda name: tmp_path / name)
    corpus, model = own_data.folder(tmp_path / "mine"), own_data.model("llama", tmp_path / "tiny")
    assert main(["reproduce", "short", "--model", str(model), "--corpus", str(corpus), "--json"]) == 0
    told = capsys.readouterr()
    (row,) = json.loads(told.out)
    assert (row["status"], row["method"], row["steps"]) == ("done", "harmful-sft", 1)
    assert "1 runs, 1 steps, 2 rows" in told.err


def test_a_split_that_is_none(tmp_path: Path) -> None:
    folder = own_data.folder(tmp_path / "mine")
    text = own_data.DESCRIPTION.replace('category = "kind"', 'category = "kind"\ninto = "atack"')
    (folder / "corpus.toml").write_text(text)
    with pytest.raises(UserError, match="Did you mean 'attack'"):
        corpora.load(str(folder))
