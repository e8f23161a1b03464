"""CTRAP against its written-out parts: the step it shifts by, the gradient there, and what first order leaves out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from made_batches import batch
from nearness import relative
from torch.func import functional_call
from transformers import PreTrainedModel

from immunelab.defenses.ctrap import Ctrap
from immunelab.method import Batch
from immunelab.training import gradients as g
from immunelab.training import loop
from immunelab.training.losses import IGNORED, cross_entropy, loss
from immunelab.training.models import twice_differentiable


def direction(model: PreTrainedModel, data: Batch, **knobs: Any) -> tuple[g.Gradient, dict[str, float]]:
    traced = Ctrap(**knobs).step(model, data)
    return [p.grad.clone() for p in g.trainable(model) if p.grad is not None], traced


def collapse(model: PreTrainedModel, data: Batch, weights: dict[str, torch.Tensor], token: int) -> torch.Tensor:
    """Mean over the benign answers' tokens of −log p(token | what stands before), at other weights; written out."""
    rows = data.benign
    assert rows
    asked = {"input_ids": rows.input_ids, "attention_mask": rows.attention_mask, "use_cache": False}
    logits = functional_call(model, weights, (), asked).logits
    scored = rows.labels[:, 1:] != IGNORED
    return -logits[:, :-1].log_softmax(-1)[scored][:, token].mean()


def shifted(model: PreTrainedModel, data: Batch, alpha: float) -> dict[str, torch.Tensor]:
    """w − α·∇h/‖∇h‖ by name."""
    assert data.harmful
    weights = g.trainable(model)
    gradient = g.gradient(loss(model, data.harmful), weights)
    length = g.norm(gradient)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    return {n: (w - alpha * d / length).detach() for n, w, d in zip(names, weights, gradient, strict=True)}


@pytest.mark.parametrize("alpha", [0.3, 0.01])
def test_the_direction_is_the_sum_of_its_parts(llama: PreTrainedModel, alpha: float) -> None:
    model, data = llama.double(), batch()
    assert data.refusal
    assert data.benign
    weights = g.trainable(model)
    found, traced = direction(model, data, strength=0.7, alpha=alpha, token=3, retain=0.5)
    moved = {n: w.requires_grad_() for n, w in shifted(model, data, alpha).items()}
    trap = collapse(model, data, moved, token=3)
    there = list(torch.autograd.grad(trap, list(moved.values())))
    parts = [(1.0, g.gradient(loss(model, data.refusal), weights)), (0.7, there)]
    parts.append((0.5, g.gradient(loss(model, data.benign), weights)))
    assert relative(found, g.combine(*parts)) < 1e-6
    assert traced["loss/collapse"] == pytest.approx(float(trap.detach()), rel=1e-6)
    terms = traced["loss/refusal"] + 0.7 * traced["loss/collapse"] + 0.5 * traced["loss/benign"]
    assert traced["loss/total"] == pytest.approx(terms)
    assert traced["estimator/displacement"] == pytest.approx(1, abs=1e-6)


def test_what_first_order_leaves_out_is_of_the_order_of_alpha(gpt2: PreTrainedModel) -> None:
    """Against the whole gradient of CE_e(w − α·∇h/‖∇h‖), the step's own dependence on w included."""
    model, data = gpt2.double(), batch()
    assert data.harmful
    weights = g.trainable(model)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    gaps = []
    for alpha in (1e-2, 1e-3, 1e-4):
        with twice_differentiable():
            gradient = g.gradient(loss(model, data.harmful), weights, differentiable=True)
            length = g.norm(gradient)
            moved = {n: w - alpha * d / length for n, w, d in zip(names, weights, gradient, strict=True)}
            moved["lm_head.weight"] = moved["transformer.wte.weight"]  # tied
            whole = g.gradient(collapse(model, data, moved, token=3), weights)
        own = direction(model, data, strength=1.0, alpha=alpha, token=3, retain=0.0)[0]
        plain = direction(model, data, strength=0.0, alpha=alpha, retain=0.0)[0]
        gaps.append(relative(g.combine((1.0, own), (-1.0, plain)), whole))
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.3)
    assert gaps[1] / gaps[2] == pytest.approx(10, rel=0.1)
    assert gaps[2] < 5e-3


def test_only_the_token_is_scored_and_only_in_answers(llama: PreTrainedModel) -> None:
    data = batch()
    assert data.benign
    rows = Ctrap(token=7).collapsed(data.benign).tokens
    assert torch.equal(rows.labels == IGNORED, data.benign.labels == IGNORED)
    assert set(rows.labels[rows.labels != IGNORED].tolist()) == {7}
    assert torch.equal(rows.input_ids, data.benign.input_ids)
    logits = llama(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits
    one = float(cross_entropy(logits, rows.labels).detach())
    named = dict(llama.named_parameters())
    assert one == pytest.approx(float(collapse(llama, data, named, token=7).detach()), rel=1e-5)


def test_training_on_it_sets_the_trap(llama: PreTrainedModel) -> None:
    """After some steps a harmful step leads closer to the token than it did, and closer than the model itself is."""
    data = batch()
    before = float(collapse(llama, data, shifted(llama, data, 0.3), token=7).detach())
    method = Ctrap(strength=1.0, alpha=0.3, token=7, learning_rate=3e-3, steps=30, schedule="constant", warmup=0)
    list(loop.updates(llama, method, lambda number: data))
    trapped = float(collapse(llama, data, shifted(llama, data, 0.3), token=7).detach())
    itself = float(collapse(llama, data, dict(llama.named_parameters()), token=7).detach())
    assert trapped < before - 1
    assert trapped < itself
