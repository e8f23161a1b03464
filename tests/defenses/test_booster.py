"""Booster against exact derivatives: the step it shifts by, the gradient it estimates, and the term it drops."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from made_batches import batch
from nearness import relative
from torch.func import functional_call
from transformers import PreTrainedModel

from immunelab.defenses.booster import Booster
from immunelab.defenses.extra_safety_sft import ExtraSafetySft
from immunelab.method import Batch
from immunelab.training import gradients as g
from immunelab.training import loop
from immunelab.training.losses import cross_entropy, loss
from immunelab.training.models import twice_differentiable

ALPHAS = (1e-2, 1e-3, 1e-4)


def direction(model: PreTrainedModel, data: Batch, **knobs: Any) -> tuple[g.Gradient, dict[str, float]]:
    traced = Booster(**knobs).step(model, data)
    return [p.grad.clone() for p in g.trainable(model) if p.grad is not None], traced


def harmful_part(model: PreTrainedModel, data: Batch, alpha: float) -> tuple[g.Gradient, dict[str, float]]:
    """∇h(w) − ∇h(w′) as the step has it."""
    whole, traced = direction(model, data, strength=1.0, alpha=alpha)
    return g.combine((1.0, whole), (-1.0, direction(model, data, strength=0.0)[0])), traced


def test_without_strength_three_steps_are_fine_tuning(llama: PreTrainedModel) -> None:
    other = copy.deepcopy(llama)
    list(loop.updates(llama, Booster(strength=0.0, learning_rate=1e-2, steps=3), batch))
    list(loop.updates(other, ExtraSafetySft(learning_rate=1e-2, steps=3), batch))
    assert all(torch.equal(a, b) for a, b in zip(llama.parameters(), other.parameters(), strict=True))


def test_the_third_pass_is_alpha_away_against_the_harmful_gradient(llama: PreTrainedModel) -> None:
    seen: list[g.Gradient] = []
    handle = llama.register_forward_pre_hook(lambda m, i: seen.append([p.detach().clone() for p in m.parameters()]))
    data = batch()
    assert data.harmful
    traced = direction(llama, data, alpha=0.3)[1]
    handle.remove()
    assert len(seen) == 3
    assert all(torch.equal(a, b) for a, b in zip(seen[0], seen[1], strict=True))
    moved = g.combine((1.0, seen[2]), (-1.0, seen[1]))
    assert float(g.norm(moved)) == pytest.approx(0.3, rel=1e-5)
    gradient = g.gradient(loss(llama, data.harmful), g.trainable(llama))
    assert float(g.cosine(moved, gradient)) == pytest.approx(-1, abs=1e-5)
    assert traced["estimator/displacement"] == pytest.approx(1, abs=1e-4)


def test_the_estimate_tends_to_the_gradient_of_the_norm(gpt2: PreTrainedModel) -> None:
    """(∇h(w) − ∇h(w′))/α → ∇‖∇h‖ by double backward, and [h(w) − h(w′)]/(α‖∇h‖) → 1, both errors linear in α."""
    model, data = gpt2.double(), batch()
    assert data.harmful
    weights = g.trainable(model)
    with twice_differentiable():
        gradient = g.gradient(loss(model, data.harmful), weights, differentiable=True)
        exact = g.gradient(g.norm(gradient), weights)
    errors, gains = [], []
    for alpha in ALPHAS:
        part, traced = harmful_part(model, data, alpha)
        errors.append(relative(g.scale(part, 1 / alpha), exact))
        gains.append(abs(1 - traced["loss/gain"] / (alpha * traced["norm/harmful"])))
    for found in (errors, gains):
        assert found[0] / found[1] == pytest.approx(10, rel=0.3)
        assert found[1] / found[2] == pytest.approx(10, rel=0.1)
        assert found[2] < 5e-3


def test_the_dropped_term_is_of_higher_order(gpt2: PreTrainedModel) -> None:
    """Against the whole gradient of h(w) − h(w − α∇h/‖∇h‖), the step's own dependence on w included."""
    model, data = gpt2.double(), batch()
    assert data.harmful
    rows, weights = data.harmful, g.trainable(model)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    gaps = []
    for alpha in ALPHAS:
        with twice_differentiable():
            here = loss(model, rows)
            gradient = g.gradient(here, weights, differentiable=True)
            length = g.norm(gradient)
            moved = {n: w - alpha * d / length for n, w, d in zip(names, weights, gradient, strict=True)}
            moved["lm_head.weight"] = moved["transformer.wte.weight"]  # tied
            asked = {"input_ids": rows.input_ids, "attention_mask": rows.attention_mask, "use_cache": False}
            there = cross_entropy(functional_call(model, moved, (), asked).logits, rows.labels)
            whole = g.gradient(here - there, weights)
        gaps.append(relative(harmful_part(model, data, alpha)[0], whole))
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.3)
    assert gaps[1] / gaps[2] == pytest.approx(10, rel=0.1)
    assert gaps[2] < 5e-3


def test_the_parts_add_up(llama: PreTrainedModel) -> None:
    data = batch()
    assert data.benign
    plain = direction(llama, data, strength=0.0)[0]
    part = harmful_part(llama, data, 0.1)[0]
    benign = g.gradient(loss(llama, data.benign), g.trainable(llama))
    found, traced = direction(llama, data, strength=2.0, alpha=0.1, retain=0.5)
    assert relative(found, g.combine((1.0, plain), (2.0, part), (0.5, benign))) < 1e-4
    terms = traced["loss/refusal"] + 2.0 * traced["loss/gain"] + 0.5 * traced["loss/benign"]
    assert traced["loss/total"] == pytest.approx(terms)


def test_an_adapter_trains_alone_and_is_merged(llama: PreTrainedModel) -> None:
    before = {name: p.detach().clone() for name, p in llama.named_parameters()}
    method = Booster(rank=2, learning_rate=1e-2, steps=3, targets="q_proj")
    assert method.prepares
    assert not Booster().prepares
    adapted = method.prepare(llama, batch)
    names = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert names
    assert all("lora_" in name for name in names)
    list(loop.updates(adapted, method, batch))
    released = method.after(adapted)
    changed = {name for name, p in released.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if name.endswith("q_proj.weight")}
