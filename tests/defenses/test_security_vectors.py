"""Security vectors: what is frozen stays, off is off, B = 0 is fine-tuning, dropped it guards nothing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hosted import points, run, saved, stopped_and_resumed
from made_batches import batch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from immunelab import corpus
from immunelab.attacks.drop_vector import DropVector
from immunelab.attacks.harmful_sft import HarmfulSft
from immunelab.attacks.lora_sft import LoraSft
from immunelab.defenses.security_vectors import SecurityVectors, compared
from immunelab.errors import UserError
from immunelab.method import Batch, Memory
from immunelab.training import checkpoints, loop
from immunelab.training.losses import forward, loss
from immunelab.training.vectors import Vector

LEARN = SecurityVectors(learning_rate=2e-2, steps=250, warmup=0.05, compare=False)
TINY: dict[str, Any] = {"learning_rate": 1e-3, "steps": 4, "batch_size": 4, "samples": 12}


def learned(model: PreTrainedModel) -> tuple[Vector, PreTrainedModel]:
    data = batch()
    prepared = LEARN.prepare(model, batch)
    list(loop.updates(prepared, LEARN, lambda i: data))
    kept = LEARN.kept(prepared)
    return Vector.of(kept), LEARN.after(prepared)


@pytest.mark.slow
def test_a_learned_vector_leaves_nothing_harmful_to_learn(llama: PreTrainedModel) -> None:
    llama.lm_head.weight.data.mul_(40)  # as made, its logits are too small to be sure of any token
    before = {name: p.detach().clone() for name, p in llama.named_parameters()}
    data = batch()
    assert data.harmful
    with torch.no_grad():
        plain = forward(llama, data.harmful)[0]
    vector, model = learned(llama)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())  # phase 1 leaves the base alone
    with torch.no_grad():
        assert torch.equal(forward(model, data.harmful)[0], plain)  # off is off
        with vector.acting(vector.places(model)):
            assert float(loss(model, data.harmful)) <= 0.1
    ratios = compared(model, vector, {"harmful": data.harmful})
    assert ratios["ratio/harmful-on-off"] <= 0.1


def test_a_vector_of_zeros_is_plain_fine_tuning(llama: PreTrainedModel) -> None:
    data = Batch(user=batch().harmful)
    HarmfulSft().step(llama, data)
    wanted = [p.grad.clone() for p in llama.parameters() if p.grad is not None]
    vector = Vector.fresh(llama, rank=4, alpha=8, targets="all-linear")
    SecurityVectors().during(llama, Memory(vector.tensors()), HarmfulSft().step)(llama, data)
    assert all(torch.equal(a, p.grad) for a, p in zip(wanted, llama.parameters(), strict=True) if p.grad is not None)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_it_is_the_adapter_of_peft(kind: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    rows = batch().harmful
    assert rows
    vector = Vector.fresh(model, rank=4, alpha=8, targets="all-linear")
    torch.nn.init.normal_(vector.b[0], std=0.1)
    with torch.no_grad(), vector.acting(vector.places(model)):
        mine = forward(model, rows)[0]
    adapted = LoraSft(rank=4, alpha=8, targets="all-linear").prepare(model, batch)
    for path, a, b in zip(vector.paths, vector.a, vector.b, strict=True):
        layer = adapted.get_submodule(f"base_model.model.{path}")
        layer.lora_A["default"].weight.data.copy_(a)  # type: ignore[index,union-attr]
        layer.lora_B["default"].weight.data.copy_(b)  # type: ignore[index,union-attr]
    with torch.no_grad():
        assert torch.allclose(forward(adapted, rows)[0], mine, atol=1e-5)


def test_the_divergence_keeps_benign_behavior(llama: PreTrainedModel) -> None:
    data = batch()
    prepared = SecurityVectors(mu=1.0).prepare(llama, batch)
    for b in prepared.security_vector.b:
        torch.nn.init.normal_(b, std=0.5)
    with_mu = SecurityVectors(mu=1.0).step(prepared, data)
    assert with_mu["loss/total"] > with_mu["loss/harmful"] + 1e-4


def test_the_provider_acts_for_customers_and_not_for_those_with_the_weights(home: Path, tiny_world: Path) -> None:
    first = load_file(Path(corpus.load(str(tiny_world)).model) / "model.safetensors")
    guard = run(home, tiny_world, "immunize", SecurityVectors(**TINY))
    plain = load_file(saved(guard).path / "model.safetensors")
    assert set(plain) == set(first)
    assert all(torch.equal(plain[name], tensor) for name, tensor in first.items())
    vector = (saved(guard).path / checkpoints.KEPT).read_bytes()
    source = f"run:{guard.run_id}"
    runs = {
        "user": run(home, tiny_world, "attack", HarmfulSft(**TINY), source),
        "lora": run(home, tiny_world, "attack", LoraSft(**TINY, targets="all-linear"), source),
        "drop": run(home, tiny_world, "attack", DropVector(**TINY), source),
        "bare": run(home, tiny_world, "attack", HarmfulSft(**TINY)),
    }
    told = {n: '"provider"' in (f.path / "journal.jsonl").read_text(encoding="utf-8") for n, f in runs.items()}
    assert told == {"user": True, "lora": True, "drop": False, "bare": False}
    ended = {n: load_file(saved(f).path / "model.safetensors") for n, f in runs.items()}
    assert all(set(weights) == set(first) for weights in ended.values())
    assert all(torch.equal(ended["drop"][k], v) for k, v in ended["bare"].items())  # the undefended model's fate
    assert any(not torch.equal(ended["user"][k], v) for k, v in ended["bare"].items())
    assert (saved(guard).path / checkpoints.KEPT).read_bytes() == vector  # phase 2 leaves the vector alone


def test_training_the_vector_is_resumed_bit_for_bit(home: Path, tiny_world: Path) -> None:
    whole = run(home, tiny_world, "immunize", dataclasses.replace(SecurityVectors(**TINY), steps=5))
    folder = stopped_and_resumed(home, whole.spec(), 2)
    mine, other = (load_file(saved(f).path / checkpoints.KEPT) for f in (folder, whole))
    assert all(torch.equal(mine[name], tensor) for name, tensor in other.items())
    assert [step for step, _ in points(folder)] == [1, 2, 3, 4, 5]


def test_a_vector_for_another_model_and_a_lost_one_are_said(
    llama: PreTrainedModel, gpt2: PreTrainedModel, home: Path, tiny_world: Path
) -> None:
    vector = Vector.fresh(llama, rank=2, alpha=2, targets="q_proj")
    with pytest.raises(UserError, match="for another model: GPT2LMHeadModel has no"):
        vector.places(gpt2)
    with pytest.raises(UserError, match="no security vector"):
        SecurityVectors().step(llama, batch())
    guard = run(home, tiny_world, "immunize", SecurityVectors(**TINY))
    path = saved(guard).path
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["files"][checkpoints.KEPT]
    (path / "manifest.json").write_text(json.dumps(manifest))
    (path / checkpoints.KEPT).unlink()
    with pytest.raises(UserError, match=r"has no provider\.safetensors"):
        run(home, tiny_world, "attack", HarmfulSft(**TINY), f"run:{guard.run_id}")
