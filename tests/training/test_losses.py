"""Losses against written-out formulas, and the official mask against its description."""

from __future__ import annotations

import math

import pytest
import torch
from made_batches import tokens

from immunelab.errors import UserError
from immunelab.method import Tokens
from immunelab.training.losses import ascent, cross_entropy, differing


def test_cross_entropy_is_the_mean_over_scored_tokens() -> None:
    rows = tokens(3)
    logits = torch.randn(4, 14, 97, generator=torch.Generator().manual_seed(0))
    log_p = logits.log_softmax(-1)
    terms = [
        -float(log_p[r, t - 1, rows.labels[r, t]]) for r in range(4) for t in range(1, 14) if rows.labels[r, t] != -100
    ]
    assert len(terms) == 4 * 9 - 3
    assert float(cross_entropy(logits, rows.labels)) == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_a_batch_without_scored_tokens_is_an_error() -> None:
    with pytest.raises(UserError, match="every label is masked"):
        cross_entropy(torch.zeros(1, 4, 5), torch.full((1, 4), -100))


def test_token_zero_is_learned() -> None:
    labels = torch.tensor([[-100, 0]])
    logits = torch.zeros(1, 2, 4)
    assert float(cross_entropy(logits, labels)) == pytest.approx(math.log(4))


def test_ascent_closed_form() -> None:
    assert float(ascent(torch.tensor(2.0), [])) == pytest.approx(-math.log(3))
    assert float(ascent(torch.tensor(2.0), [torch.tensor(1.0), torch.tensor(3.0)])) == pytest.approx(
        -math.log(1 + 6 / 2)
    )


def pair(a: list[int], b: list[int]) -> tuple[Tokens, Tokens]:
    made = []
    for ids in (a, b):
        row = torch.tensor([ids])
        made.append(Tokens(row, torch.ones_like(row), row.clone()))
    return made[0], made[1]


def test_the_official_mask_scores_where_a_pair_differs() -> None:
    a, b = pair([5, 6, 7, 8, 9, 3], [5, 6, 1, 8, 2, 4])
    harmful, refusal = differing(a, b)
    assert harmful.tokens.labels.tolist() == [[-100, -100, 7, -100, 9, 3]]
    assert refusal.tokens.labels.tolist() == [[-100, -100, 1, -100, 2, 4]]
    # Differs here but not one before: the official code predicts it from zeroed logits.
    assert harmful.constant is not None
    assert harmful.constant.tolist() == [[False, False, True, False, True, False]]
    logits = torch.randn(1, 6, 50, generator=torch.Generator().manual_seed(0))
    by_hand = (2 * math.log(50) - float(logits[0, 4].log_softmax(-1)[3])) / 3
    assert float(cross_entropy(logits, harmful.tokens.labels, harmful.constant)) == pytest.approx(by_hand, rel=1e-5)


def test_the_official_mask_of_unequal_lengths_scores_what_only_one_text_has() -> None:
    a, b = pair([5, 6, 7, 8], [5, 6])
    with pytest.raises(UserError, match="same text"):
        differing(a, b)  # the shorter text has no position of its own
    harmful, _ = differing(*pair([5, 6, 7, 8], [5, 1]))
    assert harmful.tokens.labels.tolist() == [[-100, 6, 7, 8]]


def test_identical_pairs_are_refused() -> None:
    with pytest.raises(UserError, match="same text"):
        differing(*pair([5, 6, 7], [5, 6, 7]))
