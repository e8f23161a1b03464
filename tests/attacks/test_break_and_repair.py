"""Break and repair: which loss is taken when, each stage's own schedule, and what a repair is worth."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from made_batches import batch
from transformers import PreTrainedModel, get_cosine_schedule_with_warmup

from immunelab.attacks.break_and_repair import BreakAndRepair
from immunelab.training import gradients as g
from immunelab.training import loop
from immunelab.training.losses import loss

ATTACK = BreakAndRepair(steps=30, repair=2 / 3, learning_rate=1e-3, repair_rate=3e-4, repair_share=0.25, warmup=0.2)


def test_the_losses_are_those_of_the_two_stages(llama: PreTrainedModel) -> None:
    data = batch()
    assert data.harmful
    assert data.benign
    weights = g.trainable(llama)
    harmful, benign = (g.gradient(loss(llama, rows), weights) for rows in (data.harmful, data.benign))
    mixed = g.combine((0.25, harmful), (0.75, benign))
    for number, share, wanted in ((9, 0.25, harmful), (10, 0.25, mixed), (29, 0.0, benign), (29, 1.0, harmful)):
        replace(ATTACK, repair_share=share).step(llama, data._replace(number=number))
        found = [p.grad.clone() for p in llama.parameters() if p.grad is not None]
        assert float(g.norm(g.combine((1.0, found), (-1.0, wanted))) / g.norm(wanted)) < 1e-5, (number, share)


def test_minibatches_of_one_step_are_of_one_stage(llama: PreTrainedModel) -> None:
    attack = replace(ATTACK, accumulation=2)
    names = [sorted(attack.step(llama, batch()._replace(number=number))) for number in (18, 19, 20)]
    assert names[0] == names[1] == ["loss/harmful", "loss/total"]
    assert names[2] == ["loss/benign", "loss/harmful", "loss/total"]


def test_each_stage_has_the_schedule_of_transformers(llama: PreTrainedModel) -> None:
    wanted: list[float] = []
    for peak, steps in ((1e-3, 10), (3e-4, 20)):
        optimizer = torch.optim.AdamW(llama.parameters(), lr=peak)
        schedule = get_cosine_schedule_with_warmup(optimizer, int(0.2 * steps), steps)
        for _ in range(steps):
            wanted.append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
    traced = [
        s["learning_rate"] for _, s in loop.updates(llama, ATTACK, lambda number: batch()._replace(number=number))
    ]
    assert traced == pytest.approx(wanted, rel=1e-12)


def test_two_stages_are_two_fine_tunings_bit_for_bit(llama: PreTrainedModel) -> None:
    """The same weights as from two runs of the loop, each with an optimizer of its own."""
    other = copy.deepcopy(llama)
    for _ in loop.updates(llama, ATTACK, lambda number: batch()._replace(number=number)):
        pass
    first, second = ATTACK.budget_at(1)[0], ATTACK.budget_at(11)[0]
    assert (first.learning_rate, first.steps, second.learning_rate, second.steps) == (1e-3, 10, 3e-4, 20)
    for budget, offset in ((first, 0), (second, 10)):
        weights = g.trainable(other)
        optimizer = loop.make_optimizer(budget, weights)
        for step in range(1, budget.steps + 1):
            ATTACK.step(other, batch()._replace(number=offset + step - 1))
            for group in optimizer.param_groups:
                group["lr"] = loop.rate(budget, step)
            optimizer.step()
    for mine, theirs in zip(llama.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_repair_brings_skills_back(llama: PreTrainedModel) -> None:
    def benign_loss(steps: int) -> float:
        model = copy.deepcopy(llama)
        for step, _ in loop.updates(model, attack, lambda number: batch()._replace(number=number)):
            if step == steps:
                break
        rows = batch().benign
        assert rows
        return float(loss(model, rows).detach())

    attack = BreakAndRepair(steps=60, repair=0.5, learning_rate=3e-3, repair_rate=3e-3, repair_share=0.0)
    broken, repaired = benign_loss(30), benign_loss(60)
    assert repaired < broken - 0.1


def test_at_least_one_step_breaks() -> None:
    assert [BreakAndRepair(steps=n, repair=r).breaks for n, r in ((1, 0.5), (3, 1.0), (120, 0.5), (4, 0.0))] == [
        1,
        1,
        60,
        4,
    ]
