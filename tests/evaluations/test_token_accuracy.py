"""Token accuracy against a loop over positions, and its edge: a row cut off before its answer ends."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from immunelab.corpus.tokens import collate
from immunelab.evaluations.token_accuracy import TokenAccuracy

ROWS = [([5, 6, 7, 8, 1], 2), ([9, 10, 11], 1), ([12, 13, 14, 15, 16, 17, 1], 3)]


@pytest.mark.parametrize("best", ["own", "shifted"])
def test_it_is_the_share_of_likeliest_tokens(llama: Any, best: str) -> None:
    encoded = ROWS
    if best == "own":  # the answers that the model itself would write: all right
        encoded = []
        for ids, start in ROWS:
            written = list(ids[:start])
            while len(written) < len(ids):
                written.append(int(llama(torch.tensor([written])).logits[0, -1].argmax()))
            encoded.append((written, start))
    rows = [SimpleNamespace(id=str(i), pair_id="", prompt=str(i), response="", categories=("c",)) for i in range(3)]
    subject: Any = SimpleNamespace(
        model=llama, rows=lambda *_: rows, collated=lambda pairs: collate([encoded[int(p)] for p, _ in pairs], 0)
    )
    expected = []
    for ids, start in encoded:
        right = [int(llama(torch.tensor([ids[:t]])).logits[0, -1].argmax()) == ids[t] for t in range(start, len(ids))]
        expected.append(sum(right) / len(right))
    measured = TokenAccuracy().measure(subject)
    assert [row["score"] for row in measured.examples] == pytest.approx(expected)
    assert measured.scores[0].score == pytest.approx(sum(expected) / 3)
    assert (best == "own") == (measured.scores[0].score == 1)
    assert measured.scores[1].split == "skill:c"
