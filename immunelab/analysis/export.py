"""Tables as CSV files in which no cell is a formula: a spreadsheet runs a cell that begins like one.

Streamlit's own tables have a download button that does not guard against this, so tables with text that the lab did not
write itself go through `inert` first.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # how a formula may begin in a spreadsheet


def csv(frame: pd.DataFrame) -> bytes:
    """A frame as CSV in UTF-8, without its index; numbers unchanged, text through `inert`."""
    return inert(frame).to_csv(index=False).encode("utf-8", "replace")


def inert(frame: pd.DataFrame) -> pd.DataFrame:
    """The same frame with an apostrophe before every text and column name that could be a formula."""
    texts = [c for c in range(frame.shape[1]) if not pd.api.types.is_numeric_dtype(frame.dtypes.iloc[c])]
    columns = {c: frame.iloc[:, c].map(_inert) if c in texts else frame.iloc[:, c] for c in range(frame.shape[1])}
    made = pd.DataFrame(columns, index=frame.index)
    made.columns = pd.Index([_inert(name) for name in frame.columns])
    return made


def _inert(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.lstrip(" ").startswith(FORMULA) else value
