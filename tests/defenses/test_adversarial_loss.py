"""The adversarial loss and the controls against their limits: each is another method with a weight at zero."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from made_batches import batch, tokens
from nearness import ROUNDED, relative
from transformers import PreTrainedModel

from immunelab.defenses.adversarial_loss import AdversarialLoss
from immunelab.defenses.extra_safety_sft import ExtraSafetySft
from immunelab.defenses.random_noise import RandomNoise
from immunelab.defenses.seam import Seam
from immunelab.errors import UserError
from immunelab.method import Batch, Defense
from immunelab.training import gradients as g
from immunelab.training.losses import differing, loss


def direction(method: Defense, model: PreTrainedModel, data: Batch | None = None) -> g.Gradient:
    method.step(model, data or batch())
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("mask", ["official", "response"])
def test_the_direction_is_refusal_minus_alpha_harmful(llama: PreTrainedModel, mask: Any) -> None:
    data = batch()
    assert data.harmful
    assert data.refusal
    harmful, refusal = differing(data.harmful, data.refusal) if mask == "official" else (data.harmful, data.refusal)
    weights = g.trainable(llama)
    wanted = g.combine(
        (1.0, g.gradient(loss(llama, refusal), weights)), (-0.3, g.gradient(loss(llama, harmful), weights))
    )
    assert relative(direction(AdversarialLoss(alpha=0.3, mask=mask), llama), wanted) < ROUNDED


@pytest.mark.parametrize("mask", ["official", "response"])
def test_without_ascent_all_are_the_control(llama: PreTrainedModel, mask: Any) -> None:
    control = direction(ExtraSafetySft(mask=mask), llama)
    assert relative(direction(AdversarialLoss(alpha=0, mask=mask), llama), control) < ROUNDED
    assert relative(direction(AdversarialLoss(alpha=0, mask=mask, ascent="layerwise"), llama), control) < ROUNDED
    seam = Seam(ascent_weight=0, alpha=1, beta=0, mask=mask)
    assert relative(direction(seam, llama), control) < ROUNDED


def test_the_layerwise_variant_is_seams_ascent(llama: PreTrainedModel) -> None:
    seam = direction(Seam(ascent_weight=0.3, alpha=1, beta=0, mask="official"), llama)
    assert relative(direction(AdversarialLoss(alpha=0.3, ascent="layerwise"), llama), seam) < ROUNDED


def test_identical_pairs_are_refused(llama: PreTrainedModel) -> None:
    with pytest.raises(UserError, match="the same text"):
        AdversarialLoss().step(llama, Batch(harmful=tokens(1), refusal=tokens(1), benign=tokens(2)))


def test_noise_has_the_asked_norm_and_none_is_the_identity(llama: PreTrainedModel) -> None:
    before = [p.detach().clone() for p in llama.parameters()]
    assert RandomNoise(norm=0).edit(llama, batch)["norm/displacement"] == 0
    assert all(torch.equal(a, b) for a, b in zip(llama.parameters(), before, strict=True))
    assert RandomNoise(norm=2.5).edit(llama, batch)["norm/displacement"] == pytest.approx(2.5, rel=1e-3)
    moved = [p.detach() - b for p, b in zip(llama.parameters(), before, strict=True)]
    assert float(g.norm(moved)) == pytest.approx(2.5, rel=1e-3)
