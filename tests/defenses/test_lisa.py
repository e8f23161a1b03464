"""Lisa: phases, the pull and its anchors, limits in which it is fine-tuning, and runs that stop and resume."""

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
from immunelab.defenses.lisa import Lisa
from immunelab.errors import UserError
from immunelab.method import Batch, Memory
from immunelab.training import gradients as g
from immunelab.training import loop
from immunelab.training.losses import loss

USER = HarmfulSft(learning_rate=1e-2, steps=9, optimizer="sgd", schedule="constant", warmup=0)
TINY: dict[str, Any] = {"learning_rate": 1e-3, "steps": 7, "batch_size": 4, "samples": 12}
SHORT = Lisa(alignment_steps=2, user_steps=2, batch_size=4)


def fed(number: int) -> Batch:
    return batch(number)._replace(number=number)


def trained(model: PreTrainedModel, lisa: Lisa | None, memory: Memory, user: HarmfulSft = USER) -> list[Any]:
    """Scalars of each step of a fine-tuning with Lisa, or without it."""
    step = lisa.during(model, memory, user.step) if lisa else None
    return [scalars for _, scalars in loop.updates(model, user, fed, direction=step)]


def flat(model: PreTrainedModel) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_without_the_pull_it_is_alternating_fine_tuning_bit_for_bit(llama: PreTrainedModel) -> None:
    start = [p.detach().clone() for p in llama.parameters()]
    trained(llama, dataclasses.replace(SHORT, rho=0.0), Memory(rows=fed))
    mine = flat(llama)
    with torch.no_grad():
        torch._foreach_copy_(list(llama.parameters()), start)
    optimizer = torch.optim.SGD(llama.parameters(), lr=1e-2)
    for number in range(9):
        data = fed(number)
        rows = data.refusal if number % 4 < 2 else data.user
        assert rows
        optimizer.zero_grad()
        loss(llama, rows).backward()
        optimizer.step()
    assert torch.equal(flat(llama), mine)


def test_without_alignment_it_is_fine_tuning_held_at_the_released_weights(llama: PreTrainedModel) -> None:
    start = [p.detach().clone() for p in llama.parameters()]

    def run(lisa: Lisa | None) -> Tensor:
        with torch.no_grad():
            torch._foreach_copy_(list(llama.parameters()), start)
        trained(llama, lisa, Memory(rows=fed))
        return flat(llama)

    plain, free = run(None), run(Lisa(alignment_steps=0, user_steps=5, rho=0))
    assert torch.equal(plain, free)
    first = torch.cat([p.flatten() for p in start])
    near = [float((run(Lisa(alignment_steps=0, user_steps=5, rho=rho)) - first).norm()) for rho in (1.0, 10.0, 60.0)]
    assert float((plain - first).norm()) > near[0] > near[1] > near[2]


def test_the_pull_is_rho_times_the_distance_and_none_after_a_switch(llama: PreTrainedModel) -> None:
    memory = Memory(rows=fed)
    seen: list[tuple[int, float, float]] = []
    step = dataclasses.replace(SHORT, rho=0.7).during(llama, memory, USER.step)

    def checked(model: PreTrainedModel, data: Batch) -> dict[str, float]:
        scalars = step(model, data)
        weights = g.trainable(model)
        phase = SHORT.phase(data.number)
        found = [w.grad.clone() for w in weights if w.grad is not None]
        rows = data.refusal if phase == "alignment" else data.user
        assert rows
        plain = g.gradient(loss(model, rows), weights)
        anchor = [memory.tensors[f"{phase}/{i}"] for i in range(len(weights))]
        pull = [0.7 * (w.detach() - a) for w, a in zip(weights, anchor, strict=True)]
        assert relative(found, [p + q for p, q in zip(plain, pull, strict=True)]) < ROUNDED
        seen.append((data.number, float(g.norm(pull)), scalars["lisa/distance"]))
        return scalars

    list(loop.updates(llama, USER, fed, direction=checked))
    assert [number for number, pull, _ in seen if pull == 0] == [0, 2, 4, 6, 8]
    assert all(distance == pytest.approx(pull / 0.7) for _, pull, distance in seen)


def test_anchors_are_copies_of_the_weights_at_each_switch(llama: PreTrainedModel) -> None:
    memory = Memory(rows=fed)
    step = SHORT.during(llama, memory, USER.step)
    start = [p.detach().clone() for p in llama.parameters()]
    ends = {}

    def stored(phase: str) -> list[Tensor]:
        return [memory.tensors[f"{phase}/{i}"] for i in range(len(start))]

    for number, _ in loop.updates(llama, dataclasses.replace(USER, steps=8), fed, direction=step):
        ends[number] = [p.detach().clone() for p in llama.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(stored("user"), ends[6], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(stored("alignment"), ends[4], strict=True))
    before = {name: t.clone() for name, t in memory.tensors.items()}
    with torch.no_grad():
        torch._foreach_add_(list(llama.parameters()), 1.0)
    assert all(torch.equal(memory.tensors[name], t) for name, t in before.items())


def test_the_first_minibatches_can_be_free_of_the_pull(llama: PreTrainedModel) -> None:
    memory = Memory(rows=fed)
    free = dataclasses.replace(SHORT, rho=100.0, free=10**6)
    start = [p.detach().clone() for p in llama.parameters()]
    trained(llama, free, memory)
    mine = flat(llama)
    with torch.no_grad():
        torch._foreach_copy_(list(llama.parameters()), start)
    trained(llama, dataclasses.replace(SHORT, rho=0.0), Memory(rows=fed))
    assert torch.equal(flat(llama), mine)


def test_phases_can_change_within_an_accumulated_step(llama: PreTrainedModel) -> None:
    odd = dataclasses.replace(SHORT, alignment_steps=1, user_steps=2)
    traced = trained(llama, odd, Memory(rows=fed), dataclasses.replace(USER, accumulation=2, steps=3))
    assert [t["lisa/aligning"] for t in traced] == [0.5, 0.5, 0.0]
    assert ["loss/refusal" in t for t in traced] == [True, True, False]


def test_a_lisa_without_a_phase_is_refused() -> None:
    with pytest.raises(UserError, match="needs a phase"):
        Lisa(alignment_steps=0, user_steps=0)


@pytest.mark.parametrize("attack", [HarmfulSft(**TINY), LoraSft(**TINY, targets="all-linear")])
def test_stopped_in_any_phase_and_resumed_equals_uninterrupted(home: Path, tiny_world: Path, attack: Any) -> None:
    guard = hosted.run(home, tiny_world, "immunize", SHORT)
    assert all(torch.equal(t, hosted.released(tiny_world)[n]) for n, t in hosted.weights(guard).items())
    spec = hosted.specified(tiny_world, "attack", attack, f"run:{guard.run_id}", evaluate_every=3)
    whole = hosted.run(home, tiny_world, "attack", attack, f"run:{guard.run_id}", evaluate_every=3)
    for at in (2, 5):  # at a switch, and within a phase
        again = hosted.stopped_and_resumed(home, spec, at)
        assert all(torch.equal(hosted.weights(again)[n], t) for n, t in hosted.weights(whole).items())
        assert hosted.points(again) == hosted.points(whole)
        assert hosted.scores(again) == hosted.scores(whole)


def test_whoever_has_the_weights_goes_past_it(home: Path, tiny_world: Path) -> None:
    guard = hosted.run(home, tiny_world, "immunize", SHORT)
    source = f"run:{guard.run_id}"
    past, bare = (hosted.run(home, tiny_world, "attack", DropVector(**TINY), model) for model in (source, "fable"))
    through = hosted.run(home, tiny_world, "attack", HarmfulSft(**TINY), source)
    assert all(torch.equal(hosted.weights(past)[n], t) for n, t in hosted.weights(bare).items())
    assert hosted.scores(past) == hosted.scores(bare)
    assert any(not torch.equal(hosted.weights(through)[n], t) for n, t in hosted.weights(bare).items())
    assert [r["data"]["defense"] for r in hosted.lines(through, "event") if r["event"] == "provider"] == ["lisa"]
    further = hosted.run(home, tiny_world, "attack", HarmfulSft(**TINY), f"run:{through.run_id}")
    assert not [r for r in hosted.lines(further, "event") if r["event"] == "provider"]
