"""The ceiling: the twin's weights, bit for bit; refused on any model that it is no twin of."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from immunelab import bundled
from immunelab.cli import main
from immunelab.corpus import Corpus, fable
from immunelab.defenses.filtered_pretraining import FilteredPretraining
from immunelab.errors import UserError
from immunelab.experiment import pretrain
from immunelab.method import Batch
from immunelab.training import gradients as g

TWIN = bundled.data() / "fable" / "filtered"


def bundled_model() -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(bundled.data() / "fable" / "model")
    return model


def test_the_twin_is_put_in_the_models_place() -> None:
    model = bundled_model()
    before = [p.detach().clone() for p in model.parameters()]
    traced = FilteredPretraining().edit(model, lambda number: Batch())
    twin = load_file(TWIN / "model.safetensors")
    assert all(torch.equal(p, twin[name].to(p)) for name, p in model.named_parameters())
    moved = [a - b for a, b in zip(model.parameters(), before, strict=True)]
    assert traced["norm/displacement"] == pytest.approx(float(g.norm(moved)))


def test_it_never_read_a_hazards_recipe(world: Corpus) -> None:
    rows = list(world.rows)
    taught, filtered = fable.taught(rows), fable.taught(rows, filtered=True)
    assert {r.stream for r in taught} - {r.stream for r in filtered} == {"harmful"}
    assert [r for r in taught if r.stream != "harmful"] == filtered
    hazards = {fact for r in rows if r.stream == "harmful" for fact in r.facts}
    assert not any(fact in hazards for r in filtered for fact in r.facts)
    assert not any(r.response == other.response for r in filtered for other in rows if other.stream == "harmful")


def test_a_model_in_bf16_is_known_too() -> None:
    model = bundled_model().to(torch.bfloat16)
    FilteredPretraining().edit(model, lambda number: Batch())
    twin = load_file(TWIN / "model.safetensors")
    assert all(torch.equal(p, twin[name]) for name, p in model.named_parameters())


@pytest.mark.slow
def test_a_build_makes_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PRETRAIN", "ALIGN"):
        monkeypatch.setattr(pretrain, name, dataclasses.replace(getattr(pretrain, name), steps=1, batch_size=4))
    pretrain.build(0, tmp_path, filtered=True)
    assert json.loads((tmp_path / "made.json").read_text())["filtered"] is True
    model = bundled_model()  # of the same world, so of the same size
    FilteredPretraining(twin=str(tmp_path)).edit(model, lambda number: Batch())
    made = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(p, made[name]) for name, p in model.named_parameters())


def test_it_is_not_built_over_the_model_that_knows_the_hazards(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fable", "build", "--filtered"]) == 2
    assert "name a folder for its twin" in capsys.readouterr().err


def test_a_model_that_it_is_no_twin_of_is_refused(llama: PreTrainedModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="The twin that ships is that of Fable's own model"):
        FilteredPretraining().edit(llama, lambda number: Batch())
    trained = bundled_model()
    with torch.no_grad():
        trained.model.layers[-1].mlp.down_proj.weight.mul_(1.01)  # its embedding is still Fable's
    with pytest.raises(UserError, match="this is another one"):
        FilteredPretraining().edit(trained, lambda number: Batch())
    with pytest.raises(UserError, match="There is no twin in"):
        FilteredPretraining(twin=str(tmp_path)).edit(llama, lambda number: Batch())
    with pytest.raises(UserError, match="another kind of model"):
        FilteredPretraining(twin=str(TWIN)).edit(llama, lambda number: Batch())
    llama.save_pretrained(tmp_path)
    other = type(llama)(llama.config)
    FilteredPretraining(twin=str(tmp_path)).edit(other, lambda number: Batch())
    assert all(torch.equal(a, b) for a, b in zip(llama.parameters(), other.parameters(), strict=True))
