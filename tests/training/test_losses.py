"""Losses against written-out formulas, and the official mask against its description."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from made_batches import tokens

from immunelab.corpus import Corpus
from immunelab.corpus.tokens import collate, encode, pairs
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


def written_out(prompt: list[int], answers: tuple[list[int], list[int]]) -> tuple[list[str], list[str]]:
    """For each token of a harmful text and of its refusal what the released codes do with it, by their description:
    they compare the authors' texts, where a line break comes before the harmful answer, place by place."""
    found = []
    texts = ([*prompt, "line break", *answers[0]], [*prompt, *answers[1]])
    for mine, other in (texts, texts[::-1]):
        differs = [i >= len(other) or token != other[i] for i, token in enumerate(mine)]
        found.append(
            ["" if not kept else "constant" if i and not differs[i - 1] else "trains" for i, kept in enumerate(differs)]
        )
    return found[0], found[1]


@pytest.mark.parametrize(
    "answers",
    [
        ([11, 12, 13], [21, 22, 23, 24]),
        ([11, 12, 13, 14], [21, 11, 22]),  # the harmful answer's first token is the refusal's second
        ([11, 12, 13, 14], [11, 12, 21]),  # both begin alike
        ([11, 12, 13, 14], [21, 22, 12, 23]),  # alike again later
        ([11], [21, 22, 23, 24, 25]),
    ],
)
def test_the_official_mask_is_that_of_the_authors_texts(answers: tuple[list[int], list[int]]) -> None:
    """The line break's constant falls on the prompt's last token, and the first harmful token trains."""
    prompt = [5, 6, 7]
    harmful, refusal = written_out(prompt, answers)
    made = []
    for answer in answers:
        ids = torch.tensor([[*prompt, *answer]])
        made.append(Tokens(ids, torch.ones_like(ids), torch.where(torch.arange(ids.shape[1]) < 3, -100, ids)))
    assert harmful.pop(3) == "constant"  # the line break
    harmful[2] = "constant"
    for scored, wanted in zip(differing(*made), (harmful, refusal), strict=True):
        assert scored.constant is not None
        labels = zip(scored.tokens.labels[0].tolist(), scored.constant[0].tolist(), strict=True)
        assert ["" if label == -100 else "constant" if fixed else "trains" for label, fixed in labels] == wanted
    assert harmful[3] == ("" if answers[0][0] == answers[1][1] else "trains")
    assert refusal[3] == "constant"


def test_the_official_mask_looks_at_each_row_by_itself() -> None:
    """Rows of other lengths, padded, and one without a prompt, get what they get alone."""
    texts = [([5, 6, 7], [11, 12, 13], [21, 22]), ([5], [11, 12], [21, 22, 23, 24]), ([], [11, 12, 13], [11, 22])]
    alone, both = [], ([], [])
    for prompt, *answers in texts:
        pairs = [([*prompt, *answer], len(prompt)) for answer in answers]
        alone.append(differing(*(collate([each], 0) for each in pairs)))
        for side, each in zip(both, pairs, strict=True):
            side.append(each)
    together = differing(*(collate(side, 0) for side in both))
    for row, single in enumerate(alone):
        for mine, theirs in zip(together, single, strict=True):
            width = theirs.tokens.labels.shape[1]
            assert mine.tokens.labels[row, :width].tolist() == theirs.tokens.labels[0].tolist()
            assert mine.constant is not None
            assert theirs.constant is not None
            assert mine.constant[row, :width].tolist() == theirs.constant[0].tolist()
            assert bool((mine.tokens.labels[row, width:] == -100).all())


def test_on_fable_the_first_harmful_token_trains_under_the_official_mask(world: Corpus, tokenizer: Any) -> None:
    rows = world.select("harmful", "defense")
    found, refusals = (
        collate([encode(tokenizer, pair, 128) for pair in pairs(rows, stream)], tokenizer.pad_token_id)
        for stream in ("harmful", "refusal")
    )
    firsts = (found.labels != -100).int().argmax(1)
    for scored, trains in zip(differing(found, refusals), (True, False), strict=True):
        assert scored.constant is not None
        for row, first in enumerate(firsts.tolist()):
            assert scored.tokens.labels[row, first] != -100
            assert bool(scored.constant[row, first]) is not trains


def test_identical_pairs_are_refused() -> None:
    with pytest.raises(UserError, match="same text"):
        differing(*pair([5, 6, 7], [5, 6, 7]))
