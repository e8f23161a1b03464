"""Every trained method under every precision and saving: its direction is that of fp32, up to the rounding of that."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from typing import Any

import pytest
import torch
from made_batches import batch
from nearness import relative
from registered import TRAINED, ready
from transformers import PreTrainedModel

from immunelab.method import Memory, Step, Trained, get
from immunelab.method.knobs import knobs
from immunelab.training import gradients as g
from immunelab.training import loop

SAME: dict[str, dict[str, Any]] = {
    "recompute": {"recompute": True},
    "loss_chunk": {"loss_chunk": 3},
    "accumulation": {"accumulation": 2},
}
ADAPTED = [(kind, name) for kind, name in TRAINED if "rank" in {k.name for k in knobs(get(kind, name))}]
ROUNDED = 0.1  # of a direction, in bf16: measured up to 0.05 on these models; a term that is off is 1


def direction(method: Trained, model: PreTrainedModel, by: Step | None = None, **changed: Any) -> list[torch.Tensor]:
    """What the loop steps along, all of one minibatch, as float32; `by` stands in for the method's own step."""
    configured = dataclasses.replace(method, steps=1, optimizer="sgd", learning_rate=0.0, **changed)
    next(iter(loop.updates(model, configured, lambda index: batch(), direction=by)))
    return [torch.zeros_like(p).float() if p.grad is None else p.grad.float().clone() for p in g.trainable(model)]


@pytest.mark.slow
@pytest.mark.parametrize("how", [*SAME, "eager"])
@pytest.mark.parametrize(("kind", "name"), TRAINED)
def test_what_saves_memory_or_computes_otherwise_is_the_same_direction(
    kind: Any, name: str, how: str, llama: PreTrainedModel
) -> None:
    llama.double()  # where only the order of additions differs, nothing is left but that
    plain, model = ready(kind, name, llama)
    wanted = direction(plain, model)
    if how == "eager":
        model.set_attn_implementation("eager")
    assert relative(direction(plain, model, **SAME.get(how, {})), wanted) < 1e-5
    assert any(float(part.abs().max()) > 0 for part in wanted)


@pytest.mark.parametrize(("kind", "name", "rank"), [(*one, 0) for one in TRAINED] + [(*one, 8) for one in ADAPTED])
def test_bf16_rounds_a_direction_and_does_not_change_it(
    kind: Any, name: str, rank: int, llama: PreTrainedModel
) -> None:
    more = {"rank": rank, "targets": "all-linear"} if rank else {}
    plain = dataclasses.replace(ready(kind, name, copy.deepcopy(llama))[0], **more)
    model = plain.prepare(llama, batch)
    if rank:
        for key, weights in model.named_parameters():  # an adapter that starts at zero has half of its gradients zero
            if "lora_B" in key:
                torch.nn.init.normal_(weights.data, std=0.02, generator=torch.Generator().manual_seed(0))
    wanted = direction(plain, model)
    assert relative(direction(plain, model, precision="bf16-autocast"), wanted) < ROUNDED


@pytest.mark.parametrize(("kind", "name"), TRAINED)
def test_weights_in_bf16_round_a_direction_or_are_refused(kind: Any, name: str, llama: PreTrainedModel) -> None:
    torch.manual_seed(0)  # adapters start at random
    plain, model = ready(kind, name, copy.deepcopy(llama))
    if plain.in_fp32():
        assert "fp32" in plain.in_fp32()
        return
    wanted = direction(plain, model)
    torch.manual_seed(0)
    rounded = plain.prepare(llama.bfloat16(), batch)
    assert relative(direction(plain, rounded), wanted) < ROUNDED


# What a method adds to plain training, and the settings without it.
TERMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "booster": ({"alpha": 0.002, "strength": 5.0}, {"strength": 0.0}),
    "ctrap": ({"alpha": 0.002, "strength": 5.0}, {"strength": 0.0}),
    "tar": ({"inner_rates": "3e-3", "inner_steps": 4, "every": 2, "strength": 4.0}, {"strength": 0.0}),
    "vaccine": ({"rho": 0.5}, {"rho": 0.0}),
    "t-vaccine": ({"rho": 0.5}, {"rho": 0.0}),
    "seam": ({"beta": 1.0}, {"beta": 0.0}),
}
EXACT = {"booster", "ctrap", "seam"}  # gradients at weights a little apart, taken in fp32 whatever the precision


def term(name: str, model: PreTrainedModel, precision: str) -> list[torch.Tensor]:
    """A method's own term alone: the direction with it minus the direction without."""
    found = []
    for settings in TERMS[name]:
        configured = get("defense", name)(**TERMS[name][0] | settings, precision=precision)
        found.append(direction(configured, configured.prepare(copy.deepcopy(model), batch)))
    return [a - b for a, b in zip(*found, strict=True)]


def panaceas_term(model: PreTrainedModel, precision: str) -> list[torch.Tensor]:
    """Panacea's, which acts in a user's fine-tuning: λ times what its perturbation does to the harmful gradient."""
    found = []
    for strength in (1.0, 0.0):
        there = copy.deepcopy(model)
        memory = Memory(rows=lambda number: batch())
        user = get("attack", "harmful-sft")()
        guarded = get("defense", "panacea")(rho=0.7, strength=strength).during(there, memory, user.step)
        found.append(direction(user, there, guarded, precision=precision))
    return [a - b for a, b in zip(*found, strict=True)]


@pytest.mark.parametrize("name", TERMS)
def test_a_methods_own_term_survives_bf16(name: str, llama: PreTrainedModel) -> None:
    wanted = term(name, llama, "fp32")
    assert relative(term(name, llama, "bf16-autocast"), wanted) < (1e-3 if name in EXACT else 0.1)


def test_panaceas_term_survives_bf16(llama: PreTrainedModel) -> None:
    wanted = panaceas_term(llama, "fp32")
    assert float(g.norm(wanted)) > 0.1
    assert relative(panaceas_term(llama, "bf16-autocast"), wanted) < 1e-3


def test_in_autocast_a_difference_of_gradients_would_be_lost(
    llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: Booster's at α = 0.002 is noise then."""
    monkeypatch.setattr(g, "full_precision", lambda model: contextlib.nullcontext())
    assert relative(term("booster", llama, "bf16-autocast"), term("booster", llama, "fp32")) > 0.35


def test_with_autocasts_cache_tars_term_would_be_lost(llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: weights that are changed in place stand in the cache as they were."""
    autocast = torch.autocast

    def cached(device: str, **options: Any) -> Any:
        return autocast(device, **options | {"cache_enabled": True})

    monkeypatch.setattr(torch, "autocast", cached)
    assert relative(term("tar", llama, "bf16-autocast"), term("tar", llama, "fp32")) > 0.35
