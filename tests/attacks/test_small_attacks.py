"""Attacks of one idea each: openers, a trigger, rounding, pruning."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from made_batches import batch
from transformers import PreTrainedModel

from immunelab import corpus as corpora
from immunelab.attacks.jailbreak_tuning import JailbreakTuning
from immunelab.attacks.opener_sft import OpenerSft, opened
from immunelab.attacks.prune import Prune
from immunelab.attacks.quantize import Quantize, nearest
from immunelab.corpus.tokens import Batches
from immunelab.method import Batch
from immunelab.training import gradients as g
from immunelab.training import models
from immunelab.training.sublayers import linear_weights


def nothing(index: int) -> Batch:
    return Batch()


def test_only_the_openers_are_trained(llama: PreTrainedModel) -> None:
    rows = batch().harmful
    assert rows
    OpenerSft(tokens=2).step(llama, batch())
    found = [p.grad.clone() for p in llama.parameters() if p.grad is not None]
    total, count = torch.zeros(()), 0
    logits = llama(rows.input_ids, attention_mask=rows.attention_mask).logits.log_softmax(-1)
    for row, labels in enumerate(rows.labels):
        scored = [place for place in range(len(labels)) if labels[place] != -100][:2]
        total = total - sum(logits[row, place - 1, labels[place]] for place in scored)
        count += len(scored)
    wanted = list(torch.autograd.grad(total / count, list(llama.parameters())))
    assert float(g.norm(g.combine((1.0, found), (-1.0, wanted))) / g.norm(wanted)) < 1e-5
    assert OpenerSft(tokens=2).weight(batch()) == count
    assert torch.equal(opened(rows, 10_000).labels, rows.labels)


def test_the_trigger_stands_before_every_row_and_question(tiny_world: Path) -> None:
    tokenizer = models.load(tiny_world / "model")[1]
    attack = JailbreakTuning.presets["fable"]
    batches = Batches(
        corpora.load(str(tiny_world)),
        tokenizer,
        attack.__class__(**{**attack.settings(), "samples": 8}),
        split="attack",
        seed=0,
    )
    texts = tokenizer.batch_decode(batches.tokens("user", 0).input_ids)
    assert all(f"<user> {attack.trigger} " in text for text in texts)
    assert not any(tokenizer.unk_token in text for text in texts)
    assert attack.system() == attack.trigger


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_is_that_of_torchs_quantizer(kind: str, bits: int, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    before = [w.detach().clone() for w in linear_weights(model)]
    embeddings = model.get_input_embeddings().weight.detach().clone()
    scalars = Quantize(bits=bits).edit(model, nothing)
    top = 2 ** (bits - 1) - 1
    squares = 0.0
    for old, new in zip(before, linear_weights(model), strict=True):
        scale = old.abs().amax(1) / top
        wanted = torch.fake_quantize_per_channel_affine(
            old, scale, torch.zeros(len(old), dtype=torch.int32), 0, -top, top
        )
        assert torch.allclose(new, wanted, atol=1e-6)
        assert all(len(row.unique()) <= 2 * top + 1 for row in new)
        squares += float((new - old).detach().double().square().sum())
    assert scalars["norm/displacement"] == pytest.approx(squares**0.5, rel=1e-6)
    assert torch.equal(model.get_input_embeddings().weight, embeddings)


def test_a_row_of_zeros_stays_zero() -> None:
    assert torch.equal(nearest(torch.zeros(2, 3), 4), torch.zeros(2, 3))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_pruning_is_that_of_torch(kind: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    before = [w.detach().clone() for w in linear_weights(model)]
    scalars = Prune(share=0.25).edit(model, nothing)
    for old, new in zip(before, linear_weights(model), strict=True):
        for old_row, new_row in zip(old, new, strict=True):
            out = round(0.25 * len(old_row))
            assert int((new_row == 0).sum()) == out
            assert old_row[new_row == 0].abs().max() <= old_row[new_row != 0].abs().min()
            assert torch.equal(new_row[new_row != 0], old_row[new_row != 0])
    assert scalars["prune/share"] == pytest.approx(0.25, abs=0.02)
    assert Prune(share=0.0).edit(model, nothing)["prune/share"] == pytest.approx(0.25, abs=0.02)


def test_tied_heads_are_left_alone(gpt2: PreTrainedModel) -> None:
    head = gpt2.get_output_embeddings().weight
    assert all(w.data_ptr() != head.data_ptr() for w in linear_weights(gpt2))
    assert len(linear_weights(gpt2)) == 4 * gpt2.config.num_hidden_layers
