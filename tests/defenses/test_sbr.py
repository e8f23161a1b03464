"""SBR: the anchors' hidden states, the pull back to them, and that it is fine-tuning without its weight."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from made_batches import batch
from nearness import relative
from transformers import PreTrainedModel

from immunelab.attacks.harmful_sft import HarmfulSft
from immunelab.attacks.lora_sft import LoraSft
from immunelab.defenses.sbr import REFERENCE, Sbr, last_of_prompts
from immunelab.method import Batch, Memory
from immunelab.training import gradients as g
from immunelab.training import loop
from immunelab.training.losses import IGNORED, loss

USER = HarmfulSft(learning_rate=1e-2, steps=6, optimizer="sgd", schedule="constant", warmup=0)


def fed(number: int) -> Batch:
    return batch(number)._replace(number=number)


def trained(model: PreTrainedModel, sbr: Sbr, memory: Memory, user: Any = USER) -> list[dict[str, float]]:
    return [s for _, s in loop.updates(model, user, fed, direction=sbr.during(model, memory, user.step))]


def written_out(model: PreTrainedModel, reference: torch.Tensor) -> torch.Tensor:
    """Mean over anchors and width of the squared distance; each prompt is read alone, up to where its answer begins."""
    rows = fed(0).harmful
    assert rows
    found = []
    for ids, labels, mask in zip(rows.input_ids, rows.labels, rows.attention_mask, strict=True):
        prompt = ids[(labels == IGNORED) & (mask == 1)].unsqueeze(0)
        out = model(input_ids=prompt, output_hidden_states=True, use_cache=False)
        found.append(out.hidden_states[-1][0, -1])
    return ((torch.stack(found) - reference) ** 2).mean()


def test_an_anchor_is_the_last_token_of_a_prompt(llama: PreTrainedModel) -> None:
    rows = fed(0).harmful
    assert rows
    zero = torch.zeros(len(rows.input_ids), llama.config.hidden_size)
    own = last_of_prompts(llama, rows).square().mean()
    assert float(own.detach()) == pytest.approx(float(written_out(llama, zero).detach()), rel=1e-5)


def test_the_direction_is_the_users_and_the_pull(llama: PreTrainedModel) -> None:
    model = llama.double()
    reference = torch.randn(len(batch().harmful.input_ids), 32, dtype=torch.float64)  # type: ignore[union-attr]
    memory = Memory({REFERENCE: reference.float()}, fed)
    data = fed(3)
    assert data.user
    traced = Sbr(strength=7.0).during(model, memory, USER.step)(model, data)
    found = [p.grad.clone() for p in g.trainable(model) if p.grad is not None]
    weights = g.trainable(model)
    distance = written_out(model, reference.float().double())
    parts = (1.0, g.gradient(loss(model, data.user), weights)), (7.0, g.gradient(distance, weights))
    assert relative(found, g.combine(*parts)) < 1e-5  # the hidden states are compared in fp32
    assert traced["sbr/distance"] == pytest.approx(float(distance.detach()), rel=1e-5)


def test_without_its_weight_it_is_fine_tuning_bit_for_bit(llama: PreTrainedModel) -> None:
    other = copy.deepcopy(llama)
    trained(llama, Sbr(strength=0.0), Memory(rows=fed))
    list(loop.updates(other, USER, fed))
    assert all(torch.equal(a, b) for a, b in zip(llama.parameters(), other.parameters(), strict=True))


def test_it_holds_the_anchors_where_they_were(llama: PreTrainedModel) -> None:
    free, held = copy.deepcopy(llama), llama
    memories = [Memory(rows=fed), Memory(rows=fed)]
    longer = dataclasses.replace(USER, steps=40)
    loose = trained(free, Sbr(strength=0.0), memories[0], longer)
    tight = trained(held, Sbr(strength=1.0), memories[1], longer)
    assert torch.equal(memories[0].tensors[REFERENCE], memories[1].tensors[REFERENCE])
    assert loose[0]["sbr/distance"] == tight[0]["sbr/distance"] == 0.0  # the reference is the model as it was given
    assert tight[-1]["sbr/distance"] < loose[-1]["sbr/distance"] / 3


def test_a_run_that_goes_on_keeps_its_reference(llama: PreTrainedModel) -> None:
    """The reference is in the provider's memory, which checkpoints keep: it is not taken anew from trained weights."""
    memory = Memory(rows=fed)
    trained(llama, Sbr(), memory)
    kept = memory.tensors[REFERENCE].clone()
    trained(llama, Sbr(), memory)
    assert torch.equal(memory.tensors[REFERENCE], kept)


def test_it_acts_on_an_adapter_alone(llama: PreTrainedModel) -> None:
    user = LoraSft(learning_rate=1e-2, steps=4, targets="all-linear", rank=2)
    before = {n: p.detach().clone() for n, p in llama.named_parameters()}
    model = user.prepare(llama, fed)
    found = [s for _, s in loop.updates(model, user, fed, direction=Sbr().during(model, Memory(rows=fed), user.step))]
    assert found[0]["sbr/distance"] == 0.0  # a fresh adapter changes nothing
    assert found[-1]["sbr/distance"] > 0
    for name, p in model.named_parameters():
        if not p.requires_grad:
            assert torch.equal(p, before[name.replace("base_model.model.", "").replace(".base_layer", "")])
