"""Antidote: which entries are pruned and how many, in which layers, and that training goes on unpruned."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import hosted
import pytest
import torch
from made_batches import batch
from transformers import PreTrainedModel

from immunelab.attacks.drop_vector import DropVector
from immunelab.attacks.harmful_sft import HarmfulSft
from immunelab.attacks.lora_sft import LoraSft
from immunelab.defenses.antidote import Antidote, oriented, top
from immunelab.errors import UserError
from immunelab.method import Memory
from immunelab.training.losses import forward

TINY: dict[str, Any] = {"learning_rate": 1e-2, "steps": 5, "batch_size": 4, "samples": 12}
SMALL = Antidote(ratio=0.3, samples=12, batch_size=4)
LORA = LoraSft(**TINY, rank=8, targets="all-linear")


def adapted(model: PreTrainedModel) -> PreTrainedModel:
    """A model with an adapter that does something."""
    prepared = LORA.prepare(model, batch)
    for name, p in prepared.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.5)
    return prepared


def logits(model: PreTrainedModel) -> torch.Tensor:
    rows = batch(7).benign
    assert rows
    with torch.no_grad():
        return forward(model, rows)[0]


@pytest.mark.parametrize("columns", [8, 10, 32, 33])
@pytest.mark.parametrize("ratio", [0.0, 0.05, 0.1, 0.5, 1.0])
def test_each_row_loses_the_same_rounded_number(columns: int, ratio: float) -> None:
    mask = top(torch.rand(5, columns, generator=torch.Generator().manual_seed(0)), ratio)
    assert mask.sum(dim=1).tolist() == [columns - int(columns * (1 - ratio))] * 5


@pytest.mark.parametrize(("kind", "targets"), [("llama", "q_proj,k_proj,v_proj"), ("gpt2", "c_attn")])
def test_the_pruned_entries_have_the_largest_scores(kind: str, targets: str, request: Any) -> None:
    model = request.getfixturevalue(kind)
    antidote = dataclasses.replace(SMALL, targets=targets)
    layers = antidote.layers(model)
    assert len(layers) == 2 * len(targets.split(","))
    inputs: list[list[torch.Tensor]] = [[] for _ in layers]
    handles = [
        layer.register_forward_pre_hook(lambda m, x, i=i: inputs[i].append(x[0])) for i, layer in enumerate(layers)
    ]
    for number in range(3):
        rows = batch(number).harmful
        assert rows
        with torch.no_grad():
            forward(model, rows)
        for seen in inputs:
            seen[-1] = seen[-1][rows.attention_mask == 1]  # a token each
    for handle in handles:
        handle.remove()
    before = [oriented(layer).detach().clone() for layer in layers]
    with antidote.serving(model, Memory(rows=batch)):
        after = [oriented(layer).detach().clone() for layer in layers]
    for w, pruned, seen in zip(before, after, inputs, strict=True):
        score = w.abs() * torch.cat(seen).norm(dim=0)
        gone = pruned == 0
        assert torch.equal(pruned[~gone], w[~gone])
        columns = w.shape[1]
        assert set(gone.sum(dim=1).tolist()) == {columns - int(columns * 0.7)}
        for row in range(len(w)):
            assert score[row][gone[row]].min() >= score[row][~gone[row]].max() * (1 - 1e-5)


def test_a_column_without_activation_is_pruned_last() -> None:
    weights = torch.tensor([[9.0, 1.0, 2.0, 3.0]])
    norms = torch.tensor([0.0, 1.0, 1.0, 1.0])
    assert [top(weights * norms, ratio)[0].tolist().index(True) for ratio in (0.25,)] == [3]
    assert not top(weights * norms, 0.75)[0][0]
    assert top(weights * norms, 1.0)[0].all()


def test_share_zero_is_the_identity_and_pruning_twice_is_once(llama: PreTrainedModel) -> None:
    before = logits(llama)
    with dataclasses.replace(SMALL, ratio=0.0).serving(llama, Memory(rows=batch)) as scalars:
        assert torch.equal(logits(llama), before)
        assert scalars == {"pruned/share": 0.0, "norm/pruned": 0.0}
    layers = SMALL.layers(llama)
    masks = SMALL.masks(llama, layers, batch)
    with torch.no_grad():
        once = [oriented(m).masked_fill(k, 0.0) for m, k in zip(layers, masks, strict=True)]
        assert all(torch.equal(w.masked_fill(k, 0.0), w) for w, k in zip(once, masks, strict=True))


def test_all_of_an_adapter_pruned_is_the_base_model(llama: PreTrainedModel) -> None:
    base = logits(llama)
    model = adapted(llama)
    moved = logits(model)
    assert not torch.allclose(moved, base, atol=1e-3)
    with dataclasses.replace(SMALL, ratio=1.0).serving(model, Memory(rows=batch)):
        assert torch.allclose(logits(model), base, atol=1e-5)
    assert torch.equal(logits(model), moved)


def test_in_an_adapter_only_its_parts_are_pruned(llama: PreTrainedModel) -> None:
    model = adapted(llama)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with SMALL.serving(model, Memory(rows=batch)) as scalars:
        changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if "lora_" in name}
    assert 0.3 < scalars["pruned/share"] < 0.4  # at rank 8 three of eight: rounding prunes more


def test_all_masks_are_of_the_unpruned_model(llama: PreTrainedModel) -> None:
    """The last layer's mask is the same whether or not the layers before it are pruned too."""
    layers = SMALL.layers(llama)
    together = SMALL.masks(llama, layers, batch)
    alone = SMALL.masks(llama, layers[-1:], batch)
    assert torch.equal(together[-1], alone[0])


def test_the_random_mask_has_the_same_density_and_is_one_a_run(llama: PreTrainedModel) -> None:
    random = dataclasses.replace(SMALL, mask="random")
    layers = SMALL.layers(llama)
    mine, other, again = (a.masks(llama, layers, batch) for a in (SMALL, random, random))
    assert all(torch.equal(a.sum(dim=1), b.sum(dim=1)) for a, b in zip(mine, other, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(other, again, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(mine, other, strict=True))


def test_a_target_that_is_not_there_is_named(gpt2: PreTrainedModel) -> None:
    with pytest.raises(UserError, match="'q_proj'"), SMALL.serving(gpt2, Memory(rows=batch)):
        pass


@pytest.mark.parametrize("attack", [HarmfulSft(**TINY), LORA])
def test_the_training_is_the_users_and_the_checkpoint_is_pruned(home: Path, tiny_world: Path, attack: Any) -> None:
    guard = hosted.run(home, tiny_world, "immunize", SMALL)
    assert all(torch.equal(t, hosted.released(tiny_world)[n]) for n, t in hosted.weights(guard).items())
    source = f"run:{guard.run_id}"
    whole = hosted.run(home, tiny_world, "attack", attack, source, evaluate_every=2)
    bare = hosted.run(home, tiny_world, "attack", attack, evaluate_every=2)
    losses = [[v["loss/total"] for _, v in hosted.points(f) if "loss/total" in v] for f in (whole, bare)]
    assert losses[0] == losses[1]  # bit for bit the same training
    changed = {n for n, t in hosted.weights(whole).items() if not torch.equal(t, hosted.weights(bare)[n])}
    projections = ("q_proj", "k_proj", "v_proj") if attack is not LORA else ("_proj",)
    assert changed == {n for n in hosted.weights(bare) if any(p in n for p in projections)}
    again = hosted.stopped_and_resumed(home, whole.spec(), 3)
    assert all(torch.equal(hosted.weights(again)[n], t) for n, t in hosted.weights(whole).items())
    assert hosted.points(again) == hosted.points(whole)
    assert hosted.scores(again) == hosted.scores(whole)


def test_whoever_has_the_weights_goes_past_it(home: Path, tiny_world: Path) -> None:
    guard = hosted.run(home, tiny_world, "immunize", SMALL)
    past, bare = (
        hosted.run(home, tiny_world, "attack", DropVector(**TINY), model) for model in (f"run:{guard.run_id}", "fable")
    )
    assert hosted.scores(past) == hosted.scores(bare)
    assert all(torch.equal(hosted.weights(past)[n], t) for n, t in hosted.weights(bare).items())
