"""ImmuneLab: immunize a language model, attack it by harmful fine-tuning, and see what becomes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from immunelab.lab import Lab
    from immunelab.recording.training import record as record


def open(home: Path | str | None = None) -> Lab:
    """The lab of a home (None: IMMUNELAB_HOME, or ./lab): its runs, frames and figures, and how to make more."""
    from immunelab.lab import Lab

    return Lab(home)


def __getattr__(name: str) -> Any:
    """`record`, which needs torch, when it is first asked for."""
    if name == "record":
        from immunelab.recording.training import record

        return record
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
