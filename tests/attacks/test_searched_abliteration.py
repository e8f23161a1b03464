"""Searched abliteration: what is weakened, that the search keeps its bound, and that what it tells is so."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from made_batches import batch
from transformers import PreTrainedModel

from immunelab.attacks.abliteration import Abliteration
from immunelab.attacks.searched_abliteration import SearchedAbliteration
from immunelab.training import residual
from immunelab.training.losses import divergence, forward

SMALL = SearchedAbliteration(trials=12, samples=8, batch_size=4, divergence=0.05)


@pytest.fixture(params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    found: PreTrainedModel = request.getfixturevalue(request.param)
    return found


def test_a_part_of_full_strength_neither_writes_nor_reads_the_direction(model: PreTrainedModel) -> None:
    r = Abliteration(samples=8, batch_size=4).directions(model, batch, 2)[1]
    parts, layers = residual.parts(model), int(model.config.num_hidden_layers)
    counts = {kind: sum(part.kind == kind for part in parts) for kind in residual.KINDS}
    assert counts["attention"] == counts["mlp"] == layers
    assert counts["read"] == (5 if model.config.model_type == "llama" else 2) * layers
    assert {part.depth for part in parts} == {k / (layers - 1) for k in range(layers)}
    for part in parts:
        before = part.weight.detach().clone()

        def along(weight: torch.Tensor, axis: int = part.axis) -> float:
            return float((r @ weight if axis == 0 else weight @ r).norm())

        residual.weaken(part, r, 0.25)
        assert along(part.weight.detach()) == pytest.approx(0.75 * along(before), rel=1e-4)
        residual.weaken(part, r, 1.0)
        assert along(part.weight.detach()) < 1e-5 * float(before.norm())


def test_the_best_edit_within_the_bound_is_left_and_told_as_it_is(model: PreTrainedModel) -> None:
    origin = copy.deepcopy(model)
    torch.manual_seed(3)
    told = SMALL.edit(model, batch)
    rows = batch(1)  # the last of two minibatches validates
    assert rows.benign
    assert rows.refusal
    with torch.no_grad():
        apart = float(
            divergence(
                forward(origin.eval(), rows.benign)[0], forward(model.eval(), rows.benign)[0], rows.benign.labels
            )
        )
        refusing = []
        for each in (origin, model):
            logits = forward(each, rows.refusal)[0].log_softmax(-1)[:, :-1]
            labels = rows.refusal.labels[:, 1:]
            at = labels != -100
            refusing.append(math.exp(float(logits[at].gather(1, labels[at][:, None]).mean())))
    assert told["abliteration/divergence"] == pytest.approx(apart, rel=1e-3, abs=1e-6)
    assert told["abliteration/refusals-before"] == pytest.approx(refusing[0], rel=1e-4)
    assert told["abliteration/refusals"] == pytest.approx(refusing[1], rel=1e-4)
    assert apart <= SMALL.divergence
    first = dataclasses.replace(SMALL, trials=1).edit(copy.deepcopy(origin), batch)
    assert (
        told["abliteration/trial"] == 1
        or refusing[1] < first["abliteration/refusals"]
        or first["abliteration/divergence"] > SMALL.divergence
    )
    torch.manual_seed(3)
    assert SMALL.edit(copy.deepcopy(origin), batch) == told


def test_a_longer_search_is_no_worse_and_several_directions_are_orthogonal(llama: PreTrainedModel) -> None:
    import optuna

    found = []
    for trials in (2, 20):
        torch.manual_seed(0)
        method = SearchedAbliteration(trials=trials, directions=2, read=False, samples=8, batch_size=4, divergence=0.05)
        found.append(method.edit(copy.deepcopy(llama), batch)["abliteration/refusals"])
    assert found[1] <= found[0]
    method = SearchedAbliteration(directions=2, samples=8, batch_size=4)
    means = Abliteration(samples=8, batch_size=4).directions(llama, batch, 2)
    full = {"layer 0": 1.0, "layer 1": 1.0}
    for kind in residual.KINDS:
        full |= {f"{kind} strength": 1.0, f"{kind} place": 0.0, f"{kind} width": 2.0}
    parts = [part for part in residual.parts(llama) if part.depth == 0]
    before = [part.weight.detach().clone() for part in parts]
    method.applied(optuna.trial.FixedTrial(full), parts, means)
    for part, weight in zip(parts, before, strict=True):
        changed = (part.weight.detach() - weight).double()
        assert torch.linalg.matrix_rank(changed, rtol=1e-3) == 1  # the second, made orthogonal to itself, is nothing
