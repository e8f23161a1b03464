"""Knobs → widgets: a form is made from a method's dataclass, so a new method needs no page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from immunelab.method.knobs import Knob

WIDE = 4  # widgets in a row on a wide window


def knob_inputs(knobs: Sequence[Knob], values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """One widget a knob, filled with `values`; returns what the user set. Keys start with `prefix`.

    A changed preset must come with a changed prefix: a widget keeps its own value over the one it is given.
    """
    chosen: dict[str, Any] = {}
    with st.grid(min_column_width=210, vertical_alignment="bottom"):
        for knob in knobs:
            chosen[knob.name] = _input(knob, values.get(knob.name, knob.default), f"{prefix}-{knob.name}")
    return chosen


def caption(knob: Knob) -> str:
    """A knob's label: its name in words and the paper's symbol."""
    words = knob.name.replace("_", " ")
    return f"{words[:1].upper()}{words[1:]}" + (f" ({knob.symbol})" if knob.symbol else "")


def shown(value: Any) -> str:
    """A setting as text: shortest form that reads back the same."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _input(knob: Knob, value: Any, key: str) -> Any:
    label, help_text = caption(knob), f"{knob.help}; {knob.expects()}"
    if knob.kind == "bool":
        return st.toggle(label, value=bool(value), key=key, help=help_text)
    if knob.kind == "choice":
        return st.selectbox(label, knob.choices, index=knob.choices.index(value), key=key, help=help_text)
    if knob.kind == "int":
        low, high = (None if b is None else int(b) for b in (knob.low, knob.high))
        return st.number_input(label, low, high, value=int(value), step=1, key=key, help=help_text)
    if knob.kind == "float":
        # A text, because learning rates and the like are written as 3e-4; `Knob.parse` checks it on launch.
        return st.text_input(label, value=shown(float(value)), key=key, help=help_text)
    return st.text_input(label, value=str(value), key=key, help=help_text)
