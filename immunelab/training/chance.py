"""Randomness of a step: fresh for each minibatch, and the same again for the same seed and minibatch.

A step is a function of weights and batch. Draws from torch's global generator would make it depend on what was drawn
before, by an evaluation for instance; draws from here repeat when a run is repeated or resumed.
"""

from __future__ import annotations

import hashlib

import torch

from immunelab.method import Tokens


def seed(*minibatches: Tokens) -> int:
    """A seed of 63 bits from the run's seed (torch's) and the token ids of minibatches."""
    digest = hashlib.sha256(str(torch.initial_seed()).encode())
    for tokens in minibatches:
        digest.update(str(tokens.input_ids.tolist()).encode())
    return int.from_bytes(digest.digest()[:8]) >> 1


def generator(device: torch.device, *minibatches: Tokens) -> torch.Generator:
    """A generator on a device, seeded so."""
    return torch.Generator(device).manual_seed(seed(*minibatches))
