"""ImmuneLab: immunize a language model, attack it by harmful fine-tuning, and see what becomes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from immunelab.lab import Lab


def open(home: Path | str | None = None) -> Lab:
    """The lab of a home (None: IMMUNELAB_HOME, or ./lab): its runs, frames and figures, and how to make more."""
    from immunelab.lab import Lab

    return Lab(home)
