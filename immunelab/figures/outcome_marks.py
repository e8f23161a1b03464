"""Outcomes drawn into a chart: a strip of words under the curves, and marks at their ends. No Streamlit here."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from immunelab.figures.palette import INK, OUTCOME_SYMBOLS, Theme, defense_style, title_of


def strip(figure: go.Figure, bands: pd.DataFrame, x: str, defenses: Sequence[str], row: int, theme: Theme) -> None:
    """In its own row of the figure: the worst outcome of each defense at each x, as a symbol and a word."""
    cells = bands.drop_duplicates(["defense", x])
    places = sides(sorted(cells[x].unique()), logarithmic=x in ("learning_rate", "samples"))
    for name in defenses:
        style, mine = defense_style(name, defenses, theme), cells[cells["defense"] == name]
        shown = mine["outcome"].fillna("not scored")
        figure.add_scatter(
            x=mine[x],
            y=[title_of(name)] * len(mine),
            mode="markers+text",
            marker={
                "symbol": [OUTCOME_SYMBOLS.get(o, "line-ew") for o in shown],
                "size": 10,
                "color": style.color,
                "line": {"width": 1.5, "color": style.color},
            },
            text=[o.replace("-and-", "-and-<br>").replace("self-", "self-<br>") for o in shown],
            textposition=[places[v] for v in mine[x]],
            textfont={"size": 11, "color": INK[theme]["text"]},
            hovertext=mine["outcomes"],
            hovertemplate="%{hovertext}<extra></extra>",
            cliponaxis=False,
            legendgroup=name,
            showlegend=False,
            row=row,
            col=1,
        )
    figure.update_yaxes(
        type="category",
        showgrid=False,
        row=row,
        col=1,
        range=[len(defenses) - 0.2, -0.7],
        ticks="",
        categoryorder="array",
        categoryarray=[title_of(d) for d in defenses],
    )


def sides(values: Sequence[float], logarithmic: bool) -> dict[float, str]:
    """Below, but above where the word of the value before would be run into."""
    at = [math.log(v) if logarithmic and v > 0 else v for v in values]
    span, places = (at[-1] - at[0]) or 1.0, {values[0]: "bottom center"}
    for before, value, left, right in zip(values, values[1:], at, at[1:], strict=False):
        near = (right - left) / span < 0.16 and places[before] == "bottom center"
        places[value] = "top center" if near else "bottom center"
    return places


def marked(
    figure: go.Figure, marks: pd.DataFrame, metrics: Sequence[str], defenses: Sequence[str], theme: Theme
) -> None:
    """Single points with their outcome: `marks` has defense, step, metric, mean, outcome."""
    last: dict[str, float] = {}
    for mark in marks.sort_values("mean", ascending=False).to_dict("records"):
        crowded = last.get(mark["metric"], 2.0) - mark["mean"] < 0.12
        last[mark["metric"]] = mark["mean"]
        style, row = defense_style(mark["defense"], defenses, theme), metrics.index(mark["metric"]) + 1
        figure.add_scatter(
            x=[mark["step"]],
            y=[mark["mean"]],
            mode="markers+text",
            text=[mark["outcome"]],
            textposition="bottom left" if crowded or mark["mean"] > 0.85 else "top left",
            textfont={"size": 12, "color": style.color},
            marker={
                "symbol": OUTCOME_SYMBOLS[mark["outcome"]],
                "size": 13,
                "color": style.color,
                "line": {"width": 2, "color": INK[theme]["paper"]},
            },
            cliponaxis=False,
            hoverinfo="skip",
            legendgroup=mark["defense"],
            showlegend=False,
            row=row,
            col=1,
        )
