"""The collapse curve: harmfulness and utility against the attacker's effort, with outcomes in words.

One grammar, here and in the other figures: horizontal is the attacker's effort (or training), each score has its own
panel, defenses keep their color, dash and marker everywhere, bands are minimum to maximum over seeds, dotted lines are
thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from immunelab.analysis.outcomes import DEFAULT, Thresholds
from immunelab.analysis.variants import KEYS, Variant, complete, of, present
from immunelab.figures.layout import AXIS_TITLES, SHARES, band, finish
from immunelab.figures.palette import INK, OUTCOME_SYMBOLS, Style, Theme, defense_style, title_of

HOVER = " %{y:.1%} (%{customdata[0]:.1%}–%{customdata[1]:.1%}, n=%{customdata[2]})<extra></extra>"


def collapse_curve(
    bands: pd.DataFrame,
    x: str = "step",
    thresholds: Thresholds = DEFAULT,
    base_utility: float | None = None,
    theme: Theme = "light",
    marks: pd.DataFrame | None = None,
    at: float | None = None,
) -> go.Figure:
    """The collapse curve: one panel a metric, one line a defense, a band over seeds.

    `bands` is what `analysis.collapse.by_step` or `by_intensity` returns. With an `outcome` column (by intensity) a
    strip below names the worst outcome of each cell. `marks` (defense, variant, step, metric, mean, outcome) marks
    single points, such as the checkpoint that decided an outcome. `at` is a chosen value of x: a vertical line.
    """
    metrics = [m for m in ("harmfulness", "utility") if m in set(bands["metric"])] or ["harmfulness", "utility"]
    strip = "outcome" in bands.columns and not bands.empty
    defenses = present(bands)
    heights = [1.0] * len(metrics) + ([0.3 + 0.22 * len(defenses)] if strip else [])
    figure = make_subplots(len(heights), 1, shared_xaxes=True, vertical_spacing=0.07, row_heights=heights)
    for name in defenses:
        style = defense_style(name, defenses, theme)
        for row, metric in enumerate(metrics, start=1):
            line = of(bands[bands["metric"] == metric], name).sort_values(x)
            _curve(figure, line, x, name, style, row, show_legend=row == 1)
    for row, metric in enumerate(metrics, start=1):
        _score_axis(figure, row, AXIS_TITLES[metric])
        limit = thresholds.harm if metric == "harmfulness" else thresholds.floor(base_utility or float("nan"))
        if limit == limit:
            what = "broken above" if metric == "harmfulness" else "lost below"
            _threshold(figure, row, limit, f"{what} {limit:.0%}", theme)
    if strip:
        _strip(figure, bands, x, defenses, len(heights), theme)
    if marks is not None:
        _marks(figure, marks, metrics, defenses, theme)
    if at is not None:
        figure.add_vline(x=at, line={"color": INK[theme]["line"], "width": 6}, opacity=0.45, layer="below")
    _effort_axis(figure, bands, x, len(heights))
    figure.update_layout(margin={"r": 72})
    return finish(figure, theme, height=190 * len(metrics) + (60 + 42 * len(defenses) if strip else 0) + 90)


def _curve(
    figure: go.Figure, line: pd.DataFrame, x: str, defense: Variant, style: Style, row: int, show_legend: bool
) -> None:
    if line.empty:
        return
    title, name = title_of(*defense), defense.label
    if (line["n"] > 1).any():
        band(figure, line[x], line["low"], line["high"], style, name, (row, 1))
    seeds = line["n"].max()
    figure.add_scatter(
        x=line[x],
        y=line["mean"],
        name=f"{title} (n={seeds})",
        legendgroup=name,
        showlegend=show_legend,
        mode="lines+markers",
        line={"color": style.color, "dash": style.dash, "width": 2.4},
        marker={"symbol": style.marker, "size": 7},
        # the last one is what a click says: whose runs stand behind this point
        customdata=[
            [low, high, n, f"{name}|{value!r}"]
            for low, high, n, value in line[["low", "high", "n", x]].itertuples(index=False, name=None)
        ],
        hovertemplate=title + HOVER,
        row=row,
        col=1,
    )


def _score_axis(figure: go.Figure, row: int, title: str) -> None:
    figure.update_yaxes(
        title_text=title, range=[-0.03, 1.03], tickformat=".0%", tickvals=[0, 0.25, 0.5, 0.75, 1], row=row, col=1
    )


def _threshold(figure: go.Figure, row: int, value: float, text: str, theme: Theme) -> None:
    ink = INK[theme]
    figure.add_hline(y=value, line={"color": ink["muted"], "width": 1.2, "dash": "dot"}, row=row, col=1)
    figure.add_annotation(
        text=text.replace(" ", "<br>", 1),
        x=1.005,  # in the margin, where no curve runs through it
        y=value,
        xref="x domain",
        yref="y",
        xanchor="left",
        yanchor="middle",
        align="left",
        showarrow=False,
        font={"size": 11, "color": ink["muted"]},
        row=row,
        col=1,
    )


def _effort_axis(figure: go.Figure, bands: pd.DataFrame, x: str, last: int) -> None:
    values = sorted(bands[x].unique())
    if x in ("learning_rate", "samples") and values and values[0] > 0:
        figure.update_xaxes(type="log", tickvals=values, ticktext=[f"{v:g}" for v in values])
    elif x in SHARES:
        figure.update_xaxes(tickformat=".0%", tickvals=values)
    elif x != "step":
        figure.update_xaxes(tickvals=values)
    figure.update_xaxes(title_text=AXIS_TITLES.get(x, x), row=last, col=1)


def _strip(figure: go.Figure, bands: pd.DataFrame, x: str, defenses: Sequence[Variant], row: int, theme: Theme) -> None:
    """In its own row of the figure: the worst outcome of each defense at each x, as a symbol and a word."""
    cells = complete(bands).drop_duplicates([*KEYS, x])
    places = _sides(sorted(cells[x].unique()), logarithmic=x in ("learning_rate", "samples"))
    for name in defenses:
        style, mine = defense_style(name, defenses, theme), of(cells, name)
        shown = mine["outcome"].fillna("not scored")
        figure.add_scatter(
            x=mine[x],
            y=[title_of(*name)] * len(mine),
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
            legendgroup=name.label,
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
        categoryarray=[title_of(*d) for d in defenses],
    )


def _sides(values: Sequence[float], logarithmic: bool) -> dict[float, str]:
    """Below, but above where the word of the value before would be run into."""
    at = [math.log(v) if logarithmic and v > 0 else v for v in values]
    span, places = (at[-1] - at[0]) or 1.0, {values[0]: "bottom center"}
    for before, value, left, right in zip(values, values[1:], at, at[1:], strict=False):
        near = (right - left) / span < 0.16 and places[before] == "bottom center"
        places[value] = "top center" if near else "bottom center"
    return places


def _marks(
    figure: go.Figure, marks: pd.DataFrame, metrics: Sequence[str], defenses: Sequence[Variant], theme: Theme
) -> None:
    """Single points with their outcome: `marks` has defense, variant, step, metric, mean, outcome."""
    last: dict[str, float] = {}
    for mark in complete(marks).sort_values("mean", ascending=False).to_dict("records"):
        crowded = last.get(mark["metric"], 2.0) - mark["mean"] < 0.12
        last[mark["metric"]] = mark["mean"]
        name = Variant(mark["defense"], mark["variant"])
        style, row = defense_style(name, defenses, theme), metrics.index(mark["metric"]) + 1
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
            legendgroup=name.label,
            showlegend=False,
            row=row,
            col=1,
        )
