"""TAR against its parts written out: the attack it rehearses, the weights of its passes, and its limits."""

from __future__ import annotations

import copy
import math
import random
from typing import Any

import pytest
import torch
from made_batches import batch
from nearness import ROUNDED, relative
from transformers import PreTrainedModel

from immunelab.defenses.tar import Tar, answers_of
from immunelab.errors import UserError
from immunelab.method import Batch, Budget, Memory, Tokens
from immunelab.training import gradients as g
from immunelab.training import loop
from immunelab.training.losses import IGNORED, forward, loss, negative_entropy

STILL = {"inner_rates": "0", "switching": 0.0}


def moved(model: PreTrainedModel) -> PreTrainedModel:
    """Prepared, and then no longer the reference."""
    Tar().prepare(model, batch)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.05 * torch.randn_like(p)
    return model


def direction(model: PreTrainedModel, method: Tar, data: Batch | None = None) -> tuple[g.Gradient, dict[str, float]]:
    traced = method.step(model, data or batch())
    return [p.grad.clone() for p in model.parameters() if p.grad is not None], traced


def resisting(model: PreTrainedModel, **knobs: Any) -> tuple[g.Gradient, dict[str, float]]:
    """The direction without the retain part."""
    whole, traced = direction(model, Tar(**knobs))
    return g.combine((1.0, whole), (-1.0, direction(model, Tar(**knobs | {"strength": 0.0}))[0])), traced


@pytest.mark.parametrize("distance", ["squared", "norm"])
def test_without_strength_it_is_retain_training(llama: PreTrainedModel, distance: Any) -> None:
    model, rows = moved(llama), batch().benign
    assert rows
    found, traced = direction(model, Tar(strength=0.0, retain=2.0, distance=distance))
    asked = {"input_ids": rows.input_ids, "attention_mask": rows.attention_mask}
    with torch.no_grad():
        before = Memory.of(model).before(**asked, output_hidden_states=True).hidden_states
    out = model(**asked, labels=rows.labels, output_hidden_states=True)
    keep = rows.attention_mask.bool()
    power = 2 if distance == "squared" else 1
    apart = [
        sum((a[i, t] - b[i, t]).norm() ** power for i, t in keep.nonzero().tolist()) / int(keep.sum())
        for a, b in zip(out.hidden_states, before, strict=True)
    ]
    value = 2.0 * (out.loss + sum(apart) / len(apart))
    assert traced["loss/total"] == pytest.approx(float(value.detach()), rel=1e-5)
    assert relative(found, g.gradient(value, g.trainable(model))) < ROUNDED


def test_at_the_reference_the_distance_pulls_nowhere(llama: PreTrainedModel) -> None:
    Tar().prepare(llama, batch)
    rows = batch().benign
    assert rows
    for distance in ("squared", "norm"):
        found, traced = direction(llama, Tar(strength=0.0, distance=distance))
        assert traced["loss/drift"] == 0
        assert relative(found, g.gradient(loss(llama, rows), g.trainable(llama))) < ROUNDED


def test_entropy_is_bounded_by_the_vocabulary(llama: PreTrainedModel) -> None:
    rows = batch().harmful
    assert rows
    torch.manual_seed(0)
    logits = torch.randn(4, 14, 97) * 3
    assert -math.log(97) < float(negative_entropy(logits, rows.labels)) < 0
    assert float(negative_entropy(torch.zeros(4, 14, 97), rows.labels)) == pytest.approx(-math.log(97), rel=1e-5)
    p = logits[:, :-1].softmax(-1)[rows.labels[:, 1:] != IGNORED]
    entropies = torch.distributions.Categorical(p).entropy()
    assert float(negative_entropy(logits, rows.labels)) == pytest.approx(-float(entropies.mean()), rel=1e-5)
    Tar().prepare(llama, batch)
    llama.lm_head.weight.data.zero_()
    assert Tar(**STILL).step(llama, batch())["loss/resistance"] == pytest.approx(-math.log(97), rel=1e-5)


def test_an_attack_that_does_not_move_leaves_the_plain_gradient(llama: PreTrainedModel) -> None:
    model, rows = moved(llama), batch().harmful
    assert rows
    plain = g.gradient(negative_entropy(forward(model, rows)[0], rows.labels), g.trainable(model))
    once = resisting(model, **STILL, inner_steps=1, every=1)[0]
    assert relative(once, g.scale(plain, 4.0)) < 1e-4


def test_passes_and_weights_at_the_defaults(llama: PreTrainedModel) -> None:
    """64 inner steps, 16 measurements of total weight 17.752, one retain pass: 81 forward and backward passes."""
    model, rows = moved(llama), batch().harmful
    assert rows
    passes = []
    handle = model.register_forward_hook(lambda m, i, o: passes.append(1))
    found, traced = direction(model, Tar(**STILL))
    handle.remove()
    assert len(passes) == 81
    value = negative_entropy(forward(model, rows)[0], rows.labels)
    retain = traced["loss/benign"] + traced["loss/drift"]
    assert (traced["loss/total"] - retain) / float(value.detach()) == pytest.approx(17.752, abs=1e-3)
    plain = g.gradient(value, g.trainable(model))
    part = g.combine((1.0, found), (-1.0, direction(model, Tar(strength=0.0))[0]))
    assert relative(part, g.scale(plain, 17.752)) < 1e-4


def test_the_gradients_are_those_along_an_adamw_attack(llama: PreTrainedModel) -> None:
    """Against torch's optimizer on a copy, with the same rows."""
    model, data = moved(llama), batch()
    assert data.harmful
    held = data.harmful
    knobs: dict[str, Any] = {"inner_steps": 4, "every": 2, "growth": 0.3, "strength": 1.5, "inner_rates": "1e-2"}
    method = Tar(**knobs, switching=0.0)
    drawn: list[Tokens] = []

    class Spied(Tar):
        def attacked(self, *asked: Any) -> Any:
            for rows in super().attacked(*asked):
                drawn.append(rows)
                yield rows

    found = resisting(model, **knobs, switching=0.0)[0]
    Spied(**method.settings()).step(model, data)
    other = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(other.parameters(), lr=1e-2)
    wanted = [torch.zeros_like(p) for p in other.parameters()]
    assert len(drawn) == 4
    for i, rows in enumerate(drawn):
        optimizer.zero_grad()
        other(input_ids=rows.input_ids, attention_mask=rows.attention_mask, labels=rows.labels).loss.backward()
        optimizer.step()
        if i in (1, 3):
            value = negative_entropy(forward(other, held)[0], held.labels)
            g.accumulate(wanted, g.gradient(value, g.trainable(other)), 1.5 * math.exp(0.3 * (i - 3)))
    assert relative(found, wanted) < 1e-3
    standing = resisting(model, **knobs | STILL)[0]
    assert relative(standing, wanted) > 0.05  # the attack matters


def test_a_rehearsal_is_the_loops_own_training(llama: PreTrainedModel) -> None:
    other = copy.deepcopy(llama)
    rows = [batch(i).user for i in range(3)]
    budget = Budget(learning_rate=1e-2, weight_decay=0.01)
    values = list(loop.rehearsal(llama, budget, [r for r in rows if r]))
    from immunelab.attacks.harmful_sft import HarmfulSft

    method = HarmfulSft(learning_rate=1e-2, weight_decay=0.01, steps=3, schedule="constant", warmup=0)
    traced = [scalars["loss/total"] for _, scalars in loop.updates(other, method, batch)]
    assert values == traced
    assert all(torch.equal(a, b) for a, b in zip(llama.parameters(), other.parameters(), strict=True))


def test_attacks_hold_out_answers_and_may_begin_on_benign_rows() -> None:
    held = batch(3).harmful
    assert held

    def feed(index: int) -> Batch:
        """Rows of minibatch 3 among the others', under other prompts."""
        made = batch(index)
        assert made.harmful
        ids = made.harmful.input_ids
        assert held
        mixed = Tokens(ids.clone(), made.harmful.attention_mask.clone(), made.harmful.labels.clone())
        mixed.input_ids[0, 5:], mixed.labels[0] = held.input_ids[0, 5:], held.labels[0]
        return made._replace(harmful=mixed)

    method = Tar(inner_steps=6, every=1, inner_batch=3)
    rows = list(method.attacked(feed, held, 2, random.Random(0)))
    assert [len(r.input_ids) for r in rows] == [3] * 6
    again = list(method.attacked(feed, held, 2, random.Random(0)))
    assert all(torch.equal(a.input_ids, b.input_ids) for a, b in zip(rows, again, strict=True))
    secret = set(answers_of(held))
    assert all(not secret & set(answers_of(r)) for r in rows)
    start = random.Random(0).randrange(2**20)
    for i, r in enumerate(rows):
        made = feed(start + i)
        assert made.benign
        assert made.harmful
        wanted = made.benign.input_ids[:3] if i < 2 else made.harmful.input_ids[1:4]
        assert torch.equal(r.input_ids, wanted)
    with pytest.raises(UserError, match="more samples"):
        list(method.attacked(lambda i: batch(3), held, 0, random.Random(0)))


@pytest.mark.slow
def test_attacks_are_drawn_anew_for_each_minibatch(llama: PreTrainedModel) -> None:
    Tar().prepare(llama, batch)
    method = Tar(inner_steps=10, every=10, inner_rates="1e-5,2e-5", switching=0.5, strength=1e-3)
    traced = [method.step(llama, batch(i)) for i in range(24)]
    assert {t["attack/learning-rate"] for t in traced} == {1e-5, 2e-5}
    switches = [t["attack/benign-steps"] for t in traced]
    assert 4 <= sum(s == 0 for s in switches) <= 20
    assert 4 < sum(s for s in switches if s) / sum(s > 0 for s in switches) < 9  # Beta(6, 3) has mean 2/3
    torch.manual_seed(5)
    other = [method.step(llama, batch(i)) for i in range(24)]
    assert [t["attack/benign-steps"] for t in other] != switches


def test_mistakes_are_said_in_a_sentence(llama: PreTrainedModel) -> None:
    for bad in ("", "1e-5;2e-5", "fast", "-1", "nan"):
        with pytest.raises(UserError, match="inner_rates takes numbers"):
            Tar(inner_rates=bad)
    with pytest.raises(UserError, match="nothing is measured"):
        Tar(inner_steps=2)
    with pytest.raises(UserError, match="call `prepare` first"):
        Tar().step(llama, batch())
    Memory.of(llama).keep(llama)
    with pytest.raises(UserError, match="draws further minibatches"):
        Tar().step(llama, batch())
