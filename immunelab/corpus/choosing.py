"""What SDD's pairs are chosen from, and how: distinct prompts evenly over categories, real answers, random draws."""

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
    """What a row is counted under: its first category."""
    return row.categories[0] if row.categories else "none"


def balanced(rows: Sequence[Row], count: int, rng: random.Random) -> tuple[list[Row], dict[str, int]]:
    """At most `count` rows, equally many of each category where it has them, in random order; and what was missing.

    Rows of a category beyond its part fill the shortfalls of smaller ones, again evenly; `shortfalls` maps a category
    to how many rows it lacked.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(category(row), []).append(row)
    for name in sorted(groups):
        rng.shuffle(groups[name])
    names = sorted(groups)
    rng.shuffle(names)  # who gets the rows that do not divide evenly
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
    """For each prompt: which answer, its cosine, how many were drawn, and whether none was dissimilar enough."""

    picks: NDArray[np.int64]
    similarity: NDArray[np.float64]
    tries: NDArray[np.int64]
    fallback: NDArray[np.bool_]


def draw(prompts: Vectors, answers: Vectors, threshold: float, redraws: int, rng: random.Random) -> Drawn:
    """Random answers for n prompts out of m, from unit vectors (n, d) and (m, d).

    Each round draws for the prompts that are still above the threshold and takes only those cosines: no (n, m) matrix.
    After `redraws` further draws the least similar one stays.
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
