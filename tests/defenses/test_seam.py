"""SEAM against independent oracles: double backward, written-out losses, identities."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from made_batches import batch, tokens
from nearness import ROUNDED, relative
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    GPTNeoXConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedModel,
    Qwen2Config,
)

from benchmarks import six_passes
from immunelab.defenses.seam import Seam
from immunelab.errors import UserError
from immunelab.method import Batch, Tokens
from immunelab.training import gradients as g

Maker = Callable[..., PreTrainedModel]
ONLY_COUPLING = {"ascent_weight": 0.0, "alpha": 0.0, "beta": 1.0}


def direction(model: PreTrainedModel, data: Batch, **knobs: object) -> g.Gradient:
    model.zero_grad()
    Seam(**knobs).step(model, data)  # type: ignore[arg-type]
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def plain_loss(model: PreTrainedModel, rows: Tokens) -> torch.Tensor:
    """Mean response cross-entropy by the library's own labels argument."""
    return model(input_ids=rows.input_ids, attention_mask=rows.attention_mask, labels=rows.labels).loss


def coupling_gradient(model: PreTrainedModel, data: Batch) -> list[torch.Tensor]:
    """∇cos(g_a, g_b) by double backward, written with nothing of the package."""
    parameters = list(model.parameters())
    assert data.harmful
    assert data.benign
    with sdpa_kernel(SDPBackend.MATH):
        flat = []
        for rows in (data.harmful, data.benign):
            grads = torch.autograd.grad(plain_loss(model, rows), parameters, create_graph=True)
            flat.append(torch.cat([x.flatten() for x in grads]))
        return list(torch.autograd.grad(F.cosine_similarity(flat[0], flat[1], dim=0), parameters))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_estimate_agrees_with_double_backward_in_fp32(kind: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    exact = coupling_gradient(model, batch())
    assert relative(direction(model, batch(), epsilon=1e-3, **ONLY_COUPLING), exact) <= 0.01
    assert relative(direction(model, batch(), estimator="exact", **ONLY_COUPLING), exact) <= 1e-4


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_estimate_agrees_with_double_backward_in_fp64(kind: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind).double()
    exact = coupling_gradient(model, batch())
    assert relative(direction(model, batch(), epsilon=1e-3, **ONLY_COUPLING), exact) <= 0.01


@pytest.mark.parametrize("ascent", ["layerwise", "final-logit"])
@pytest.mark.parametrize("mask", ["response", "official"])
def test_the_step_is_that_of_six_plain_passes_in_fp64(gpt2: PreTrainedModel, ascent: str, mask: str) -> None:
    """Six backward passes with a clone of everything, in float64, so that the order of additions does not matter."""
    knobs: dict[str, Any] = {"ascent": ascent, "mask": mask, "ascent_weight": 0.6, "alpha": 0.7, "beta": 0.5}
    model = gpt2.double()
    six_passes.step(model, batch(), Seam(**knobs, retain=0.3))
    wanted = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    assert relative(direction(model, batch(), **knobs, retain=0.3), wanted) < 1e-8


def test_error_falls_linearly_with_epsilon_in_fp64(gpt2: PreTrainedModel) -> None:
    """GPT-2 has no casts to fp32 inside (Llama's norm, softmax and rotary do), so fp64 is fp64 throughout."""
    model = gpt2.double()
    exact = coupling_gradient(model, batch())
    errors = [relative(direction(model, batch(), epsilon=e, **ONLY_COUPLING), exact) for e in (1e-2, 1e-3, 1e-4, 1e-5)]
    for larger, smaller in pairwise(errors):
        assert larger / smaller == pytest.approx(10, rel=0.15)


def test_swapping_the_two_directions_would_be_seen(gpt2: PreTrainedModel) -> None:
    """Negative control: exchanging the roles in the shifts, as a mistake could, is far from the exact gradient."""
    data = batch()
    assert data.harmful
    assert data.benign
    weights = g.trainable(gpt2)
    a, b = (g.gradient(plain_loss(gpt2, rows), weights) for rows in (data.harmful, data.benign))
    c, norm_a, norm_b = float(g.cosine(a, b)), float(g.norm(a)), float(g.norm(b))
    with g.shifted(weights, g.combine((1 / norm_a, a), (-c / norm_b, b)), by=1e-3):
        a2 = g.gradient(plain_loss(gpt2, data.harmful), weights)
    with g.shifted(weights, g.combine((1 / norm_b, b), (-c / norm_a, a)), by=1e-3):
        b2 = g.gradient(plain_loss(gpt2, data.benign), weights)
    swapped = g.combine((1e3 / norm_a, a2), (-1e3 / norm_a, a), (1e3 / norm_b, b2), (-1e3 / norm_b, b))
    assert relative(swapped, coupling_gradient(gpt2, data)) > 0.5


def ascent_by_hand(model: PreTrainedModel, norm: torch.nn.Module, rows: Tokens) -> torch.Tensor:
    """L_ul = −log(1 + S/|H|) written out from the hidden states that transformers returns."""
    out = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask, output_hidden_states=True)

    def ce(logits: torch.Tensor) -> torch.Tensor:
        log_p = logits.log_softmax(-1)
        terms = [
            -log_p[r, t - 1, rows.labels[r, t]]
            for r in range(rows.labels.shape[0])
            for t in range(1, rows.labels.shape[1])
            if rows.labels[r, t] != -100
        ]
        return torch.stack(terms).mean()

    head = model.get_output_embeddings()
    total = ce(out.logits) + sum(ce(head(norm(h))) for h in out.hidden_states)
    return -torch.log(1 + total / len(out.hidden_states))


@pytest.mark.parametrize(("kind", "norm"), [("llama", "model.norm"), ("gpt2", "transformer.ln_f")])
def test_ascent_is_what_hidden_states_say(kind: str, norm: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    rows = batch().harmful
    assert rows
    by_hand = ascent_by_hand(model, model.get_submodule(norm), rows)
    wanted = torch.autograd.grad(by_hand, list(model.parameters()))
    scalars = Seam(alpha=0, beta=0).step(model, batch())
    assert scalars["loss/ascent"] == pytest.approx(float(by_hand.detach()), rel=1e-5)
    found = [p.grad for p in model.parameters()]
    assert relative(found, list(wanted)) < ROUNDED  # β = 0, α = 0 is L_ul alone


def test_ascent_of_final_logits_alone_is_differentiated_by_the_chain_rule(llama: PreTrainedModel) -> None:
    rows = batch().harmful
    assert rows
    value = -torch.log(1 + plain_loss(llama, rows))
    wanted = torch.autograd.grad(value, list(llama.parameters()))
    scalars = Seam(alpha=0, beta=0, ascent="final-logit").step(llama, batch())
    assert scalars["loss/ascent"] == pytest.approx(float(value.detach()), rel=1e-5)
    assert relative([p.grad for p in llama.parameters() if p.grad is not None], list(wanted)) < ROUNDED


def test_uniform_logits_give_the_closed_form(llama: PreTrainedModel) -> None:
    torch.nn.init.zeros_(llama.lm_head.weight)
    layers, vocabulary = 2, 97
    scalars = Seam(ascent="layerwise", beta=0).step(llama, batch())
    wanted = -math.log(1 + math.log(vocabulary) * (layers + 2) / (layers + 1))
    assert scalars["loss/ascent"] == pytest.approx(wanted, rel=1e-5)


def test_without_coupling_the_update_is_ascent_and_refusals(llama: PreTrainedModel) -> None:
    data = batch()
    assert data.refusal
    alone = direction(llama, data, alpha=0.0, beta=0.0)
    refusals = torch.autograd.grad(plain_loss(llama, data.refusal), list(llama.parameters()))
    both = direction(llama, data, alpha=0.7, beta=0.0)
    assert relative(both, [x + 0.7 * y for x, y in zip(alone, refusals, strict=True)]) < ROUNDED


def test_terms_add_up_and_extensions_are_what_they_say(llama: PreTrainedModel) -> None:
    data = batch()
    assert data.benign
    rest = direction(llama, data, beta=0.0)
    pull = direction(llama, data, **ONLY_COUPLING)
    assert relative(direction(llama, data, beta=0.3), g.combine((1.0, rest), (0.3, pull))) < ROUNDED
    clipped = direction(llama, data, **{**ONLY_COUPLING, "coupling_clip": 0.01})
    assert float(g.norm(clipped)) == pytest.approx(0.01, rel=1e-5)
    retained = direction(llama, data, beta=0.0, retain=0.5)
    benign = torch.autograd.grad(plain_loss(llama, data.benign), list(llama.parameters()))
    assert relative(retained, g.combine((1.0, rest), (0.5, list(benign)))) < ROUNDED


def test_scaling_a_loss_by_a_power_of_two_changes_no_bit(
    gpt2: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = direction(gpt2, batch(), **ONLY_COUPLING)
    original = F.cross_entropy
    monkeypatch.setattr(F, "cross_entropy", lambda *args, **more: 4 * original(*args, **more))
    assert all(torch.equal(x, y) for x, y in zip(direction(gpt2, batch(), **ONLY_COUPLING), plain, strict=True))


def test_equal_batches_have_cosine_one_and_no_pull(llama: PreTrainedModel) -> None:
    rows = tokens(1)
    scalars = Seam(**ONLY_COUPLING).step(llama, Batch(harmful=rows, refusal=tokens(2), benign=rows))
    assert scalars["cosine/harmful-benign"] == pytest.approx(1, abs=1e-5)
    assert scalars["norm/coupling"] < 0.05 * Seam(**ONLY_COUPLING).step(llama, batch())["norm/coupling"]


@pytest.mark.parametrize("precision", ["fp32", "official-bf16"])
@pytest.mark.parametrize("estimator", ["finite-difference", "exact"])
def test_weights_are_left_bit_identical(llama: PreTrainedModel, estimator: str, precision: str) -> None:
    before = {k: v.clone() for k, v in llama.state_dict().items()}
    scalars = Seam(estimator=estimator, precision=precision).step(llama, batch())  # type: ignore[arg-type]
    after = llama.state_dict()
    assert all(torch.equal(after[k], v) and after[k].dtype == v.dtype for k, v in before.items())
    assert all(math.isfinite(v) for v in scalars.values())


def test_weights_are_left_bit_identical_when_an_exception_passes(
    llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {k: v.clone() for k, v in llama.state_dict().items()}
    calls = {"n": 0}
    original = F.cross_entropy

    def third_fails(*args: Any, **more: Any) -> torch.Tensor:
        calls["n"] += 1
        if calls["n"] == 3:
            moved = any(not torch.equal(v, before[k]) for k, v in llama.state_dict().items())
            assert moved, "the third pass is to happen at shifted weights"
            raise MemoryError
        return original(*args, **more)

    monkeypatch.setattr(F, "cross_entropy", third_fails)
    with pytest.raises(MemoryError):
        Seam(ascent="final-logit").step(llama, batch())
    assert all(torch.equal(llama.state_dict()[k], v) for k, v in before.items())


def test_bf16_swallows_the_shift_and_the_trace_says_so(llama: PreTrainedModel) -> None:
    assert Seam().step(llama, batch())["estimator/displacement"] == pytest.approx(1, abs=0.01)
    assert abs(Seam(precision="official-bf16").step(llama, batch())["estimator/displacement"] - 1) > 0.05


def test_dropout_does_not_enter_the_difference(gpt2: PreTrainedModel) -> None:
    for module in gpt2.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    wanted = direction(gpt2.eval(), batch(), **ONLY_COUPLING)
    found = direction(gpt2.train(), batch(), **ONLY_COUPLING)
    assert all(torch.equal(x, y) for x, y in zip(found, wanted, strict=True))
    assert gpt2.training


def test_layer_traces_agree_with_the_whole(llama: PreTrainedModel) -> None:
    scalars = Seam().step(llama, batch())
    for what in ("harmful", "benign"):
        squares = sum(scalars[f"norm/{what}/layer/{i}"] ** 2 for i in (0, 1))
        assert squares < scalars[f"norm/{what}"] ** 2  # embeddings and final norm are the rest
    assert -1 <= scalars["cosine/harmful-benign/layer/1"] <= 1


SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
GROUPED = {**SMALL, "num_key_value_heads": 1}
ARCHITECTURES = {
    "qwen2": lambda: Qwen2Config(**GROUPED),
    "mistral": lambda: MistralConfig(**GROUPED),
    "gemma": lambda: GemmaConfig(**GROUPED, head_dim=16),
    "gemma2": lambda: Gemma2Config(**GROUPED, head_dim=16, final_logit_softcapping=5.0),
    "gpt-neox": lambda: GPTNeoXConfig(**SMALL),
    "phi": lambda: PhiConfig(**SMALL),
    "opt": lambda: OPTConfig(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=48,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
        pad_token_id=0,
        dropout=0.0,
    ),
}


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_known_architectures_have_their_layerwise_term(name: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(ARCHITECTURES[name](), attn_implementation="eager").eval()
    scalars = Seam().step(model, batch())
    assert scalars["loss/ascent"] != Seam(ascent="final-logit").step(model, batch())["loss/ascent"]
    assert all(math.isfinite(v) for v in scalars.values())


def test_an_architecture_without_a_final_norm_is_refused() -> None:
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=48,
        max_position_embeddings=64,
        word_embed_proj_dim=16,
        pad_token_id=0,
        do_layer_norm_before=False,
        _remove_final_layer_norm=True,
    )
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UserError, match=r"final norm.*OPTForCausalLM.*final-logit"):
        Seam().step(model, batch())


def test_a_head_that_scales_its_logits_is_refused(llama: PreTrainedModel) -> None:
    from transformers import GraniteConfig

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(GraniteConfig(**GROUPED, logits_scaling=8.0, initializer_range=0.5))
    with pytest.raises(UserError, match="does not reproduce"):
        Seam().step(model, batch())


def test_lora_trains_the_adapter_and_keeps_the_layerwise_term(llama: PreTrainedModel) -> None:
    from peft import LoraConfig, get_peft_model

    whole = Seam().step(llama, batch())
    llama.zero_grad()
    adapted = get_peft_model(llama, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    before = {k: v.clone() for k, v in adapted.state_dict().items()}
    scalars = Seam().step(adapted, batch())
    assert {n for n, p in adapted.named_parameters() if p.grad is not None} == {
        n for n, p in adapted.named_parameters() if "lora_" in n
    }
    assert all(torch.equal(adapted.state_dict()[k], v) for k, v in before.items())
    # A fresh random adapter moves the loss a little; the term itself is the layer-wise one.
    assert scalars["loss/ascent"] == pytest.approx(whole["loss/ascent"], rel=0.1)
    assert scalars["loss/ascent"] != pytest.approx(
        Seam(ascent="final-logit").step(adapted, batch())["loss/ascent"], rel=0.01
    )


def test_a_missing_stream_is_named(llama: PreTrainedModel) -> None:
    with pytest.raises(UserError, match="seam needs the stream 'refusal'"):
        Seam().step(llama, Batch(harmful=tokens(1), benign=tokens(2)))


def test_paper_presets_have_no_extension() -> None:
    for preset in ("paper", "official-code"):
        settings = Seam.presets[preset].settings()
        assert (settings["ascent_weight"], settings["retain"], settings["coupling_clip"]) == (1.0, 0.0, 0.0)
        assert (settings["alpha"], settings["beta"], settings["epsilon"]) == (1.0, 0.01, 1e-3)
