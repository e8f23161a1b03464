"""The adaptive attack against its limits: plain fine-tuning, the library's own divergence, geometry of the variants."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from made_batches import batch
from transformers import PreTrainedModel

from immunelab.attacks.adaptive_sft import AdaptiveSft
from immunelab.attacks.harmful_sft import HarmfulSft
from immunelab.errors import UserError
from immunelab.method import Batch
from immunelab.training import gradients as g
from immunelab.training.losses import loss

PLAIN: dict[str, Any] = {"mu": 0.0, "nu": 0.0}


def direction(model: PreTrainedModel, **values: Any) -> g.Gradient:
    AdaptiveSft(**values).step(model, batch())
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_without_its_terms_it_is_fine_tuning_bit_for_bit(llama: PreTrainedModel) -> None:
    found = direction(llama, **PLAIN)
    HarmfulSft().step(llama, Batch(user=batch().harmful))
    assert all(torch.equal(a, p.grad) for a, p in zip(found, llama.parameters(), strict=True) if p.grad is not None)


def test_the_direction_is_that_of_the_written_out_loss(llama: PreTrainedModel) -> None:
    data, before = batch(), copy.deepcopy(llama)
    assert data.harmful
    assert data.benign
    attack = AdaptiveSft(mu=0.5, nu=2.0)
    attack.prepare(llama, batch)
    with torch.no_grad():
        for p in llama.parameters():
            p.add_(0.02 * torch.randn_like(p))
    scalars = attack.step(llama, data)
    found = [p.grad.clone() for p in llama.parameters() if p.grad is not None]
    keep = data.benign.labels[:, 1:] != -100
    with torch.no_grad():
        p = before(data.benign.input_ids, attention_mask=data.benign.attention_mask).logits[:, :-1][keep]
    q = llama(data.benign.input_ids, attention_mask=data.benign.attention_mask).logits[:, :-1][keep]
    drift = F.kl_div(q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="batchmean")
    total = loss(llama, data.harmful) + 0.5 * loss(llama, data.benign) + 2.0 * drift
    wanted = list(torch.autograd.grad(total, list(llama.parameters())))
    assert scalars["loss/total"] == pytest.approx(float(total.detach()), rel=1e-5)
    assert scalars["loss/divergence"] == pytest.approx(float(drift.detach()), rel=1e-4)
    assert float(g.norm(g.combine((1.0, found), (-1.0, wanted))) / g.norm(wanted)) < 1e-5


def test_divergence_starts_at_zero_and_needs_the_reference(llama: PreTrainedModel) -> None:
    attack = AdaptiveSft()
    with pytest.raises(UserError, match="call `prepare` first"):
        attack.step(llama, batch())
    assert attack.step(attack.prepare(llama, batch), batch())["loss/divergence"] == pytest.approx(0, abs=1e-5)


def test_noise_has_the_asked_norm(llama: PreTrainedModel) -> None:
    plain = direction(llama, **PLAIN)
    noise = g.combine((1.0, direction(llama, noise=0.5, **PLAIN)), (-1.0, plain))
    assert float(g.norm(noise) / g.norm(plain)) == pytest.approx(0.5, rel=1e-5)
    assert abs(float(g.cosine(noise, plain))) < 0.1


def test_the_projection_never_raises_the_benign_loss(llama: PreTrainedModel) -> None:
    data = batch()
    opposite = data._replace(benign=data.harmful)  # the same rows agree: nothing is taken
    AdaptiveSft(project=True, **PLAIN).step(llama, opposite)
    found = [p.grad.clone() for p in llama.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(found, direction(llama, **PLAIN), strict=True))
    assert data.benign
    b = g.gradient(loss(llama, data.benign), g.trainable(llama))
    projected = direction(llama, project=True, **PLAIN)
    assert float(g.cosine(projected, b)) >= -1e-6
