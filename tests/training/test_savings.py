"""What saves memory changes no number: chunks of the loss, activations computed again, gradients put aside."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from made_batches import batch, tokens
from nearness import ROUNDED, relative
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from benchmarks import six_passes
from benchmarks.memory import Counter
from immunelab.attacks.harmful_sft import HarmfulSft
from immunelab.defenses.seam import Seam
from immunelab.errors import UserError
from immunelab.method import Batch, Tokens, Trained, configure
from immunelab.runs.spec import RunSpec
from immunelab.training import gradients as g
from immunelab.training import loop, savings
from immunelab.training.activations import layerwise
from immunelab.training.heads import loss_in_chunks
from immunelab.training.losses import Scored, differing, loss
from immunelab.training.savings import saving

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def after_step(model: PreTrainedModel, method: Trained) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Scalars and weights after two updates by the loop, of a copy."""
    mine, traced = copy.deepcopy(model), dict[str, float]()
    for _, scalars in loop.updates(mine, method, batch):
        traced.update(scalars)
    assert not any(getattr(m, "gradient_checkpointing", False) for m in mine.modules())
    traced.pop("time/step_seconds")
    return traced, mine.state_dict()


@pytest.mark.parametrize("size", [1, 5, 1000])
@pytest.mark.parametrize("official", [False, True])
def test_a_loss_in_chunks_is_the_loss(llama: PreTrainedModel, size: int, official: bool) -> None:
    rows = Scored(tokens(1))
    if official:
        pair = batch()
        assert pair.harmful
        assert pair.refusal
        rows = differing(pair.harmful, pair.refusal)[0]
        assert rows.constant is not None
        assert bool(rows.constant.any())
    weights = g.trainable(llama)
    for make in (loss, lambda model, scored: layerwise(model, scored)[1]):
        plain = make(llama, rows)
        with loss_in_chunks(size):
            chunked = make(llama, rows)
        assert float(chunked.detach()) == pytest.approx(float(plain.detach()), rel=1e-5)
        assert relative(g.gradient(chunked, weights), g.gradient(plain, weights)) < ROUNDED


def whole(model: PreTrainedModel, rows: Scored) -> torch.Tensor:
    """Cross-entropy from the logits of all positions, as written in a textbook."""
    logits = model(input_ids=rows.tokens.input_ids, attention_mask=rows.tokens.attention_mask).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), rows.tokens.labels[:, 1:])


def test_the_head_reads_scored_tokens_and_the_loss_is_that_of_all_logits(llama: PreTrainedModel) -> None:
    weights, rows = g.trainable(llama), Scored(tokens(1))
    read: list[int] = []
    handle = llama.lm_head.register_forward_hook(lambda _, given, out: read.append(out.shape[:-1].numel()))
    scored = int((rows.tokens.labels[:, 1:] != -100).sum())
    for more in (2, 0):  # the first time the head is asked for one token, whether it makes the logits
        read.clear()
        found = loss(llama, rows)
        assert sum(read) == scored + more
        assert float(found.detach()) == pytest.approx(float(whole(llama, rows).detach()), rel=1e-5)
        assert relative(g.gradient(found, weights), g.gradient(whole(llama, rows), weights)) < ROUNDED
        assert read[-1] == rows.tokens.labels.numel() > scored
    handle.remove()


def test_a_head_that_is_scaled_is_not_read_apart() -> None:
    torch.manual_seed(0)
    scaled = AutoModelForCausalLM.from_config(GraniteConfig(**SMALL, logits_scaling=8.0))
    rows, weights = Scored(tokens(1)), g.trainable(scaled)
    for _ in range(2):
        assert float(loss(scaled, rows).detach()) == pytest.approx(float(whole(scaled, rows).detach()), rel=1e-5)
        assert relative(g.gradient(loss(scaled, rows), weights), g.gradient(whole(scaled, rows), weights)) < ROUNDED


def test_chunks_hold_no_whole_logits(llama: PreTrainedModel) -> None:
    """The peak grows with the chunk: the head of 97 tokens is made one of 20,000."""
    llama.lm_head = torch.nn.Linear(32, 20_000, bias=False)
    rows, peaks = Tokens(*(x.repeat(8, 1) for x in tokens(1))), {}
    for size in (-1, 0, 4):
        with loss_in_chunks(max(0, size)), Counter(llama.parameters()) as counter:
            value = whole(llama, Scored(rows)) if size < 0 else loss(llama, rows)
            g.gradient(value, g.trainable(llama))
        peaks[size] = counter.peak - sum(p.numel() for p in llama.parameters()) * 4
    position = 20_000 * 4  # bytes
    scored = int((rows.labels[:, 1:] != -100).sum())
    assert peaks[-1] > rows.labels.numel() * position
    assert peaks[0] < peaks[-1] - (rows.labels.numel() - scored) * position
    assert peaks[4] < peaks[0] - (scored - 4) * position  # the head's gradients, whole and of a chunk, stay


def test_chunks_know_soft_caps_and_refuse_other_heads() -> None:
    torch.manual_seed(0)
    rows = Scored(tokens(1))
    capped = AutoModelForCausalLM.from_config(Gemma2Config(**SMALL, head_dim=16, final_logit_softcapping=5.0))
    with loss_in_chunks(3):
        found = loss(capped, rows)
    assert float(found.detach()) == pytest.approx(float(loss(capped, rows).detach()), rel=1e-5)
    scaled = AutoModelForCausalLM.from_config(GraniteConfig(**SMALL, logits_scaling=8.0, initializer_range=0.5))
    with loss_in_chunks(3), pytest.raises(UserError, match="loss_chunk=0"):
        loss(scaled, rows)


@pytest.mark.parametrize("ascent", ["layerwise", "final-logit"])
def test_what_is_computed_again_is_the_same_bit_for_bit(llama: PreTrainedModel, ascent: str) -> None:
    settings: dict[str, Any] = {"learning_rate": 1e-2, "steps": 2, "warmup": 0, "beta": 0.5, "ascent": ascent}
    plain, weights = after_step(llama, Seam(**settings))
    again, others = after_step(llama, Seam(**settings, recompute=True, offload=True))
    assert again == plain
    assert all(torch.equal(others[name], weight) for name, weight in weights.items())


def test_recomputing_keeps_fewer_activations(llama: PreTrainedModel) -> None:
    peaks = []
    for recompute in (False, True):
        method = HarmfulSft(learning_rate=0, steps=1, batch_size=4, optimizer="sgd", recompute=recompute)
        with Counter(llama.parameters()) as counter:
            list(loop.updates(llama, method, lambda i: Batch(user=tokens(i, rows=64))))
        peaks.append(counter.peak)
    assert peaks[1] < 0.8 * peaks[0]


def test_rounded_buffers_stay_close(llama: PreTrainedModel) -> None:
    """Only directions wait rounded, not what is subtracted: the estimate moves by what bf16 is, 2⁻⁸, and not by 1/ε."""
    settings: dict[str, Any] = {"beta": 1.0, "alpha": 0.5, "retain": 0.5}
    found = []
    for buffers in ("fp32", "bf16"):
        llama.zero_grad()
        method = Seam(**settings, buffers=buffers)
        with saving(llama, method):
            method.step(llama, batch())
        found.append([p.grad for p in llama.parameters() if p.grad is not None])
    assert 0 < relative(found[1], found[0]) < 2**-7


def floats_beside_the_weights(model: PreTrainedModel, step: Callable[[], object]) -> float:
    """The most bytes of tensors that live at once during a step beside the weights, in sizes of the weights."""
    model.zero_grad()
    with Counter(model.parameters()) as counter:
        step()
    return counter.peak / sum(p.numel() * p.element_size() for p in model.parameters()) - 1


@pytest.mark.slow
@pytest.mark.parametrize("ascent", ["layerwise", "final-logit"])
def test_a_step_holds_a_copy_three_gradients_and_little_else(ascent: Any) -> None:
    """Also for a small model: a bucket is a small part of it. Six passes with clones hold more than seven."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=97,
            hidden_size=384,
            intermediate_size=1024,
            num_hidden_layers=8,
            num_attention_heads=2,
            tie_word_embeddings=True,
        )
    )
    data = Batch(**{s: tokens(i, rows=1, length=10) for i, s in enumerate(("harmful", "refusal", "benign"))})
    method = Seam(ascent=ascent, retain=1.0)
    assert floats_beside_the_weights(model, lambda: method.step(model, data)) < 4.5
    assert floats_beside_the_weights(model, lambda: six_passes.step(model, data, method)) > 7


def test_gathering_is_adding_a_gradient(llama: PreTrainedModel) -> None:
    weights = g.trainable(llama)
    before = [torch.randn_like(w) for w in weights]
    for w in weights:
        w.grad = torch.ones_like(w)
    into = [x.clone() for x in before]
    g.gather(loss(llama, tokens(1)), weights, into, 0.3)
    wanted = g.combine((1.0, before), (0.3, g.gradient(loss(llama, tokens(1)), weights)))
    assert relative(into, wanted) < ROUNDED
    assert all(w.grad is not None and bool((w.grad == 1).all()) for w in weights)
    assert not any(w._post_accumulate_grad_hooks for w in weights)


def test_buckets_are_all_of_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [torch.randn(n) for n in (3, 50, 1, 1, 200, 2)]
    assert list(savings.buckets(tensors)) == [slice(0, 6)]  # less than the smallest bucket
    whole = float(g.norm(tensors))
    monkeypatch.setattr(savings, "SMALLEST", 4 * 60)
    parts = [tensors[part] for part in savings.buckets(tensors)]
    assert [len(part) for part in parts] == [4, 1, 1]
    assert float(g.norm(tensors)) == whole
    assert list(savings.buckets([])) == []


def test_a_bucket_is_a_small_part_of_a_model_and_never_too_large() -> None:
    for count, largest in ((320, 10 * 2**20), (3200, 2**26)):
        sizes = [torch.empty(2**18, device="meta")] * count  # of 1 MiB each
        parts = list(savings.buckets(sizes))
        assert max(part.stop - part.start for part in parts) * 2**20 == largest
        assert [i for part in parts for i in range(part.start, part.stop)] == list(range(count))


def test_the_displacement_of_a_shift_does_not_depend_on_buckets(
    llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = g.trainable(llama)
    direction = [torch.randn_like(w) for w in weights]
    found = []
    for smallest in (1 << 20, 1 << 10):
        monkeypatch.setattr(savings, "SMALLEST", smallest)
        with g.shifted(weights, direction, by=1e-3) as displacement:
            found.append(displacement)
    assert len(list(savings.buckets(weights))) > 3
    assert found[0] == found[1]


def test_what_is_used_up_is_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(savings, "SMALLEST", 4)
    wanted = [float(i) for i in range(4)]
    waiting = [torch.tensor([x], dtype=torch.bfloat16) for x in wanted]
    like = [torch.empty(1) for _ in wanted]
    met = []
    for part, (here,) in savings.used_up(waiting, like=like):
        assert all(not t.numel() for t in waiting[part])
        met += [(float(t), t.dtype) for t in here]
    assert met == [(x, torch.float32) for x in wanted]


@pytest.mark.parametrize("preset", sorted(Seam.presets))
def test_savings_are_no_part_of_a_run_at_their_defaults(preset: str) -> None:
    method = Seam.presets[preset]
    saving = {f.name: f.default for f in dataclasses.fields(method) if f.metadata.get("saving")}
    assert set(saving) == {"recompute", "loss_chunk", "buffers", "offload"}
    assert not saving.keys() & method.settings().keys()
    changed = dataclasses.replace(method, loss_chunk=64)
    assert changed.settings() == method.settings() | {"loss_chunk": 64}
    assert configure("defense", "seam", changed.settings()) == changed
    plain = RunSpec(kind="immunize", method="seam", knobs=method.settings())
    assert RunSpec(kind="immunize", method="seam", knobs=changed.settings()).hash != plain.hash


@pytest.mark.gpu
def test_on_a_gpu_what_waits_is_in_main_memory(llama: PreTrainedModel) -> None:
    model = llama.cuda()
    data = Batch(
        **{
            name: type(rows)(*(x.cuda() for x in rows))
            for name, rows in batch()._asdict().items()
            if isinstance(rows, tuple)
        }
    )
    found = []
    for offload in (False, True):
        model.zero_grad()
        before = [p.detach().clone() for p in model.parameters()]
        method = Seam(beta=1.0, offload=offload)
        with saving(model, method):
            method.step(model, data)
        found.append([p.grad for p in model.parameters() if p.grad is not None])
        assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert relative(found[1], found[0]) < 1e-4
    with saving(model, Seam(offload=True)):
        assert all(t.is_pinned() for t in savings.aside([p.detach() for p in model.parameters()]))
