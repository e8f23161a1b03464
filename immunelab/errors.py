"""Two kinds of failure: what the user can mend (`UserError`, one sentence, exit code 2) and bugs (everything else)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend: says what was wrong, what was received, and what would work."""


def unknown(what: str, name: object, known: Iterable[str]) -> UserError:
    """The error for a name that is not registered, with near matches."""
    choices, name = sorted(known), str(name)[:200]
    near = difflib.get_close_matches(name, choices, n=3, cutoff=0.5)
    some = ", ".join(choices[:20] + ["…"] * (len(choices) > 20)) or "none"
    hint = f"Did you mean {' or '.join(repr(n) for n in near)}?" if near else f"Known: {some}."
    return UserError(f"There is no {what} called {name!r}. {hint}")
