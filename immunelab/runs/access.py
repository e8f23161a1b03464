"""Whether this process may change the lab. Where it may not, everything recorded can be looked at, and nothing else.

`IMMUNELAB_READ_ONLY` is for a lab that is shown to strangers: no run can be started, stopped, changed or deleted, and
no corpus or model is read but the one that ships. What writes or starts anything asks here. Standard library.
"""

from __future__ import annotations

import os

from immunelab.errors import UserError

SETTING = "IMMUNELAB_READ_ONLY"


class ReadOnly(UserError):
    """What was asked for would change a lab that is open for reading only."""


def read_only() -> bool:
    """Whether this process may only look. Any text but 0 in the environment variable says so."""
    return os.environ.get(SETTING, "").strip() not in ("", "0")


def refuse(what: str) -> None:
    """Raise ReadOnly where this process may only look; `what` ends the sentence "…, so …"."""
    if read_only():
        raise ReadOnly(f"This lab is open for reading only, so {what}.")
