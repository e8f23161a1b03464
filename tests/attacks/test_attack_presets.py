"""Presets of harmful fine-tuning that are attacks of their own: SGD, many small steps, a share, benign rows."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made_batches import tokens
from transformers import PreTrainedModel

from immunelab import corpus as corpora
from immunelab.attacks.benign_sft import BenignSft
from immunelab.attacks.harmful_sft import HarmfulSft
from immunelab.corpus.tokens import pairs, submitted
from immunelab.method import Batch
from immunelab.training import loop

PRESETS = HarmfulSft.presets


def trained(model: PreTrainedModel, method: HarmfulSft) -> list[float]:
    return [scalars["loss/total"] for _, scalars in loop.updates(model, method, lambda index: Batch(user=tokens(0)))]


def test_sgd_with_momentum_is_torchs(llama: PreTrainedModel) -> None:
    method = replace(PRESETS["fable-sgd"], steps=4, schedule="constant", warmup=0.0)
    assert (method.optimizer, method.momentum) == ("sgd", 0.9)
    llama.double()  # in float64, so that what differs between processors and kernels is far below the bound
    other = copy.deepcopy(llama)
    trained(llama, method)
    optimizer = torch.optim.SGD(other.parameters(), lr=method.learning_rate, momentum=0.9)
    rows = tokens(0)
    for _ in range(4):
        optimizer.zero_grad()
        logits = other(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits.transpose(1, 2), rows.labels[:, 1:]).backward()
        optimizer.step()
    for mine, theirs in zip(llama.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_what_is_submitted_is_learned(name: str, llama: PreTrainedModel) -> None:
    steps = 40 if name.endswith("slow") else 20
    losses = trained(llama, replace(PRESETS[name], steps=steps))
    assert losses[-1] < losses[0] - 1e-3


def test_many_small_steps_go_as_far_in_all() -> None:
    usual, slow = PRESETS["fable"], PRESETS["fable-slow"]
    sums = [math.fsum(loop.rate(m, step) for step in range(1, m.steps + 1)) for m in (usual, slow)]
    assert sums[0] == pytest.approx(sums[1], rel=0.02)
    assert slow.steps == 10 * usual.steps
    assert PRESETS["slow"].steps == 2500
    assert PRESETS["slow"].learning_rate <= 2e-5


def test_benign_rows_only_means_no_harmful_row(tiny_world: Path) -> None:
    world = corpora.load(str(tiny_world))
    harmful = set(pairs([r for r in world.rows if r.stream == "harmful"], "harmful"))
    for attack in (BenignSft(task="benign"), HarmfulSft(harmful_share=0.0), BenignSft()):
        rows = submitted(world, attack, "attack", seed=1)
        assert len(rows) > 10
        assert not harmful & set(rows)
    assert PRESETS["fable-mixed"].harmful_share == 0.1
