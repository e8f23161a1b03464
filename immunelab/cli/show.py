"""What the commands print: tables for people, strict JSON for programs, progress of runs on standard error."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import pandas as pd

# What goes to a file or a pipe is not folded at 80 columns.
out = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
err = Console(stderr=True, highlight=False)

OUTCOME_STYLE = {
    "broken": "bold red",
    "broken-and-degraded": "magenta",
    "self-destructed": "yellow",
    "resisted": "green",
}


def emit(data: Any) -> None:
    """Strict JSON on standard output; what is not finite becomes null."""
    print(json.dumps(finite(data), indent=1, allow_nan=False, default=str))


def finite(data: Any) -> Any:
    """The same data with null where a float is NaN or infinite, which JSON can't say."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {str(key): finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return data


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A frame's rows as plain data."""
    rows: list[dict[str, Any]] = json.loads(frame.to_json(orient="records", date_format="iso", double_precision=15))
    return rows


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "", right: Sequence[str] = ()) -> None:
    """A table on standard output. Cells are printed as they are: what a model wrote can't style the terminal."""
    grid = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):  # the first two columns hold what is typed again: never folded
        grid.add_column(column, justify="right" if column in right else "left", overflow="fold", no_wrap=i < 2)
    for row in rows:
        grid.add_row(*[cell if isinstance(cell, Text) else Text("" if cell is None else str(cell)) for cell in row])
    out.print(grid)


def outcome(label: str | None) -> Text:
    """An outcome in its color, always with its word."""
    return Text(label or "–", style=OUTCOME_STYLE.get(label or "", ""))
