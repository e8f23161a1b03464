"""Laws of the gradient algebra."""

from __future__ import annotations

import math

import pytest
import torch
from made_batches import tokens
from transformers import PreTrainedModel

from immunelab.errors import UserError
from immunelab.training import gradients as g
from immunelab.training.losses import loss


def random_gradient(seed: int) -> g.Gradient:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in ((3, 4), (5,), (2, 2, 2))]


def test_norms_dots_and_cosines_are_those_of_the_flattened_vectors() -> None:
    a, b = random_gradient(1), random_gradient(2)
    flat_a, flat_b = (torch.cat([x.flatten() for x in each]).double() for each in (a, b))
    assert float(g.dot(a, b)) == pytest.approx(float(flat_a @ flat_b), rel=1e-5)
    assert float(g.norm(a)) == pytest.approx(float(flat_a.norm()), rel=1e-5)
    assert float(g.cosine(a, b)) == pytest.approx(float(torch.cosine_similarity(flat_a, flat_b, dim=0)), rel=1e-5)
    assert float(g.cosine(a, a)) == pytest.approx(1)
    assert float(g.norm(g.unit(a))) == pytest.approx(1, rel=1e-5)


def test_combine_scale_and_clip_leave_their_arguments_alone() -> None:
    a, b = random_gradient(1), random_gradient(2)
    before = [x.clone() for x in a]
    combined = g.combine((2.0, a), (-0.5, b))
    for x, y, z in zip(combined, a, b, strict=True):
        torch.testing.assert_close(x, 2 * y - 0.5 * z)
    assert float(g.norm(g.clipped(a, 0.25))) == pytest.approx(0.25, rel=1e-5)
    assert g.clipped(a, 0) is a
    assert g.clipped(a, 1e6) is a
    assert all(torch.equal(x, y) for x, y in zip(a, before, strict=True))


def test_a_zero_gradient_has_no_direction() -> None:
    with pytest.raises(UserError, match="exactly zero"):
        g.unit([torch.zeros(3)])


def test_gradient_equals_backward_and_leaves_grad_alone(llama: PreTrainedModel) -> None:
    weights = g.trainable(llama)
    mine = g.gradient(loss(llama, tokens(1)), weights)
    assert all(w.grad is None for w in weights)
    loss(llama, tokens(1)).backward()
    assert all(torch.equal(x, w.grad) for x, w in zip(mine, weights, strict=True) if w.grad is not None)


def test_parameters_that_do_not_matter_have_a_zero_gradient(llama: PreTrainedModel) -> None:
    llama.register_parameter("unused", torch.nn.Parameter(torch.ones(3)))
    found = g.gradient(loss(llama, tokens(1)), g.trainable(llama))
    assert sum(bool((x == 0).all()) for x in found) == 1


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("by", [1e-3, 3.0])
def test_shifted_weights_come_back_bit_for_bit(llama: PreTrainedModel, by: float, fails: bool) -> None:
    weights = g.trainable(llama)
    before = [w.detach().clone() for w in weights]
    direction = [torch.randn_like(w) for w in weights]

    def shift() -> None:
        with g.shifted(weights, direction, by=by) as displacement:
            assert displacement == pytest.approx(1, abs=1e-3)
            moved = [w.detach() - b for w, b in zip(weights, before, strict=True)]
            assert float(g.norm(moved)) == pytest.approx(by * float(g.norm(direction)), rel=1e-3)
            if fails:
                raise KeyboardInterrupt

    if fails:
        with pytest.raises(KeyboardInterrupt):
            shift()
    else:
        shift()
    assert all(torch.equal(w, b) for w, b in zip(weights, before, strict=True))


def test_the_displacement_shows_a_shift_that_rounding_swallows(llama: PreTrainedModel) -> None:
    weights = g.trainable(llama)
    with g.cast(weights, torch.bfloat16), g.shifted(weights, [torch.randn_like(w) for w in weights], by=1e-6) as moved:
        assert moved < 0.5
    assert all(w.dtype == torch.float32 for w in weights)


def test_layers_are_read_from_parameter_names(llama: PreTrainedModel, gpt2: PreTrainedModel) -> None:
    for model in (llama, gpt2):
        layers = g.layer_of(model)
        assert {x for x in layers if x is not None} == {0, 1}
        ones = torch.ones(len(layers))
        assert g.by_layer(model, ones) == [float(layers.count(0)), float(layers.count(1))]
        assert layers.count(None) >= 2  # embeddings and final norm


def test_no_trainable_parameter_is_an_error(llama: PreTrainedModel) -> None:
    llama.requires_grad_(False)
    with pytest.raises(UserError, match="no trainable parameter"):
        g.trainable(llama)
    assert math.isfinite(float(loss(llama, tokens(1))))


def test_products_of_many_numbers_are_exact_to_nine_places() -> None:
    draw = torch.Generator().manual_seed(3)
    a, b = ([torch.randn(n, generator=draw) for n in (3, 1024, 700_001)] for _ in range(2))
    apart = [float((x.double() * y.double()).sum()) for x, y in zip(a, b, strict=True)]
    scale = float(g.norm(a)) * float(g.norm(b))
    assert g.dots(a, b).dtype == torch.float64
    assert all(abs(float(found) - exact) < 1e-9 * scale for found, exact in zip(g.dots(a, b), apart, strict=True))
    exact = sum(float(x.double().square().sum()) for x in a) ** 0.5
    assert float(g.norm(a)) == pytest.approx(exact, rel=1e-8)


@pytest.mark.parametrize(("by", "seen"), [(1.0, True), (1e-5, False)])
def test_a_shift_is_measured_as_the_passes_see_it(llama: PreTrainedModel, by: float, seen: bool) -> None:
    """A shift below bf16's rounding is whole in fp32 weights, and autocast's passes see something else."""
    weights = g.trainable(llama)
    direction = [torch.randn_like(w) for w in weights]
    with g.shifted(weights, direction, by=by) as moved:
        assert moved == pytest.approx(1, rel=0.02)
    mixed = torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False)
    with mixed, g.shifted(weights, direction, by=by) as moved:
        assert (moved == pytest.approx(1, rel=0.02)) == seen
