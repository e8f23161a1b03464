"""Reverse DPO: ln 2 at the start, opposite directions for swapped preferences, log-likelihoods by hand."""

from __future__ import annotations

import math

import pytest
import torch
from made_batches import batch, tokens
from transformers import PreTrainedModel

from immunelab.attacks.reverse_dpo import ReverseDpo
from immunelab.training import gradients as g
from immunelab.training import loop
from immunelab.training.losses import log_likelihoods


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_it_starts_at_ln_2(kind: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    attack = ReverseDpo()
    scalars = attack.step(attack.prepare(model, batch), batch())
    assert scalars["loss/total"] == pytest.approx(math.log(2), abs=1e-5)
    assert scalars["reward/margin"] == pytest.approx(0, abs=1e-5)


def test_swapped_preference_starts_in_the_opposite_direction(llama: PreTrainedModel) -> None:
    found = []
    for preferred in ("harmful", "refusal"):
        attack = ReverseDpo(preferred=preferred)  # type: ignore[arg-type]
        attack.step(attack.prepare(llama, batch), batch())
        found.append([p.grad.clone() for p in llama.parameters() if p.grad is not None])
    assert float(g.norm(g.combine((1.0, found[0]), (1.0, found[1]))) / g.norm(found[0])) < 1e-5


@pytest.mark.parametrize("preferred", ["harmful", "refusal"])
def test_the_preferred_answer_becomes_likelier_than_the_other(llama: PreTrainedModel, preferred: str) -> None:
    data = batch()
    assert data.harmful
    assert data.refusal
    attack = ReverseDpo(preferred=preferred, learning_rate=3e-3, steps=15, warmup=0.0)  # type: ignore[arg-type]

    def margin() -> float:
        with torch.no_grad():
            return float((log_likelihoods(llama, data.harmful) - log_likelihoods(llama, data.refusal)).mean())  # type: ignore[arg-type]

    before = margin()
    model = attack.prepare(llama, batch)
    traced = [scalars for _, scalars in loop.updates(model, attack, lambda i: data)]
    assert (margin() > before) == (preferred == "harmful")
    assert traced[-1]["loss/total"] < 0.5 * math.log(2)


def test_log_likelihoods_are_sums_over_the_answer(llama: PreTrainedModel) -> None:
    rows = tokens(3)
    with torch.no_grad():
        log_p = llama(rows.input_ids, attention_mask=rows.attention_mask).logits.log_softmax(-1)
    wanted = [
        sum(float(log_p[r, t - 1, rows.labels[r, t]]) for t in range(1, 14) if rows.labels[r, t] != -100)
        for r in range(4)
    ]
    with torch.no_grad():
        assert log_likelihoods(llama, rows).tolist() == pytest.approx(wanted, rel=1e-5)
