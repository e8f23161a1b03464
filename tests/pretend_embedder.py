"""An embedder for SDD's pairs that needs no model."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import numpy as np

from immunelab.corpus import embedding


class Fake:
    """Cheap vectors that follow from the text; counts every text that it is given."""

    name = "fake"

    def __init__(self, width: int = 8) -> None:
        self.width, self.seen, self.calls = width, Counter[str](), 0

    def __call__(self, texts: Sequence[str]) -> embedding.Vectors:
        self.calls += 1
        self.seen.update(texts)
        seeds = (random.Random(text).getrandbits(32) for text in texts)
        return np.stack([np.random.default_rng(s).standard_normal(self.width, dtype=np.float32) for s in seeds])
