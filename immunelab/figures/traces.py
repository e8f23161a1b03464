"""The figure of the Traces page: any recorded scalars over training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from immunelab.analysis.traces import smooth
from immunelab.figures.layout import band, finish
from immunelab.figures.palette import INK, Style, Theme, run_styles


def scalar_traces(
    points: pd.DataFrame,
    labels: Mapping[str, str],
    x_title: str = "Step",
    smoothing: float = 0.0,
    log_x: bool = False,
    log_y: bool = False,
    theme: Theme = "light",
    columns: int = 1,
    keys: Sequence[str] | None = None,
) -> go.Figure:
    """Scalars over training: one panel a name, one line a run or group.

    `points` has name, x, value, low, high and either run_id or group; `labels` names the lines, `keys` are all lines
    that colors are to be reserved for (so that filtering does not recolor). Smoothed lines keep the raw line faint.
    """
    key = "group" if "group" in points.columns else "run_id"
    names = sorted(points["name"].unique())
    rows = -(-len(names) // columns) or 1
    figure = make_subplots(
        rows, columns, shared_xaxes="all", subplot_titles=names, vertical_spacing=min(0.1, 0.28 / rows)
    )
    styles = run_styles(keys if keys is not None else points[key].astype(str).unique(), theme)
    for i, name in enumerate(names):
        row, column = i // columns + 1, i % columns + 1
        panel = points[points["name"] == name]
        by_label = sorted(panel.groupby(key), key=lambda group: (str(labels.get(str(group[0]), "")), str(group[0])))
        for line_key, line in by_label:
            style, label = styles[str(line_key)], _plain(labels.get(str(line_key), str(line_key)))
            _trace(figure, line.sort_values("x"), str(line_key), label, style, smoothing, (row, column), i == 0)
        figure.update_yaxes(type="log" if log_y else "linear", row=row, col=column)
    figure.update_xaxes(type="log" if log_x else "linear", showticklabels=True)
    for column in range(1, columns + 1):
        figure.update_xaxes(title_text=x_title, row=rows, col=column)
    figure.update_annotations(font={"color": INK[theme]["text"], "size": 13}, xanchor="center")
    return finish(figure, theme, height=210 * rows + 110)


def _trace(
    figure: go.Figure,
    line: pd.DataFrame,
    key: str,
    label: str,
    style: Style,
    smoothing: float,
    at: tuple[int, int],
    show_legend: bool,
) -> None:
    if (line["high"] > line["low"]).any() and not smoothing:
        band(figure, line["x"], line["low"], line["high"], style, key, at)
    if smoothing:
        figure.add_scatter(
            x=line["x"],
            y=line["value"],
            mode="lines",
            line={"color": style.color, "width": 1},
            opacity=0.25,
            hoverinfo="skip",
            legendgroup=key,
            showlegend=False,
            row=at[0],
            col=at[1],
        )
    figure.add_scatter(
        x=line["x"],
        y=smooth(line["value"], smoothing),
        name=label,
        legendgroup=key,
        showlegend=show_legend,
        mode="lines" if len(line) > 1 else "markers",
        line={"color": style.color, "dash": style.dash, "width": 1.8},
        marker={"symbol": style.marker, "size": 8, "color": style.color},
        customdata=[key] * len(line),
        hovertemplate=f"{label} %{{y:.4g}}<extra></extra>",
        row=at[0],
        col=at[1],
    )


def _plain(text: str) -> str:
    """A user's label without Plotly's markup and template signs."""
    return text.replace("<", "‹").replace(">", "›").replace("%{", "%_{")
