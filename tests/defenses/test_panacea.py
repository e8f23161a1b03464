"""Panacea: its direction by hand, limits in which it is fine-tuning, what is served, and stop and resume."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import hosted
import pytest
import torch
from made_batches import batch
from nearness import ROUNDED, relative
from torch import Tensor
from transformers import PreTrainedModel

from immunelab.attacks.drop_vector import DropVector
from immunelab.attacks.harmful_sft import HarmfulSft
from immunelab.attacks.lora_sft import LoraSft
from immunelab.defenses.panacea import Panacea
from immunelab.errors import UserError
from immunelab.method import Batch, Memory
from immunelab.training import gradients as g
from immunelab.training import loop
from immunelab.training.losses import loss

USER = HarmfulSft(learning_rate=1e-2, steps=3, batch_size=4)
TINY: dict[str, Any] = {"learning_rate": 1e-3, "steps": 5, "batch_size": 4, "samples": 12}
SMALL = Panacea(rho=0.5, strength=0.1, ceiling=8.0, samples=12, batch_size=4)


def fed(number: int) -> Batch:
    return batch(number)._replace(number=number)


def direction(model: PreTrainedModel, panacea: Panacea, number: int = 0) -> tuple[g.Gradient, dict[str, float]]:
    scalars = panacea.during(model, Memory(rows=fed), USER.step)(model, fed(number))
    return [p.grad.clone() for p in model.parameters() if p.grad is not None], scalars


def gradient(model: PreTrainedModel, stream: str, number: int = 0) -> g.Gradient:
    return g.gradient(loss(model, getattr(fed(number), stream)), g.trainable(model))


def test_the_direction_is_the_written_out_one(gpt2: PreTrainedModel) -> None:
    mine, scalars = direction(gpt2, SMALL, 3)
    user, here = gradient(gpt2, "user", 3), gradient(gpt2, "harmful", 3)
    length = float(torch.cat([t.flatten() for t in here]).double().norm())
    before = [p.detach().clone() for p in gpt2.parameters()]
    with torch.no_grad():
        for p, t in zip(gpt2.parameters(), here, strict=True):
            p.add_(t * 0.5 / length)
    there = gradient(gpt2, "harmful", 3)
    rows = fed(3).harmful
    assert rows
    assert scalars["loss/harmful-perturbed"] == pytest.approx(float(loss(gpt2, rows).detach()), rel=1e-5)
    with torch.no_grad():
        torch._foreach_copy_(list(gpt2.parameters()), before)
    wanted = [u - 0.1 * (t - h) for u, t, h in zip(user, there, here, strict=True)]
    assert relative(mine, wanted) < ROUNDED
    assert float(g.norm([a - b for a, b in zip(mine, user, strict=True)])) > 1e-3  # the term is there at all


def test_rounded_weights_are_refused(gpt2: PreTrainedModel) -> None:
    with pytest.raises(UserError, match="stands panacea, and its own term"):
        direction(gpt2.bfloat16(), Panacea())


def test_above_the_ceiling_only_the_unperturbed_part_is_left(gpt2: PreTrainedModel) -> None:
    mine, scalars = direction(gpt2, dataclasses.replace(SMALL, ceiling=0.5))
    assert scalars["loss/harmful-perturbed"] > 0.5
    wanted = g.combine((1.0, gradient(gpt2, "user")), (0.1, gradient(gpt2, "harmful")))
    assert relative(mine, wanted) < ROUNDED


def test_the_ceiling_can_be_off(gpt2: PreTrainedModel) -> None:
    off, far = (direction(gpt2, dataclasses.replace(SMALL, ceiling=c))[0] for c in (0.0, 100.0))
    assert all(torch.equal(a, b) for a, b in zip(off, far, strict=True))


@pytest.mark.parametrize(
    ("panacea", "exact"),
    [
        (dataclasses.replace(SMALL, strength=0.0), True),
        (dataclasses.replace(SMALL, strength=0.0, perturbation="last-minibatch"), True),
        (dataclasses.replace(SMALL, perturbation="random"), True),
        (dataclasses.replace(SMALL, rho=0.0, ceiling=0.0), False),
    ],
)
def test_without_its_term_it_is_fine_tuning(gpt2: PreTrainedModel, panacea: Panacea, exact: bool) -> None:
    start = [p.detach().clone() for p in gpt2.parameters()]

    def trained(step: Any) -> Tensor:
        with torch.no_grad():
            torch._foreach_copy_(list(gpt2.parameters()), start)
        list(loop.updates(gpt2, USER, fed, direction=step))
        return torch.cat([p.detach().flatten() for p in gpt2.parameters()])

    plain, mine = trained(None), trained(panacea.during(gpt2, Memory(rows=fed), USER.step))
    assert torch.equal(plain, mine) if exact else float((plain - mine).norm() / plain.norm()) < ROUNDED


def test_to_first_order_the_loss_rises_by_rho_times_the_norm(gpt2: PreTrainedModel) -> None:
    gpt2.double()
    errors = [
        abs(direction(gpt2, dataclasses.replace(SMALL, rho=rho))[1]["estimator/first-order"] - 1)
        for rho in (1e-2, 1e-3, 1e-4)
    ]
    assert errors[2] < 1e-3
    assert errors[0] > 5 * errors[1] > 25 * errors[2]  # linear in ρ


@pytest.mark.parametrize("perturbation", ["harmful-set", "last-minibatch", "random"])
def test_what_is_served_is_trained_plus_epsilon_of_norm_rho(gpt2: PreTrainedModel, perturbation: Any) -> None:
    panacea, memory = dataclasses.replace(SMALL, perturbation=perturbation), Memory(rows=fed)
    weights = list(gpt2.parameters())
    panacea.during(gpt2, memory, USER.step)(gpt2, fed(5))
    before = [p.detach().clone() for p in weights]
    sets = [gradient(gpt2, "harmful", number) for number in range(3)]
    mean = [torch.stack(parts).mean(0) for parts in zip(*sets, strict=True)]
    last = gradient(gpt2, "harmful", 5)
    with panacea.serving(gpt2, memory) as scalars:
        served = [p.detach().clone() for p in weights]
    epsilon = [a - b for a, b in zip(served, before, strict=True)]
    assert float(g.norm(epsilon)) == pytest.approx(0.5, rel=1e-4)
    assert scalars["norm/perturbation"] == pytest.approx(0.5, rel=1e-5)
    assert all(torch.equal(p, b) for p, b in zip(weights, before, strict=True))
    if perturbation == "random":
        with panacea.serving(gpt2, memory):
            assert all(torch.equal(p, s) for p, s in zip(weights, served, strict=True))  # a run has one noise
        return
    gradient_of = {"harmful-set": mean, "last-minibatch": last}[perturbation]
    wanted = [b + t * (0.5 / (float(g.norm(gradient_of)) + 1e-7)) for b, t in zip(before, gradient_of, strict=True)]
    assert relative(served, wanted) < ROUNDED


def test_the_last_epsilon_is_a_copy_and_none_before_the_first_step(gpt2: PreTrainedModel) -> None:
    panacea, memory = dataclasses.replace(SMALL, perturbation="last-minibatch"), Memory(rows=fed)
    with panacea.serving(gpt2, memory) as scalars:
        assert scalars == {"norm/perturbation": 0.0}
    panacea.during(gpt2, memory, USER.step)(gpt2, fed(0))
    before = {name: t.clone() for name, t in memory.tensors.items()}
    USER.step(gpt2, fed(1))
    with torch.no_grad():
        for p in gpt2.parameters():
            if p.grad is not None:
                p.grad.zero_()
    assert all(torch.equal(memory.tensors[name], t) for name, t in before.items())


@pytest.mark.parametrize("perturbation", ["harmful-set", "last-minibatch", "random"])
@pytest.mark.parametrize("attack", [HarmfulSft(**TINY), LoraSft(**TINY, targets="all-linear")])
def test_stopped_and_resumed_equals_uninterrupted(home: Path, tiny_world: Path, attack: Any, perturbation: Any) -> None:
    panacea = dataclasses.replace(SMALL, perturbation=perturbation)
    guard = hosted.run(home, tiny_world, "immunize", panacea)
    assert all(torch.equal(t, hosted.released(tiny_world)[n]) for n, t in hosted.weights(guard).items())
    source = f"run:{guard.run_id}"
    whole = hosted.run(home, tiny_world, "attack", attack, source, evaluate_every=2)
    again = hosted.stopped_and_resumed(home, whole.spec(), 3)
    assert all(torch.equal(hosted.weights(again)[n], t) for n, t in hosted.weights(whole).items())
    assert hosted.points(again) == hosted.points(whole)
    assert hosted.scores(again) == hosted.scores(whole)
    served = [values["norm/perturbation"] for _, values in hosted.points(whole) if "norm/perturbation" in values]
    assert served == [pytest.approx(0.5, rel=1e-5)] * 3  # at steps 2, 4 and 5


def test_evaluating_more_often_changes_no_weight(home: Path, tiny_world: Path) -> None:
    guard = hosted.run(home, tiny_world, "immunize", SMALL)
    often, once = (
        hosted.run(home, tiny_world, "attack", HarmfulSft(**TINY), f"run:{guard.run_id}", evaluate_every=every)
        for every in (1, 0)
    )
    assert all(torch.equal(hosted.weights(often)[n], t) for n, t in hosted.weights(once).items())


def test_what_a_finished_run_left_is_what_it_last_measured(home: Path, tiny_world: Path) -> None:
    """The checkpoint is the served model: measured again it gives the same scores, and it is not perturbed twice."""
    guard = hosted.run(home, tiny_world, "immunize", dataclasses.replace(SMALL, rho=3.0))
    attacked = hosted.run(home, tiny_world, "attack", HarmfulSft(**TINY), f"run:{guard.run_id}")
    measured = hosted.run(home, tiny_world, "evaluate", None, f"run:{attacked.run_id}")
    assert [s[1:] for s in hosted.scores(attacked) if s[0] == 5] == [s[1:] for s in hosted.scores(measured)]
    # A question to the service itself is served as well, as at the end of its own run.
    asked = hosted.run(home, tiny_world, "evaluate", None, f"run:{guard.run_id}")
    assert [s[1:] for s in hosted.scores(guard) if s[0] == 1] == [s[1:] for s in hosted.scores(asked)]
    assert [s[1:] for s in hosted.scores(guard) if s[0] == 0] != [s[1:] for s in hosted.scores(asked)]
    past = hosted.run(home, tiny_world, "attack", DropVector(**TINY), f"run:{guard.run_id}")
    bare = hosted.run(home, tiny_world, "attack", DropVector(**TINY))
    assert hosted.scores(past) == hosted.scores(bare)
    assert all(torch.equal(hosted.weights(past)[n], t) for n, t in hosted.weights(bare).items())
