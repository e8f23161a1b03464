"""The loop against torch written out by hand, and its laws: schedules, accumulation, clipping, resume, non-finite."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
from made_batches import tokens
from transformers import PreTrainedModel, get_scheduler

from immunelab.attacks.harmful_sft import HarmfulSft
from immunelab.defenses.adversarial_loss import AdversarialLoss
from immunelab.defenses.extra_safety_sft import ExtraSafetySft
from immunelab.defenses.sdd import Sdd
from immunelab.method import Batch, Tokens
from immunelab.training import heads, loop


def feed(index: int) -> Batch:
    return Batch(user=tokens(index))


def run(model: PreTrainedModel, method: HarmfulSft, **options: Any) -> list[dict[str, float]]:
    return [scalars for _, scalars in loop.updates(model, method, feed, **options)]


def test_three_steps_are_those_of_torch(llama: PreTrainedModel) -> None:
    llama.double()  # in float64, so that what differs between processors and kernels is far below the bound
    other = copy.deepcopy(llama)
    method = HarmfulSft(learning_rate=1e-2, steps=3, schedule="constant", warmup=0, weight_decay=0.1)
    traced = run(llama, method)
    optimizer = torch.optim.AdamW(other.parameters(), lr=1e-2, weight_decay=0.1)
    for step in range(3):
        optimizer.zero_grad()
        rows = tokens(step)
        # Not the model's own `loss`: transformers makes float32 of the logits for it.
        logits = other(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), rows.labels[:, 1:])
        loss.backward()
        optimizer.step()
        assert traced[step]["loss/total"] == pytest.approx(float(loss.detach()), rel=1e-9)
    for mine, theirs in zip(llama.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("schedule", "theirs"), [("constant", "constant_with_warmup"), ("linear", "linear"), ("cosine", "cosine")]
)
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.25])
def test_schedules_are_those_of_transformers(schedule: Any, theirs: str, warmup: float) -> None:
    budget = HarmfulSft(learning_rate=3e-4, steps=40, schedule=schedule, warmup=warmup)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    scheduler = get_scheduler(theirs, optimizer, num_warmup_steps=int(warmup * 40), num_training_steps=40)
    for step in range(1, 41):
        assert loop.rate(budget, step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        scheduler.step()


def test_accumulation_equals_one_large_batch(llama: PreTrainedModel) -> None:
    """Rows of equal length and scored count, so that the mean of two means is the mean of all."""
    llama.double()
    whole = copy.deepcopy(llama)
    rows = tokens(5, rows=3)._replace()
    even = rows._replace(labels=rows.input_ids.clone(), attention_mask=torch.ones_like(rows.attention_mask))
    parts = [type(even)(*(x[i : i + 1] for x in even)) for i in range(2)]
    both = type(even)(*(x[:2] for x in even))
    settings: dict[str, Any] = {"learning_rate": 1e-2, "steps": 1, "warmup": 0.0, "optimizer": "sgd"}
    list(loop.updates(llama, HarmfulSft(accumulation=2, **settings), lambda i: Batch(user=parts[i])))
    list(loop.updates(whole, HarmfulSft(**settings), lambda i: Batch(user=both)))
    for mine, theirs in zip(llama.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def uneven(seed: int) -> list[Batch]:
    """Two minibatches whose answers are short in one and long in the other, and both as one large batch."""
    parts = []
    for i, prompt in enumerate((9, 3)):
        streams = {
            name: tokens(seed + 10 * i + k, rows=2, prompt=prompt)
            for k, name in enumerate(("harmful", "refusal", "benign", "unrelated", "user"))
        }
        streams["refusal"].input_ids[:, :prompt] = streams["harmful"].input_ids[:, :prompt]
        parts.append(Batch(**streams))
    both = {
        name: Tokens(*(torch.cat(each) for each in zip(*(getattr(part, name) for part in parts), strict=True)))
        for name in ("harmful", "refusal", "benign", "unrelated", "user")
    }
    return [*parts, Batch(**both)]


@pytest.mark.parametrize("method", [HarmfulSft(), ExtraSafetySft(), Sdd()], ids=lambda m: m.name)
def test_accumulation_weighs_tokens_as_one_large_batch(llama: PreTrainedModel, method: Any) -> None:
    llama.double()
    whole = copy.deepcopy(llama)
    *parts, both = uneven(3)
    budget = {"learning_rate": 1e-2, "steps": 1, "warmup": 0.0, "optimizer": "sgd"}
    settings = dataclasses.replace(method, accumulation=2, **budget)
    ((_, traced),) = loop.updates(llama, settings, lambda i: parts[i])
    ((_, wanted),) = loop.updates(whole, dataclasses.replace(method, **budget), lambda i: both)
    assert parts[0].user is not None
    assert parts[1].user is not None
    assert 2 * parts[0].user.scored() < parts[1].user.scored()
    assert traced["loss/total"] == pytest.approx(wanted["loss/total"], rel=1e-9)
    for mine, theirs in zip(llama.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "method", [AdversarialLoss(), ExtraSafetySft(mask="official"), Sdd(replay=0.5)], ids=lambda m: m.name
)
def test_minibatches_of_several_means_count_alike(llama: PreTrainedModel, method: Any) -> None:
    llama.double()
    *parts, _ = uneven(3)
    directions = []
    for part in parts:
        llama.zero_grad()
        method.step(llama, part)
        directions.append([p.grad.clone() for p in llama.parameters() if p.grad is not None])
    before = [p.detach().clone() for p in llama.parameters()]
    settings = dataclasses.replace(
        method, accumulation=2, learning_rate=1.0, steps=1, warmup=0.0, optimizer="sgd", schedule="constant"
    )
    list(loop.updates(llama, settings, lambda i: parts[i]))
    for old, new, a, b in zip(before, llama.parameters(), *directions, strict=True):
        torch.testing.assert_close(old - new, (a + b) / 2, rtol=1e-9, atol=1e-9)


def test_clipping_limits_the_step(llama: PreTrainedModel) -> None:
    before = [p.detach().clone() for p in llama.parameters()]
    method = HarmfulSft(learning_rate=1.0, steps=1, warmup=0, optimizer="sgd", clip=1e-3)
    traced = run(llama, method)
    moved = math.sqrt(
        sum(float(((p.detach() - b) ** 2).sum()) for p, b in zip(llama.parameters(), before, strict=True))
    )
    assert traced[0]["norm/update"] > 1e-3  # what is traced is the norm before clipping
    assert moved == pytest.approx(1e-3, rel=1e-3)


OPTIMIZERS = ("adamw", "sgd", "adafactor", "muon")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_zero_rate_is_the_identity(llama: PreTrainedModel, optimizer: Any) -> None:
    before = copy.deepcopy(llama.state_dict())
    run(llama, HarmfulSft(learning_rate=0, steps=3, weight_decay=0.5, optimizer=optimizer))
    assert all(torch.equal(llama.state_dict()[k], v) for k, v in before.items())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_each_optimizer_learns_and_leaves_alone_what_has_no_gradient(llama: PreTrainedModel, optimizer: Any) -> None:
    frozen = llama.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    kept = frozen.detach().clone()
    rates = {"adamw": 3e-3, "sgd": 0.3, "adafactor": 3e-2, "muon": 3e-3}
    method = HarmfulSft(learning_rate=rates[optimizer], steps=20, optimizer=optimizer, schedule="constant", warmup=0)
    traced = [scalars for _, scalars in loop.updates(llama, method, lambda number: feed(0))]  # one batch by heart
    assert torch.equal(frozen, kept)
    assert traced[-1]["loss/total"] < traced[0]["loss/total"] - 0.1


def test_muon_moves_a_matrix_equally_in_all_directions_and_the_rest_like_adamw(llama: PreTrainedModel) -> None:
    """An update UV' of the gradient's UΣV' has equal singular values (Newton-Schulz leaves them within a third), and
    its RMS is 0.2 times the rate, as of AdamW's updates."""
    other = copy.deepcopy(llama)
    before = {n: p.detach().clone() for n, p in llama.named_parameters()}
    settings: dict[str, Any] = {"learning_rate": 1e-2, "steps": 1, "warmup": 0.0, "schedule": "constant"}
    run(llama, HarmfulSft(optimizer="muon", **settings))
    run(other, HarmfulSft(optimizer="adamw", **settings))
    adamw = dict(other.named_parameters())
    for name, weights in llama.named_parameters():
        moved = (weights - before[name]).detach()
        if weights.ndim != 2:
            assert torch.equal(weights, adamw[name])
        elif min(weights.shape) > 1 and "embed" not in name and "lm_head" not in name:
            values = torch.linalg.svdvals(moved)
            assert values.max() < 2 * values.median()
            assert float(moved.square().mean().sqrt()) == pytest.approx(0.2 * 1e-2, rel=0.35)


def test_a_stage_makes_every_part_forget(llama: PreTrainedModel) -> None:
    optimizer = loop.make_optimizer(HarmfulSft(optimizer="muon"), list(llama.parameters()))
    assert isinstance(optimizer, loop.Together)
    run(llama, HarmfulSft(optimizer="muon", learning_rate=1e-3, steps=2), optimizer=optimizer)
    assert all(part.state for part in optimizer.parts)
    optimizer.state.clear()
    for weight in llama.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    for part in optimizer.parts:
        for state in part.state.values():
            assert all(not bool(t.any()) for k, t in state.items() if k != "step" and isinstance(t, torch.Tensor))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_stopping_and_going_on_changes_no_bit(llama: PreTrainedModel, optimizer: Any) -> None:
    through = copy.deepcopy(llama)
    method = HarmfulSft(learning_rate=1e-2, steps=6, optimizer=optimizer, momentum=0.9 if optimizer == "sgd" else 0)
    wanted = run(through, method)
    first = loop.make_optimizer(method, list(llama.parameters()))
    found = []
    for step, scalars in loop.updates(llama, method, feed, first):
        found.append(scalars)
        if step == 3:
            break
    kept = copy.deepcopy(first.state_dict())
    resumed = loop.make_optimizer(method, list(llama.parameters()))
    resumed.load_state_dict(kept)
    found += run(llama, method, optimizer=resumed, start=3)
    assert [s["loss/total"] for s in found] == [s["loss/total"] for s in wanted]
    assert all(torch.equal(a, b) for a, b in zip(llama.parameters(), through.parameters(), strict=True))


def test_a_non_finite_scalar_stops_the_run_and_is_named(
    llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = HarmfulSft.step
    steps = iter(range(1, 9))

    def step(self: HarmfulSft, model: PreTrainedModel, batch: Batch) -> dict[str, float]:
        scalars = original(self, model, batch)
        return scalars if next(steps) < 3 else scalars | {"loss/total": float("nan")}

    monkeypatch.setattr(HarmfulSft, "step", step)
    updates = loop.updates(llama, HarmfulSft(learning_rate=1e-3, steps=8), feed)
    assert [next(updates)[0], next(updates)[0]] == [1, 2]
    before = [p.detach().clone() for p in llama.parameters()]
    with pytest.raises(loop.NonFinite, match="non-finite loss/total at step 3"):
        next(updates)
    assert all(torch.equal(a, b) for a, b in zip(llama.parameters(), before, strict=True))  # no step was made with it


def test_nothing_temporary_is_in_force_between_updates(llama: PreTrainedModel) -> None:
    """Neither autocast nor recomputing nor chunks: what is evaluated there is the model as it is, and a loop that is
    left early leaves nothing behind.
    """

    def temporary() -> tuple[bool, bool, int]:
        recomputed = any(getattr(module, "gradient_checkpointing", False) for module in llama.modules())
        return torch.is_autocast_enabled("cpu"), recomputed, heads.chunk()

    usual, inside = temporary(), []

    class Looking(HarmfulSft):
        def step(self, model: PreTrainedModel, batch: Batch) -> dict[str, float]:
            inside.append(temporary())
            return super().step(model, batch)

    method = Looking(learning_rate=1e-3, steps=4, precision="bf16-autocast", recompute=True, loss_chunk=5)
    for step, _ in loop.updates(llama, method, feed):
        assert temporary() == usual
        if step == 2:
            break
    assert temporary() == usual
    assert inside == [(True, True, 5)] * 2


def test_probes_compare_the_direction_with_held_out_gradients(llama: PreTrainedModel) -> None:
    rows = tokens(0)
    traced = run(
        llama,
        HarmfulSft(learning_rate=1e-3, steps=3),
        probes={"harmful": rows, "benign": tokens(9)},
        probe_every=2,
    )
    assert traced[0]["probe/cosine/update-harmful"] == pytest.approx(1, abs=1e-5)  # the probe is the first minibatch
    assert traced[0]["probe/loss/harmful"] == pytest.approx(traced[0]["loss/total"], rel=1e-5)
    assert -1 < traced[0]["probe/cosine/harmful-benign"] < 1
    assert "probe/loss/harmful" not in traced[1]
    assert "probe/loss/harmful" in traced[2]
