"""SEAM undone: the opposite of SEAM's coupling, and the cosine rises."""

from __future__ import annotations

import pytest
import torch
from made_batches import batch
from transformers import PreTrainedModel

from immunelab.attacks.seam_undo import SeamUndo
from immunelab.defenses.seam import Seam
from immunelab.training import loop

ONLY = {"mu": 0.0, "harm": 0.0}


def test_it_is_seams_coupling_with_the_sign_turned(llama: PreTrainedModel) -> None:
    Seam(ascent_weight=0.0, alpha=0.0, beta=0.5).step(llama, batch())
    forth = [p.grad.clone() for p in llama.parameters() if p.grad is not None]
    SeamUndo(beta=0.5, **ONLY).step(llama, batch())
    assert all(torch.equal(-a, p.grad) for a, p in zip(forth, llama.parameters(), strict=True) if p.grad is not None)


def test_the_cosine_rises(llama: PreTrainedModel) -> None:
    attack = SeamUndo(beta=1.0, learning_rate=1e-3, steps=25, warmup=0.0, **ONLY)
    traced = [scalars for _, scalars in loop.updates(llama, attack, lambda i: batch())]
    cosines = [t["cosine/harmful-benign"] for t in traced]
    assert cosines[-1] > cosines[0] + 0.3
    assert traced[0]["loss/total"] == pytest.approx(-cosines[0])
