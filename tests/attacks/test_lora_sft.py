"""LoRA fine-tuning: a fresh adapter changes nothing, merging keeps the logits, bad targets get a sentence."""

from __future__ import annotations

import copy

import pytest
import torch
from made_batches import batch, tokens
from transformers import PreTrainedModel

from immunelab.attacks.lora_sft import LoraSft
from immunelab.errors import UserError
from immunelab.method import Batch
from immunelab.training import loop
from immunelab.training.losses import forward, loss

ATTACK = LoraSft(learning_rate=1e-2, steps=40, warmup=0.0, schedule="constant", rank=4, alpha=8, targets="all-linear")


def attacked(model: PreTrainedModel) -> PreTrainedModel:
    rows = tokens(0)
    adapted = ATTACK.prepare(model, batch)
    list(loop.updates(adapted, ATTACK, lambda i: Batch(user=rows)))
    return adapted


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_merged_logits_match_unmerged_and_harm_is_learned(kind: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    rows = tokens(0)
    with torch.no_grad():
        first, before = float(loss(model, rows)), forward(model, rows)[0]
    adapted = attacked(model)
    with torch.no_grad():
        logits, last = forward(adapted, rows)[0], float(loss(adapted, rows))
        merged = ATTACK.after(adapted)
        after = forward(merged, rows)[0]
    assert last < 0.9 * first
    assert float((after - logits).abs().max()) < 1e-4
    assert float((after - before).abs().max()) > 1e-2


def test_only_the_adapter_trains_and_it_has_the_asked_rank(llama: PreTrainedModel) -> None:
    before = {name: p.detach().clone() for name, p in llama.named_parameters()}
    adapted = LoraSft(rank=3, alpha=6).prepare(copy.deepcopy(llama), batch)
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert {name.split(".")[-4] for name in trained} == {"q_proj", "v_proj"}
    assert all(3 in p.shape and "lora_" in name for name, p in trained.items())
    adapted = attacked(llama)
    kept = dict(adapted.named_parameters())
    for name, value in before.items():
        path, _, leaf = name.rpartition(".")
        found = kept.get(f"base_model.model.{path}.base_layer.{leaf}", kept.get(f"base_model.model.{name}"))
        assert found is not None
        assert torch.equal(found, value)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("q_proj,query", r"called 'query'.*q_proj, k_proj, v_proj, o_proj"),
        (" , ", "needs targets"),
    ],
)
def test_targets_that_are_not_there_are_named(llama: PreTrainedModel, targets: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        LoraSft(targets=targets).prepare(llama, batch)
