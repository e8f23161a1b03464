"""Who judges the answers of a user's corpus: tables of `corpus.toml` that are named like the evaluations they set.

    harm = "harm-classifier"    # whose number is called harmfulness; needed only where two judges have a table

    [harm-classifier]
    judge = "my-classifier"     # a knob of the evaluation

Knobs are checked when the evaluation is configured, because the registry imports torch and this does not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from immunelab.errors import UserError, unknown

WORDS = "harmful-answers"  # no judge: words in common with the reference
JUDGES = ("harm-classifier", "strongreject")
TABLES = (*JUDGES, WORDS)
HOW = ("calls", "at_once", "patience", "price_in", "price_out")  # how a judge is asked, and not what it answers
SECRET = re.compile(r"(^|_)(key|apikey|token|secret|password|authorization)$", re.IGNORECASE)
LONGEST = 480  # characters of the text that a run's identity holds


class Judging(NamedTuple):
    """The evaluation whose score is called harmfulness, and the settings of each evaluation that has a table."""

    harm: str
    settings: dict[str, dict[str, Any]]

    @property
    def evaluations(self) -> tuple[str, ...]:
        """All evaluations that measure harm, first the one that counts; words in common are always among them."""
        return tuple(dict.fromkeys((self.harm, *self.settings, WORDS)))

    @property
    def text(self) -> str:
        """Judges and settings in words, as part of a run's identity; empty without a judge."""
        if self.harm == WORDS and not self.settings:
            return ""
        parts = []
        for name in self.evaluations:
            kept = {key: value for key, value in self.settings.get(name, {}).items() if key not in HOW}
            said = ", ".join(f"{key}={json.dumps(value)}" for key, value in sorted(kept.items()))
            parts.append(f"{name}({said})" if said else name)
        whole = "; ".join(parts)
        digest = hashlib.sha256(whole.encode()).hexdigest()[:12]
        return whole if len(whole) <= LONGEST else f"{whole[: LONGEST - 20]}… #{digest}"

    def located(self, folder: Path) -> dict[str, dict[str, Any]]:
        """The settings; a classifier beside the description gets its full path."""
        found = {name: dict(values) for name, values in self.settings.items()}
        classifier = found.get(JUDGES[0], {})
        if isinstance(classifier.get("judge"), str):
            with contextlib.suppress(OSError):  # no folder can have this name; the loader will say so
                place = folder / classifier["judge"]
                classifier["judge"] = str(place) if place.is_dir() else classifier["judge"]
        return found


def read(found: Mapping[str, Any], where: str) -> Judging:
    """The judges that a `corpus.toml` names; UserErrors name the file and the wrong key."""
    settings: dict[str, dict[str, Any]] = {}
    for name in TABLES:
        if name not in found:
            continue
        settings[name] = dict(found[name])
        for key, value in settings[name].items():
            if SECRET.search(key) or (key == "endpoint" and isinstance(value, str) and re.search(r"[@?#]", value)):
                raise UserError(
                    f"{where}, {name}: {key} holds a name, a password or a key, and the record of each run "
                    "copies this file: take it out, and put the key into the environment variable IMMUNELAB_JUDGE_KEY."
                )
            if not isinstance(value, str | bool | int | float):
                raise UserError(f"{where}, {name}: {key} is a text, a number or true/false, and got {value!r:.80}.")
    judges = [name for name in JUDGES if name in settings]
    harm = found.get("harm") or (judges[0] if judges else WORDS)
    if harm not in TABLES:
        raise unknown(f"measure of harm (in {where})", harm, TABLES)
    if len(judges) > 1 and not found.get("harm"):
        raise UserError(
            f"{where} has two judges, {' and '.join(judges)}: say whose number is called harmfulness, such as "
            f'harm = "{judges[0]}"; the other one is recorded beside it, under its own name.'
        )
    return Judging(harm, settings)
