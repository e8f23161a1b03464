"""Frame → Plotly figure. No Streamlit here: the pages, the HTML report and notebooks draw the same figures.

One grammar: horizontal is the attacker's effort (or training), each score has its own panel, defenses keep their
color, dash and marker everywhere, bands are minimum to maximum over seeds, dotted lines are thresholds.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from immunelab.analysis.outcomes import DEFAULT, Thresholds
from immunelab.analysis.traces import smooth
from immunelab.figures import outcome_marks
from immunelab.figures.palette import INK, Style, Theme, defense_style, run_styles, template, tint
from immunelab.figures.palette import title_of as title_of

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
HOVER = " %{y:.1%} (%{customdata[0]:.1%}–%{customdata[1]:.1%}, n=%{customdata[2]})<extra></extra>"
# Plotly 4 offers to upload a chart ("Share chart…") unless told not to.
CONFIG = {"displaylogo": False, "responsive": True, "showSendToCloud": False}
EVERYTHING = "all"  # uirevision: zoom and hidden items outlive every redraw


def collapse(
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
    strip below names the worst outcome of each cell. `marks` (defense, step, metric, mean, outcome) marks single
    points, such as the checkpoint that decided an outcome. `at` is a chosen value of x, drawn as a vertical line.
    """
    metrics = [m for m in ("harmfulness", "utility") if m in set(bands["metric"])] or ["harmfulness", "utility"]
    strip = "outcome" in bands.columns and not bands.empty
    heights = [1.0] * len(metrics) + ([0.3 + 0.22 * bands["defense"].nunique()] if strip else [])
    figure = make_subplots(len(heights), 1, shared_xaxes=True, vertical_spacing=0.07, row_heights=heights)
    defenses = sorted(bands["defense"].unique(), key=lambda d: (d != "undefended", d))
    for name in defenses:
        style = defense_style(name, defenses, theme)
        for row, metric in enumerate(metrics, start=1):
            line = bands[(bands["defense"] == name) & (bands["metric"] == metric)].sort_values(x)
            _band(figure, line, x, title_of(name), name, style, row, show_legend=row == 1)
    for row, metric in enumerate(metrics, start=1):
        _score_axis(figure, row, AXIS_TITLES[metric])
        limit = thresholds.harm if metric == "harmfulness" else thresholds.floor(base_utility or float("nan"))
        if limit == limit:
            what = "broken above" if metric == "harmfulness" else "lost below"
            _threshold(figure, row, limit, f"{what} {limit:.0%}", theme)
    if strip:
        outcome_marks.strip(figure, bands, x, defenses, len(heights), theme)
    if marks is not None:
        outcome_marks.marked(figure, marks, metrics, defenses, theme)
    if at is not None:
        line = {"color": INK[theme]["line"], "width": 6}
        figure.add_vline(x=at, line=line, opacity=0.45, layer="below")
    _effort_axis(figure, bands, x, len(heights))
    figure.update_layout(margin={"r": 72})
    return finish(figure, theme, height=190 * len(metrics) + (60 + 42 * len(defenses) if strip else 0) + 90)


def traces(
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


def empty(sentence: str, theme: Theme = "light") -> go.Figure:
    """A figure that says why it is empty, for reports; pages show a designed empty state instead."""
    figure = go.Figure()
    figure.add_annotation(text=sentence, x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return finish(figure, theme, height=180)


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


def _band(
    figure: go.Figure, line: pd.DataFrame, x: str, label: str, name: str, style: Style, row: int, show_legend: bool
) -> None:
    if line.empty:
        return
    if (line["n"] > 1).any():
        _fill(figure, line[x], line["low"], line["high"], style, name, (row, 1))
    seeds = line["n"].max()
    figure.add_scatter(
        x=line[x],
        y=line["mean"],
        name=f"{label} (n={seeds})",
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
        hovertemplate=label + HOVER,
        row=row,
        col=1,
    )


def _fill(
    figure: go.Figure, x: pd.Series, low: pd.Series, high: pd.Series, style: Style, group: str, at: tuple[int, int]
) -> None:
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
        _fill(figure, line["x"], line["low"], line["high"], style, key, at)
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


def _plain(text: str) -> str:
    """A user's label without Plotly's markup and template signs."""
    return text.replace("<", "‹").replace(">", "›").replace("%{", "%_{")


def to_html(figures: Mapping[str, go.Figure], title: str) -> str:
    """A self-contained page (about 5 MB: Plotly is inside) that needs no network."""
    parts = [
        f"<h2>{html.escape(name)}</h2>" + figure.to_html(full_html=False, include_plotlyjs=i == 0, config=CONFIG)
        for i, (name, figure) in enumerate(figures.items())
    ]
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
    return f"{head}<body>{''.join(parts)}</body></html>"
