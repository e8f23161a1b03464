"""Progress of runs in a notebook: one piece of HTML that is drawn anew in place, so that no widgets are needed."""

from __future__ import annotations

import html
import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

ROW = (
    '<div style="display:flex;gap:12px;align-items:center"><span style="min-width:16em">{title}</span>'
    '<progress value="{share:.3f}" max="1" aria-label="{title}"></progress><span>{note}</span></div>'
)


class Bar(NamedTuple):
    """One bar: what it is of, how far that is (0 to 1), and what is said behind it."""

    title: str
    share: float
    note: str


def markup(lines: Sequence[str], bars: Sequence[Bar]) -> str:
    """What has ended, a line each, and a bar for what is under way. Everything is escaped."""
    said = "".join(f"<div>{html.escape(line)}</div>" for line in lines)
    return said + "".join(ROW.format(title=html.escape(b.title), share=b.share, note=html.escape(b.note)) for b in bars)


class Place:
    """A place in a notebook's output that can be written anew. The text is for whoever shows no HTML."""

    def __init__(self) -> None:
        self.handle: Any = None
        self.shown = ""

    def show(self, lines: Sequence[str], bars: Sequence[Bar]) -> None:
        """Draw, if anything has changed."""
        text = markup(lines, bars)
        if text == self.shown:
            return
        self.shown = text
        data: Mapping[str, str] = {
            "text/html": text,
            "text/plain": "\n".join([*lines, *(f"{b.title}: {b.share:.0%} {b.note}".rstrip() for b in bars)]),
        }
        display = importlib.import_module("IPython.display").display  # a notebook has it
        if self.handle is None:
            self.handle = display(data, raw=True, display_id=True)
        else:
            self.handle.update(data, raw=True)
