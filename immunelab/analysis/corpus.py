"""What a corpus holds: counts, lengths, truncation, and what its splits share. Frames in, frames out.

`rows` has one row for each question and answer: stream, split, category, item, prompt, answer, and if known
prompt_words, answer_words, answer_tokens, tokens (everything that a model reads and writes, with its template).
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd

SPLITS = ("defense", "attack", "test")


def splits(rows: pd.DataFrame) -> list[str]:
    """The splits that occur, the usual ones first."""
    have = rows["split"].unique()
    return [s for s in SPLITS if s in have] + sorted(set(have) - set(SPLITS))


def counts(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a stream and category: rows in each split, rows and items (what the rows are about) in all."""
    keys = ["stream", "category"]
    table = rows.pivot_table(index=keys, columns="split", values="prompt", aggfunc="count", fill_value=0)
    whole = rows.groupby(keys).agg(rows=("prompt", "count"), items=("item", "nunique"))
    return table[splits(rows)].join(whole).reset_index()


def lengths(rows: pd.DataFrame, unit: str = "words") -> pd.DataFrame:
    """Answer lengths in a unit (words or tokens), one row a stream: n, shortest, median, 95th percentile, longest."""
    grouped = rows.groupby("stream")[f"answer_{unit}"]
    table = grouped.agg(n="count", shortest="min", median="median", p95=lambda v: v.quantile(0.95), longest="max")
    return table.reset_index()


def histogram(rows: pd.DataFrame, unit: str = "words", most: int = 40) -> pd.DataFrame:
    """A histogram of answer lengths: stream, split, length (the lower edge of a bin), width, n.

    Bins are one unit wide, or wider if the longest answer would need more than `most` bins.
    """
    values = rows[f"answer_{unit}"]
    width = max(1, -(-int(values.max()) // most)) if len(values) else 1
    found = rows.assign(length=values // width * width).groupby(["stream", "split", "length"]).size()
    return found.rename("n").reset_index().assign(width=width)


def similarities(pairs: pd.DataFrame, threshold: float, width: float = 0.025) -> pd.DataFrame:
    """A histogram of the pairs' cosines: fallback, low, high (low < cosine ≤ high), n.

    The threshold is the edge of a bin, so that no bin holds pairs from both sides of it.
    """
    steps = ((pairs["similarity"] - threshold) / width).round(6)  # 0.3 − 0.2 is a little less than 0.1
    found = pairs.assign(bin=np.ceil(steps).astype(int) - 1).groupby(["fallback", "bin"]).size()
    frame = found.rename("n").reset_index()
    low = threshold + frame["bin"] * width
    return frame.assign(low=low, high=low + width)[["fallback", "low", "high", "n"]]


def truncated(rows: pd.DataFrame, limit: int) -> pd.DataFrame:
    """Rows whose whole text is longer than `limit` tokens, so that the answer's end is cut off: for each stream
    the number of rows, how many are cut, and the longest."""
    cut = rows.assign(cut=rows["tokens"] > limit).groupby("stream")
    return cut.agg(rows=("tokens", "count"), cut=("cut", "sum"), longest=("tokens", "max")).reset_index()


def overlap(rows: pd.DataFrame) -> pd.DataFrame:
    """How much two splits share, which should be 0: stream, between, items, prompts, texts (whole rows).

    Neutral texts share questions by design, so only the texts are compared.
    """
    found = []
    for stream, mine in rows.groupby("stream", sort=True):
        for a, b in combinations(splits(mine), 2):
            left, right = mine[mine["split"] == a], mine[mine["split"] == b]
            shared = {
                "items": _shared(left["item"], right["item"]),
                "prompts": None if stream == "neutral" else _shared(left["prompt"], right["prompt"]),
                "texts": _shared(left["prompt"] + "\n" + left["answer"], right["prompt"] + "\n" + right["answer"]),
            }
            found.append({"stream": stream, "between": f"{a} and {b}", **shared})
    frame = pd.DataFrame(found, columns=["stream", "between", "items", "prompts", "texts"])
    return frame.astype({"prompts": "Int64"})


def find(rows: pd.DataFrame, text: str) -> pd.DataFrame:
    """The rows in whose prompt or answer a text occurs; case is ignored."""
    if not text:
        return rows
    hay = rows["prompt"] + "\n" + rows["answer"]
    return rows[hay.str.contains(text, case=False, regex=False)]


def _shared(left: pd.Series, right: pd.Series) -> int:
    a, b = (set(s.str.strip().str.casefold()) - {""} for s in (left, right))
    return len(a & b)
