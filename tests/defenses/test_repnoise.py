"""RepNoise against its formula written out, its limits, and the promise that its noise repeats."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from made_batches import batch
from nearness import ROUNDED, relative
from torch import Tensor
from transformers import OPTConfig, OPTForCausalLM, PreTrainedModel

from immunelab.defenses.adversarial_loss import AdversarialLoss
from immunelab.defenses.extra_safety_sft import ExtraSafetySft
from immunelab.defenses.repnoise import RepNoise
from immunelab.defenses.seam import Seam
from immunelab.errors import UserError
from immunelab.method import Batch, Defense, Tokens
from immunelab.training import chance, sublayers
from immunelab.training import gradients as g
from immunelab.training.losses import differing, forward, mmd


def direction(method: Defense, model: PreTrainedModel, data: Batch | None = None) -> g.Gradient:
    method.step(model, data or batch())
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def written_out(x: Tensor, y: Tensor) -> float:
    """MMD² by a double loop over pairs, in Python's floats."""
    rows = [[float(v) for v in row] for row in torch.cat([x, y])]

    def apart(a: list[float], b: list[float]) -> float:
        return sum((p - q) ** 2 for p, q in zip(a, b, strict=True))

    n, half = len(rows), len(x)
    width = sum(apart(a, b) for a in rows for b in rows) / (n * n - n) / 4

    def mean(first: list[list[float]], second: list[list[float]]) -> float:
        kernels = [sum(math.exp(-apart(a, b) / (width * 2**i)) for i in range(5)) for a in first for b in second]
        return sum(kernels) / len(kernels)

    xs, ys = rows[:half], rows[half:]
    return mean(xs, xs) + mean(ys, ys) - mean(xs, ys) - mean(ys, xs)


def test_the_distance_is_the_double_loop() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(4, 7, dtype=torch.float64), torch.randn(4, 7, dtype=torch.float64) * 0.3 + 1
    assert float(mmd(x, y)) == pytest.approx(written_out(x, y), rel=1e-10)
    assert float(mmd(x, y)) == pytest.approx(float(mmd(y, x)), rel=1e-12)
    assert float(mmd(x, y)) > 0.1
    assert float(mmd(x, x)) == pytest.approx(0, abs=1e-12)
    assert float(mmd(x, x[torch.tensor([2, 0, 3, 1])])) == pytest.approx(0, abs=1e-12)  # a sample has no order


def test_the_bandwidth_carries_no_gradient() -> None:
    """Differences at a fixed bandwidth are the derivative; scaling all rows changes nothing but through them."""
    torch.manual_seed(0)
    x, y = torch.randn(3, 4, dtype=torch.float64, requires_grad=True), torch.randn(3, 4, dtype=torch.float64)
    (found,) = torch.autograd.grad(mmd(x, y), x)
    rows = torch.cat([x, y]).detach()
    apart = torch.stack([torch.stack([((a - b) ** 2).sum() for b in rows]) for a in rows])
    width = apart.sum() / 30 / 4

    def fixed(x: Tensor) -> Tensor:
        rows = torch.cat([x, y])
        squared = ((rows[:, None] - rows[None]) ** 2).sum(-1)
        kernel = sum(torch.exp(-squared / (width * 2**i)) for i in range(5))
        assert isinstance(kernel, Tensor)
        return kernel[:3, :3].mean() + kernel[3:, 3:].mean() - kernel[:3, 3:].mean() - kernel[3:, :3].mean()

    (wanted,) = torch.autograd.grad(fixed(x), x)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("mask", ["official", "response"])
def test_without_noise_and_ascent_it_is_the_control(llama: PreTrainedModel, mask: Any) -> None:
    found = direction(RepNoise(alpha=0, beta=0, mask=mask), llama)
    assert all(torch.equal(a, b) for a, b in zip(found, direction(ExtraSafetySft(mask=mask), llama), strict=True))


@pytest.mark.parametrize("mask", ["official", "response"])
def test_without_noise_it_is_refusal_and_seams_ascent(llama: PreTrainedModel, mask: Any) -> None:
    found = direction(RepNoise(beta=0, mask=mask), llama)
    assert relative(found, direction(Seam(alpha=1, beta=0, ascent_weight=1, mask=mask), llama)) < ROUNDED
    layerwise = AdversarialLoss(alpha=1, ascent="layerwise", mask=mask)
    assert relative(found, direction(layerwise, llama)) < ROUNDED


@pytest.mark.parametrize(("kind", "path"), [("llama", "model.layers.{}.mlp"), ("gpt2", "transformer.h.{}.mlp")])
def test_the_noise_term_is_of_masked_mlp_outputs(kind: str, path: str, request: pytest.FixtureRequest) -> None:
    model, data = request.getfixturevalue(kind), batch()
    assert data.harmful
    assert data.refusal
    found: dict[int, Tensor] = {}
    handles = [
        model.get_submodule(path.format(i)).register_forward_hook(lambda m, a, out, i=i: found.update({i: out}))
        for i in range(2)
    ]
    forward(model, data.harmful)
    for handle in handles:
        handle.remove()
    generator = chance.generator(torch.device("cpu"), data.harmful)
    # The prompt has five tokens; behind it the authors' harmful text has a line break, and so is one token ahead.
    differ = data.harmful.attention_mask == 1
    differ[:, :4] = False
    differ[:, 5:-1] &= data.harmful.input_ids[:, 5:-1] != data.refusal.input_ids[:, 6:]
    differ[-1, 10] = True  # the last row's refusal has ended
    assert torch.equal(differ, differing(data.harmful, data.refusal)[0].tokens.labels != -100)
    wanted = 0.0
    for i in range(2):
        noise = torch.randn(found[i].shape, generator=generator)
        m = differ[:, :, None].expand_as(noise)
        wanted += written_out((found[i] * m).flatten(1), (noise * m).flatten(1)) / 2
    traced = RepNoise(beta=0.5).step(model, data)
    assert traced["loss/noise"] == pytest.approx(wanted, rel=1e-5)
    terms = traced["loss/refusal"] + 0.5 * traced["loss/noise"] + traced["loss/ascent"]
    assert traced["loss/total"] == pytest.approx(terms, rel=1e-5)


def test_noise_is_fresh_for_each_minibatch_and_repeats_with_the_seed(llama: PreTrainedModel) -> None:
    def drawn(rows: Tokens | None, seed: int, before: int = 0) -> Tensor:
        assert rows
        torch.manual_seed(seed)
        torch.randn(before)  # what an evaluation may draw
        return torch.randn(5, generator=chance.generator(torch.device("cpu"), rows))

    first = drawn(batch(0).harmful, 3)
    assert torch.equal(first, drawn(batch(0).harmful, 3, before=7))
    assert not torch.equal(first, drawn(batch(1).harmful, 3))
    assert not torch.equal(first, drawn(batch(0).harmful, 4))


def test_following_the_noise_term_lowers_it(llama: PreTrainedModel) -> None:
    """Only β: descending on the term brings the outputs nearer to that noise."""
    llama.model.layers[0].mlp.down_proj.weight.data.mul_(30)
    before = RepNoise(beta=1.0, alpha=0).step(llama, batch())["loss/noise"]
    for _ in range(20):
        RepNoise(beta=100.0, alpha=0).step(llama, batch())
        with torch.no_grad():
            for p in llama.parameters():
                p -= 1e-2 * p.grad
    assert RepNoise(beta=1.0, alpha=0).step(llama, batch())["loss/noise"] < before


def test_a_model_without_mlp_modules_is_refused_in_a_sentence() -> None:
    config = OPTConfig(
        vocab_size=97,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        word_embed_proj_dim=32,
        max_position_embeddings=64,
    )
    model = OPTForCausalLM(config)
    assert len(sublayers.attentions(model)) == 2
    with pytest.raises(UserError, match="needs the MLP module of each layer, and of OPTForCausalLM's 2 layers 0 have"):
        RepNoise().step(model, batch())
