"""What all figures share: titles of axes, the fill between two lines, the last touches, and a page to take away."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping

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
# Plotly 4 offers to upload a chart ("Share chart…") unless told not to.
CONFIG = {"displaylogo": False, "responsive": True, "showSendToCloud": False}
EVERYTHING = "all"  # uirevision: zoom and hidden items outlive every redraw


def finish(figure: go.Figure, theme: Theme, height: int) -> go.Figure:
    """Our template, a height in pixels, and an identity for every trace: its legend group, axes and role (`meta`)."""
    figure.update_layout(template=template(theme), height=height, uirevision=EVERYTHING, hoversubplots="axis")
    for trace in figure.data:  # a stable uid each: without it an update in place forgets which lines are hidden
        filled = getattr(trace, "fill", None)
        role = "band" if filled else "raw" if trace.opacity else "text" if trace.text is not None else "line"
        role = trace.meta or role
        # Plotly looks it up in a CSS selector, where brackets of a label would be a syntax error.
        trace.uid = re.sub(r"[^\w-]", "-", f"{trace.legendgroup} {trace.xaxis} {trace.yaxis} {role}")
    figure.update_layout(legend_y=1 + 22 / (height - 104))  # 22 pixels above the plots; more rows push them down
    return figure


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


def to_html(figures: Mapping[str, go.Figure], title: str) -> str:
    """A self-contained page (about 5 MB: Plotly is inside) that needs no network."""
    parts = [
        f"<h2>{html.escape(name)}</h2>" + figure.to_html(full_html=False, include_plotlyjs=i == 0, config=CONFIG)
        for i, (name, figure) in enumerate(figures.items())
    ]
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
    return f"{head}<body>{''.join(parts)}</body></html>"
