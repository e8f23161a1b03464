"""Random minibatches for tests of methods."""

from __future__ import annotations

import torch

from immunelab.method import Batch, Tokens


def tokens(seed: int, rows: int = 4, length: int = 14, prompt: int = 5, vocabulary: int = 97) -> Tokens:
    """Random ids with a prompt that is not scored, and the last row padded by three."""
    ids = torch.randint(3, vocabulary, (rows, length), generator=torch.Generator().manual_seed(seed))
    attention = torch.ones_like(ids)
    attention[-1, -3:] = 0
    labels = ids.clone()
    labels[:, :prompt] = -100
    labels[attention == 0] = -100
    return Tokens(ids, attention, labels)


def batch(seed: int = 0) -> Batch:
    """All streams; harmful, refusal and unrelated share their prompts."""
    harmful = tokens(seed)
    made = {"harmful": harmful}
    for k, stream in enumerate(("refusal", "unrelated", "benign", "user"), start=1):
        other = tokens(seed + 100 * k)
        if stream in ("refusal", "unrelated"):
            other.input_ids[:, :5] = harmful.input_ids[:, :5]
        made[stream] = other
    return Batch(**made)
