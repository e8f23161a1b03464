"""Which defense, made with which settings: two columns of every frame of attacks, and the one label made of them.

`defense` is the method's name. `variant` holds the settings that tell it apart from other models of the same defense
in the frame, such as "beta 0.02", and is empty where nothing has to be told apart.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import pandas as pd

KEYS = ["defense", "variant"]
PINNED = ("undefended", "seam")  # the baseline, and the defense that the lab is about, stand first
MOST_NAMED = 3  # unlike settings that a variant spells out


class Variant(NamedTuple):
    """A defense, and what tells it apart from others of its kind."""

    defense: str
    variant: str = ""

    @property
    def label(self) -> str:
        """As texts and links write it: "seam", "seam (beta 0.02)"."""
        return f"{self.defense} ({self.variant})" if self.variant else self.defense


BASELINE = Variant("undefended")


def complete(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with a column `variant`, empty where it had none: nothing was told apart."""
    return frame if "variant" in frame else frame.assign(variant="")


def labels(frame: pd.DataFrame) -> pd.Series:
    """The label of each row."""
    known = complete(frame)
    pairs = list(zip(known["defense"].tolist(), known["variant"].tolist(), strict=True))
    words = {pair: Variant(*pair).label for pair in set(pairs)}
    return pd.Series([words[pair] for pair in pairs], index=frame.index, dtype=object)


def present(frame: pd.DataFrame) -> list[Variant]:
    """The variants that a frame has rows of, the undefended model first, then by label."""
    found = complete(frame)[KEYS].drop_duplicates().itertuples(index=False, name=None)
    return sorted((Variant(*pair) for pair in found), key=lambda v: (v != BASELINE, v.label))


def pinned_first(found: Iterable[Variant]) -> list[Variant]:
    """The undefended model and SEAM first, the others by label."""
    return sorted(found, key=lambda v: (_place(v), v.label))


def of(frame: pd.DataFrame, variant: Variant) -> pd.DataFrame:
    """The rows of one variant."""
    frame = complete(frame)
    return frame[(frame["defense"] == variant.defense) & (frame["variant"] == variant.variant)]


def each(frame: pd.DataFrame, sort: bool = True) -> Iterator[tuple[Variant, pd.DataFrame]]:
    """Every variant with its rows, sorted, or in the order in which they come."""
    for (defense, variant), mine in complete(frame).groupby(KEYS, sort=sort):
        yield Variant(str(defense), str(variant)), mine


def among(frame: pd.DataFrame, wanted: Sequence[Variant]) -> pd.DataFrame:
    """The rows of some variants."""
    these = set(wanted)  # tuples, as the pairs are
    known = complete(frame)
    pairs = zip(known["defense"].tolist(), known["variant"].tolist(), strict=True)
    return frame[[pair in these for pair in pairs]]


def told_apart(curves: pd.DataFrame) -> pd.DataFrame:
    """`curves` with a column `variant`, made of `settings` (JSON, as the store keeps them) where one defense was
    recorded with several.

    Without this, runs of unlike settings would share one band.
    """
    known = curves[["defense", "settings"]].dropna().drop_duplicates()
    words: dict[tuple[Any, Any], str] = {}
    for defense, mine in known.groupby("defense"):
        made = {text: json.loads(text) for text in mine["settings"]}
        names = sorted({name for settings in made.values() for name in settings})
        unlike = [n for n in names if len({json.dumps(settings.get(n)) for settings in made.values()}) > 1]
        kinds = sorted({json.dumps([settings.get(n) for n in unlike]) for settings in made.values()})
        for text, settings in made.items():
            number = kinds.index(json.dumps([settings.get(n) for n in unlike])) + 1
            spelled = ", ".join(f"{n.replace('_', ' ')} {_plain(settings.get(n))}" for n in unlike)
            words[defense, text] = spelled if len(unlike) <= MOST_NAMED else f"settings {number} of {len(kinds)}"
    found = [words.get(pair, "") for pair in zip(curves["defense"], curves["settings"], strict=True)]
    return curves.assign(variant=pd.Series(found, index=curves.index, dtype=object))


def _place(variant: Variant) -> int:
    return PINNED.index(variant.defense) if variant.defense in PINNED else len(PINNED)


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
