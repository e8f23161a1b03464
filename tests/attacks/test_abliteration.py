"""Abliteration: the direction is gone from every writer, twice is once, hooks at run time say the same."""

from __future__ import annotations

import copy

import pytest
import torch
from made_batches import batch
from transformers import PreTrainedModel

from immunelab.attacks.abliteration import Abliteration
from immunelab.errors import UserError
from immunelab.training import residual
from immunelab.training.losses import forward

SMALL = Abliteration(samples=8, batch_size=4)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_no_writer_can_write_the_direction_and_twice_is_once(kind: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    r = SMALL.directions(model, batch, 2)[1]
    writers = residual.writers(model)
    assert residual.share_left(writers, r) > 0.01
    residual.remove(writers, r)
    once = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert residual.share_left(writers, r) < 1e-6
    hidden = forward(model, batch().harmful, hidden=True)[1]
    assert all(float((h.detach() @ r).abs().max() / h.norm(dim=-1).max()) < 1e-5 for h in hidden[:-1])
    residual.remove(writers, r)
    for name, p in model.named_parameters():
        rounding = 8 * torch.finfo(p.dtype).eps * float(p.detach().abs().max())
        torch.testing.assert_close(p.detach(), once[name], atol=rounding, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_hooks_on_every_write_give_the_same_logits(kind: str, request: pytest.FixtureRequest) -> None:
    """The run-time form of the paper; for GPT-2, whose head is tied, with a head of its own."""
    model = request.getfixturevalue(kind)
    if kind == "gpt2":
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    rows = batch().harmful
    assert rows
    r = SMALL.directions(model, batch, 2)[1]
    edited = copy.deepcopy(model)
    residual.remove(residual.writers(edited), r)
    writing = [
        m
        for name, m in model.named_modules()
        if isinstance(m, torch.nn.Embedding) or name.rsplit(".", 1)[-1] in residual.WRITERS
    ]
    handles = [m.register_forward_hook(lambda m, x, out: out - (out @ r).unsqueeze(-1) * r) for m in writing]
    with torch.no_grad():
        hooked = forward(model, rows)[0]
        for handle in handles:
            handle.remove()
        assert float((forward(edited, rows)[0] - hooked).abs().max()) < 1e-4
        assert float((forward(model, rows)[0] - hooked).abs().max()) > 1e-3


def test_the_edit_reports_and_a_random_direction_is_another(llama: PreTrainedModel) -> None:
    scalars = SMALL.edit(copy.deepcopy(llama), batch)
    assert scalars["abliteration/left"] < 1e-6
    assert scalars["abliteration/layer"] == 1
    torch.manual_seed(0)
    random = Abliteration(direction="random", samples=8, batch_size=4)
    r, s = SMALL.directions(llama, batch, 2)[1], random.directions(llama, batch, 2)[1]
    assert abs(float(r @ s)) < 0.6
    assert float(s.norm()) == pytest.approx(1, rel=1e-5)


def test_what_does_not_fit_is_said(llama: PreTrainedModel) -> None:
    with pytest.raises(UserError, match="layer is 7, and the model has 2 layers"):
        Abliteration(layer=7, samples=8, batch_size=4).edit(llama, batch)
    llama.model.layers[0].self_attn.o_proj = torch.nn.Identity()
    with pytest.raises(UserError, match="2 layers and 3 weights known to write"):
        residual.writers(llama)
