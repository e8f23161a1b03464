"""Choosing SDD's pairs: distinct prompts evenly over categories, a pool of benign answers, random draws."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from immunelab.corpus.embedding import Vectors
from immunelab.corpus.rows import Corpus, Row
from immunelab.corpus.splitting import normal
from immunelab.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def distinct(rows: Sequence[Row]) -> list[Row]:
    """The first row of each prompt."""
    seen: dict[str, Row] = {}
    for row in rows:
        seen.setdefault(normal(row.prompt), row)
    return list(seen.values())


def category(row: Row) -> str:
    """The category that a row counts for: its first one."""
    return row.categories[0] if row.categories else "none"


def balanced(rows: Sequence[Row], count: int, rng: random.Random) -> tuple[list[Row], dict[str, int]]:
    """At most `count` rows in random order, as evenly over categories as possible, and the shortfalls.

    Larger categories fill up, again evenly, what smaller ones lack. The shortfalls map a category to the number of
    rows that it lacked.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(category(row), []).append(row)
    for name in sorted(groups):
        rng.shuffle(groups[name])
    names = sorted(groups)
    rng.shuffle(names)  # decides which categories get the rows that do not divide evenly
    wanted = min(count, len(rows))
    part = wanted // len(groups)
    shortfalls = {name: part - len(groups[name]) for name in sorted(groups) if len(groups[name]) < part}
    chosen: list[Row] = []
    turn = 0
    while len(chosen) < wanted:
        chosen += [groups[name][turn] for name in names if turn < len(groups[name])][: wanted - len(chosen)]
        turn += 1
    rng.shuffle(chosen)
    return chosen, shortfalls


def pool(corpus: Corpus, split: str, words: int) -> list[Row]:
    """Benign rows with distinct answers of at least `words` words; a UserError if there are none."""
    benign = corpus.select("benign", split)
    found: dict[str, Row] = {}
    for row in benign:
        if len(row.response.split()) >= max(1, words):
            found.setdefault(row.response, row)
    if not found:
        longest = max(len(row.response.split()) for row in benign)
        raise UserError(
            f"The corpus {corpus.name} has no benign answer of {max(1, words)} words or more in the split {split!r}, "
            f"and the stream 'unrelated' is made of them; the longest has {longest}: lower `words`, or add rows."
        )
    return list(found.values())


class Drawn(NamedTuple):
    """For each prompt: the chosen answer, its cosine, how many were drawn, and whether all were too similar."""

    picks: NDArray[np.int64]
    similarity: NDArray[np.float64]
    tries: NDArray[np.int64]
    fallback: NDArray[np.bool_]


def draw(prompts: Vectors, answers: Vectors, threshold: float, redraws: int, rng: random.Random) -> Drawn:
    """Random answers for n prompts out of m, from unit vectors (n, d) and (m, d).

    Each round draws one answer for every prompt that is still above the threshold and computes only those cosines, so
    there is no (n, m) matrix. After `redraws` further draws a prompt keeps the least similar answer seen.
    """
    numbers = np.random.default_rng(rng.getrandbits(64))
    n = len(prompts)
    picks, tries = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    best = np.full(n, np.inf)
    open_ = np.arange(n)
    for _ in range(redraws + 1):
        drawn = numbers.integers(len(answers), size=len(open_))
        cosines = np.einsum("ij,ij->i", prompts[open_], answers[drawn]).clip(-1, 1).astype(np.float64)
        closer = cosines < best[open_]
        picks[open_[closer]], best[open_[closer]] = drawn[closer], cosines[closer]
        tries[open_] += 1
        open_ = open_[best[open_] > threshold]
        if not len(open_):
            break
    return Drawn(picks, best, tries, best > threshold)
