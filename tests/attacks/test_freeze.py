"""Freezing: what is frozen keeps its bits, the rest learns."""

from __future__ import annotations

import pytest
import torch
from made_batches import batch, tokens
from transformers import PreTrainedModel

from immunelab.attacks.freeze import Freeze
from immunelab.errors import UserError
from immunelab.method import Batch
from immunelab.training import loop


@pytest.mark.parametrize(
    ("frozen", "still", "moves"),
    [
        ("first", "model.layers.0.", "model.layers.1."),
        ("last", "model.layers.1.", "model.layers.0."),
        ("all-but-first", "model.layers.1.", "model.layers.0."),
        ("all-but-last", "model.embed_tokens.", "model.layers.1."),
        ("embeddings", "model.embed_tokens.", "model.layers.0."),
    ],
)
def test_frozen_weights_keep_their_bits(llama: PreTrainedModel, frozen: str, still: str, moves: str) -> None:
    before = {name: p.detach().clone() for name, p in llama.named_parameters()}
    attack = Freeze(frozen=frozen, learning_rate=1e-2, steps=3, warmup=0.0, weight_decay=0.1)  # type: ignore[arg-type]
    model = attack.prepare(llama, batch)
    list(loop.updates(model, attack, lambda i: Batch(user=tokens(i))))
    changed = {name for name, p in attack.after(model).named_parameters() if not torch.equal(p, before[name])}
    assert not any(name.startswith(still) for name in changed)
    assert any(name.startswith(moves) for name in changed)


def test_freezing_every_layer_is_refused(llama: PreTrainedModel) -> None:
    with pytest.raises(UserError, match="k is 2, and the model has 2 layers"):
        Freeze(k=2).prepare(llama, batch)
