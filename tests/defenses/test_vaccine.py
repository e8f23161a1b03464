"""Vaccine and T-Vaccine: the shift has its length and its direction, and each becomes another method in its limit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from made_batches import batch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from immunelab.defenses.extra_safety_sft import ExtraSafetySft
from immunelab.defenses.t_vaccine import TVaccine
from immunelab.defenses.vaccine import Vaccine
from immunelab.errors import UserError
from immunelab.method import Memory, Trained
from immunelab.training import chance, loop, sublayers
from immunelab.training import gradients as g
from immunelab.training.losses import Scored, loss
from immunelab.training.perturbation import sensitivity


def train(model: PreTrainedModel, method: Trained) -> None:
    list(loop.updates(model, method, batch))


def test_without_radius_three_steps_are_fine_tuning(llama: PreTrainedModel) -> None:
    other = copy.deepcopy(llama)
    train(llama, Vaccine(rho=0.0, learning_rate=1e-2, steps=3))
    train(other, ExtraSafetySft(learning_rate=1e-2, steps=3))
    assert all(torch.equal(a, b) for a, b in zip(llama.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_shift_is_a_constant_along_the_gradient_of_the_outputs(kind: str, request: pytest.FixtureRequest) -> None:
    """The direction is that of autograd with ε_l written into the attention's own weights: a bias of each entry."""
    model, rows = request.getfixturevalue(kind), batch().refusal
    assert rows
    traced = Vaccine(rho=0.7).step(model, batch())
    found = [p.grad.clone() for p in model.parameters()]
    modules = sublayers.attentions(model)
    before, q = sensitivity(model, modules, Scored(rows))
    length = torch.cat([x.flatten() for x in q]).norm()
    shift = [0.7 * x / (length + 1e-7) for x in q]
    assert traced["perturbation/norm"] == pytest.approx(0.7 * float(length / (length + 1e-7)), rel=1e-5)
    assert traced["loss/refusal"] == pytest.approx(before)
    forwards = [module.forward for module in modules]
    for module, forward, by in zip(modules, forwards, shift, strict=True):
        module.forward = lambda *a, forward=forward, by=by, **k: (forward(*a, **k)[0] + by, None)
    value = loss(model, rows)
    wanted = g.gradient(value, g.trainable(model))
    assert traced["loss/total"] == pytest.approx(float(value.detach()), rel=1e-5)
    assert float(g.cosine(found, wanted)) == pytest.approx(1, abs=1e-5)
    assert float(g.norm(found)) == pytest.approx(float(g.norm(wanted)), rel=1e-5)


def test_the_first_order_gain_tends_to_the_radius(gpt2: PreTrainedModel) -> None:
    model, rows = gpt2.double(), batch().refusal
    assert rows
    length = float(g.norm(sensitivity(model, sublayers.attentions(model), Scored(rows))[1]))
    ratios = []
    for rho in (1e-1, 1e-2, 1e-3):
        traced = Vaccine(rho=rho).step(model, batch())
        ratios.append((traced["loss/perturbed"] - traced["loss/refusal"]) / (rho * length))
    errors = [abs(1 - r) for r in ratios]
    assert errors[0] > errors[1] > errors[2]
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.2)
    assert errors[2] < 5e-3


def test_q_is_the_derivative_with_respect_to_an_output(gpt2: PreTrainedModel) -> None:
    """By central differences in one entry of each layer's output."""
    model, rows = gpt2.double(), batch().refusal
    assert rows
    modules = sublayers.attentions(model)
    q = sensitivity(model, modules, Scored(rows))[1]
    for layer in range(2):
        values = []
        for sign in (1, -1):
            by = [torch.zeros_like(x) for x in q]
            by[layer][1, 6, 3] = sign * 1e-5
            with sublayers.shifting(modules, by):
                values.append(float(loss(model, rows).detach()))
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(float(q[layer][1, 6, 3]), rel=1e-5)


@pytest.mark.parametrize(("kind", "norm"), [("random", 0.5), ("gaussian", (0.5 * 4 * 14 * 32 * 2) ** 0.5)])
def test_the_controls_have_their_size_and_repeat(kind: Any, norm: float, llama: PreTrainedModel) -> None:
    """Of norm ρ, or of variance ρ in each of 4 rows × 14 tokens × 32 dimensions × 2 layers."""
    traced = Vaccine(rho=0.5, perturbation=kind).step(llama, batch())
    assert traced["perturbation/norm"] == pytest.approx(norm, rel=1e-5 if kind == "random" else 0.05)
    assert traced["loss/refusal"] != traced["loss/perturbed"]
    torch.randn(9)  # what something else draws changes nothing
    assert Vaccine(rho=0.5, perturbation=kind).step(llama, batch()) == traced
    worst = Vaccine(rho=0.5).step(llama, batch())
    assert kind == "gaussian" or worst["loss/perturbed"] > traced["loss/perturbed"]


def test_other_layouts_are_found_and_unknown_ones_refused(llama: PreTrainedModel) -> None:
    sizes: dict[str, Any] = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    qwen = Qwen2ForCausalLM(Qwen2Config(**sizes, num_attention_heads=2, num_key_value_heads=1))
    neox = GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, num_attention_heads=2))
    for model in (qwen, neox):
        assert len(sublayers.attentions(model)) == len(sublayers.mlps(model)) == 3
        assert Vaccine().step(model, batch())["perturbation/norm"] == pytest.approx(2, rel=1e-3)
    layer = llama.model.layers[1]
    layer.attend = layer.self_attn
    del layer.self_attn
    with pytest.raises(
        UserError, match="needs the attention module of each layer, and of LlamaForCausalLM's 2 layers 1"
    ):
        Vaccine().step(llama, batch())


def test_all_layers_are_vaccine_on_the_same_weights(llama: PreTrainedModel) -> None:
    other = copy.deepcopy(llama)
    targeted = TVaccine(layers=2, rho=0.7, learning_rate=1e-2, steps=3)
    train(targeted.prepare(llama, batch), targeted)
    for name, p in other.named_parameters():
        p.requires_grad_(".layers." in name)
    train(other, Vaccine(rho=0.7, learning_rate=1e-2, steps=3))
    assert all(torch.equal(a, b) for a, b in zip(llama.parameters(), other.parameters(), strict=True))


def deep() -> PreTrainedModel:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 5}
    return Qwen2ForCausalLM(Qwen2Config(**sizes, num_attention_heads=2, num_key_value_heads=1))


@pytest.mark.parametrize(("accumulation", "retain"), [(1, 0.0), (2, 1.0)])
def test_within_a_block_all_other_layers_keep_their_bits(accumulation: int, retain: float) -> None:
    model = deep()
    method = TVaccine(
        layers=2,
        draw_every=3,
        rank_every=6,
        learning_rate=1e-2,
        steps=12,
        weight_decay=0.1,
        warmup=0,
        accumulation=accumulation,
        retain=retain,
        schedule="constant",
    )
    drawn: list[tuple[int, ...]] = []
    before = copy.deepcopy(model.state_dict())
    for _, scalars in loop.updates(method.prepare(model, batch), method, batch):
        shares = [scalars[f"layers/share/layer/{i}"] for i in range(5)]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        drawn.append(tuple(i for i in range(5) if scalars[f"layers/drawn/layer/{i}"]))
        assert len(drawn[-1]) == 2
        now = copy.deepcopy(model.state_dict())
        for name, tensor in now.items():
            moved = any(f".layers.{i}." in name for i in drawn[-1])
            assert torch.equal(tensor, before[name]) != moved, name
        before = now
    blocks = [set(drawn[i : i + 3]) for i in range(0, 12, 3)]
    assert all(len(block) == 1 for block in blocks)
    assert len({next(iter(block)) for block in blocks}) > 1


def test_the_ranking_is_the_harmful_sensitivity_and_the_draw_follows_it() -> None:
    model, data = deep(), batch()
    assert data.harmful
    q = sensitivity(model, sublayers.attentions(model), Scored(data.harmful))[1]
    lengths = torch.stack([x.norm() for x in q])
    method = TVaccine(layers=1, draw_every=1, rank_every=10_000)
    prepared = method.prepare(model, batch)
    counts = torch.zeros(5)
    for i in range(300):
        traced, drawn = method.drawn(prepared, data.harmful)
        if i == 0:
            torch.testing.assert_close(traced, lengths / lengths.sum())
            Memory.of(prepared).tensors["shares"].copy_(torch.tensor([0.5, 0.0, 0.3, 0.2, 0.0]))
            continue
        counts[drawn] += 1
    assert counts[1] == counts[4] == 0
    torch.testing.assert_close(counts / 299, torch.tensor([0.5, 0.0, 0.3, 0.2, 0.0]), atol=0.08, rtol=0)
    assert chance.seed(3) != chance.seed(4)


def test_without_prepare_it_says_so(llama: PreTrainedModel) -> None:
    with pytest.raises(UserError, match="call `prepare` first"):
        TVaccine().step(llama, batch())
