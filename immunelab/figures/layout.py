"""What all figures share: titles of axes, the fill between two lines, the last touches, and a page to take away."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from immunelab.figures.palette import Style, Theme, template, tint

AXIS_TITLES = {
    "step": "Attack step",
    "learning_rate": "Attack learning rate",
    "steps": "Attack steps",
    "samples": "Harmful samples",
    "harmful_share": "Share of harmful rows",
    "harmfulness": "Harmfulness",
    "utility": "Utility",
    "refusal_rate": "Refusals",
    "perplexity": "Perplexity",
}
SHARES = ("harmfulness", "utility", "refusal_rate", "repetition", "harmful_share")
_ROLES = ("fill", "opacity", "text", "meta")  # what tells traces of one defense in one panel apart
EVERYTHING = "all"  # uirevision: zoom and hidden items outlive every redraw


def finish(figure: go.Figure, theme: Theme, height: int) -> go.Figure:
    """Our template, a height in pixels, and an identity for every trace: its legend group, axes and role (`meta`)."""
    figure.update_layout(template=template(theme), height=height, uirevision=EVERYTHING, hoversubplots="axis")
    for trace in figure.data:
        trace.uid = identity({name: getattr(trace, name, None) for name in ("legendgroup", "xaxis", "yaxis", *_ROLES)})
    figure.update_layout(legend_y=1 + 22 / (height - 104))  # 22 pixels above the plots; more rows push them down
    return figure


def identity(trace: Mapping[str, Any]) -> str:
    """A stable uid: without it an update in place forgets which lines are hidden."""
    filled, faint, words, meta = (trace.get(name) for name in _ROLES)
    role = meta or ("band" if filled else "raw" if faint else "text" if words is not None else "line")
    # Plotly looks it up in a CSS selector, where brackets of a label would be a syntax error.
    return re.sub(r"[^\w-]", "-", f"{trace.get('legendgroup')} {trace.get('xaxis')} {trace.get('yaxis')} {role}")


def band(
    figure: go.Figure, x: pd.Series, low: pd.Series, high: pd.Series, style: Style, group: str, at: tuple[int, int]
) -> None:
    """Fill between two lines, in the defense's or run's color; not in the legend, and silent under the pointer."""
    figure.add_scatter(
        x=pd.concat([x, x[::-1]]),
        y=pd.concat([high, low[::-1]]),
        fill="toself",
        fillcolor=tint(style.color, 0.16),
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        legendgroup=group,
        showlegend=False,
        row=at[0],
        col=at[1],
    )


def empty(sentence: str, theme: Theme = "light") -> go.Figure:
    """A figure that says why it is empty, for reports; pages show a designed empty state instead."""
    figure = go.Figure()
    figure.add_annotation(text=sentence, x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return finish(figure, theme, height=180)
