"""Random numbers for a step: new for each minibatch, and the same again for the same seed and minibatch.

A step must be a function of weights and batch. Torch's global generator would make it depend on earlier draws, such as
those of an evaluation; these numbers repeat when a run is repeated or resumed.
"""

from __future__ import annotations

import hashlib

import torch

from immunelab.method import Tokens


def seed(*parts: Tokens | int) -> int:
    """A seed of 63 bits from the run's seed (torch's initial one) and the token ids of minibatches, or numbers."""
    digest = hashlib.sha256(str(torch.initial_seed()).encode())
    for part in parts:
        digest.update(str(part if isinstance(part, int) else part.input_ids.tolist()).encode())
    return int.from_bytes(digest.digest()[:8]) >> 1


def generator(device: torch.device, *parts: Tokens | int) -> torch.Generator:
    """A generator on a device, with the seed of `seed`."""
    return torch.Generator(device).manual_seed(seed(*parts))
