"""Splits by distinct question: defense, attack and test share none, and the seed decides which goes where."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence

from immunelab.corpus.adapters import Draft
from immunelab.errors import UserError

SHARES = {"defense": 0.45, "attack": 0.45, "test": 0.1}


def normal(text: str) -> str:
    """A prompt in the form used for comparing: NFKC, lower case, single spaces, no punctuation at the end."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().split()).rstrip("?!.,;: ")


def item(draft: Draft) -> str:
    """What must be in one split only: the normal form of the question, or of the text for neutral rows."""
    return f"text {normal(draft.response)}" if draft.stream == "neutral" else normal(draft.prompt)


def assigned(drafts: Sequence[Draft], shares: Mapping[str, float], seed: int, test_rows: int, where: str) -> list[str]:
    """The split of each row, or "" for one that is left out; UserErrors name `where`.

    All rows with the same question are in one split, also across streams. A split given by a column stays. Other
    questions are ordered by a hash of seed and question and cut at the shares, separately for each set of streams in
    which they occur, so that each split gets its share of each stream and at least one question. Of a stream's test
    questions the first `test_rows` in that order are kept, because each is asked at every evaluation.
    """
    streams: dict[str, set[str]] = {}
    given: dict[str, str] = {}
    for draft in drafts:
        key = item(draft)
        streams.setdefault(key, set()).add(draft.stream)
        if draft.split and given.setdefault(key, draft.split) != draft.split:
            raise UserError(
                f"{where}: the question {draft.prompt[:80]!r} stands in the splits {given[key]} and {draft.split}; "
                "splits share no question."
            )
    order = {key: hashlib.sha256(f"{seed}:{key}".encode()).digest() for key in streams}
    groups: dict[frozenset[str], list[str]] = {}
    for key in sorted(set(streams) - set(given), key=order.__getitem__):
        groups.setdefault(frozenset(streams[key]), []).append(key)
    splits = dict(given)
    for keys in groups.values():
        splits |= _cut(keys, shares)
    for stream in sorted({draft.stream for draft in drafts}):
        mine = sorted((key for key, held in streams.items() if stream in held), key=order.__getitem__)
        for split in shares if stream in ("harmful", "benign") else ():
            if not any(splits[key] == split for key in mine):
                raise UserError(
                    f"{where}: the stream {stream!r} has {len(mine)} distinct questions and none in the split {split}: "
                    "add rows, or change the shares."
                )
        for key in [key for key in mine if splits[key] == "test"][test_rows:]:
            splits[key] = ""
    for stream in ("harmful", "benign"):
        if not any(stream in held for held in streams.values()):
            raise UserError(f"{where} has no rows of the stream {stream!r}: attacks and scores need both kinds.")
    return [splits[item(draft)] for draft in drafts]


def _cut(keys: Sequence[str], shares: Mapping[str, float]) -> dict[str, str]:
    """Cut ordered questions at the shares; with three questions or more every split gets one."""
    n = len(keys)
    first, last = round(n * shares["defense"]), round(n * shares["test"])
    if n >= 3:
        first = min(max(1, first), n - 2)
        last = min(max(1, last), n - first - 1)
    return {key: "defense" if at < first else "test" if at >= n - last else "attack" for at, key in enumerate(keys)}
