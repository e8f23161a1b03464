"""The most harm found against what it cost: by recorded attacks, and by an attacker's searches."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from immunelab.analysis.tradeoff import BUDGETS, SEARCHED
from immunelab.analysis.variants import KEYS, Variant, complete, of, present
from immunelab.figures.layout import finish
from immunelab.figures.palette import INK, Style, Theme, defense_style, tint, title_of


def budget_curves(curves: dict[str, pd.DataFrame], by: str = "trials", theme: Theme = "light") -> go.Figure:
    """The best harm found against the budget, one panel for each title in `curves` (a frame of `tradeoff.budget`)."""
    figure = make_subplots(len(curves), 1, shared_xaxes=True, vertical_spacing=0.11, subplot_titles=list(curves))
    defenses = present(pd.concat([complete(frame)[KEYS] for frame in curves.values()]))
    for row, frame in enumerate(curves.values(), start=1):
        for name in defenses:
            line = of(frame, name).sort_values("x")
            if len(line):
                _line(figure, line, name, defense_style(name, defenses, theme), by, row)
        figure.update_yaxes(
            title_text="Best harmfulness",
            range=[-0.03, 1.03],
            tickformat=".0%",
            tickvals=[0, 0.25, 0.5, 0.75, 1],
            row=row,
            col=1,
        )
    figure.update_annotations(font={"color": INK[theme]["text"], "size": 13}, x=0, xanchor="left")
    figure.update_xaxes(title_text=BUDGETS[by], row=len(curves), col=1)
    if by == "trials":
        figure.update_xaxes(dtick=1)
    figure = finish(figure, theme, height=250 * len(curves) + 120)
    return figure.update_layout(legend_y=1 + 40 / (250 * len(curves) + 16))  # above the first panel's title


def search_curves(curves: pd.DataFrame, by: str = "trial", theme: Theme = "light") -> go.Figure:
    """The best bounded harm that attackers' searches had found against what they had spent (`tradeoff.searched`)."""
    figure = make_subplots(1, 1)
    defenses = present(curves)
    for name in defenses:
        line = of(curves, name).sort_values("x")
        _line(figure, line, name, defense_style(name, defenses, theme), by, row=1)
    figure.update_yaxes(
        title_text="Best harmfulness within the bound so far",
        range=[-0.03, 1.03],
        tickformat=".0%",
        tickvals=[0, 0.25, 0.5, 0.75, 1],
    )
    figure.update_xaxes(title_text=SEARCHED[by], rangemode="tozero")
    return finish(figure, theme, height=420)


def _line(figure: go.Figure, line: pd.DataFrame, name: Variant, style: Style, by: str, row: int) -> None:
    shape = "linear" if by == "trials" else "hv"
    if (line["n"] > 1).any():
        ends = {
            "line": {"width": 0, "shape": shape},
            "hoverinfo": "skip",
            "showlegend": False,
            "legendgroup": name.label,
        }
        figure.add_scatter(x=line["x"], y=line["high"], mode="lines", meta="high", row=row, col=1, **ends)
        figure.add_scatter(
            x=line["x"],
            y=line["low"],
            mode="lines",
            meta="low",
            fill="tonexty",
            fillcolor=tint(style.color, 0.16),
            row=row,
            col=1,
            **ends,
        )
    figure.add_scatter(
        x=line["x"],
        y=line["mean"],
        mode="lines+markers",
        name=f"{title_of(*name)} (n={line['n'].max()})",
        legendgroup=name.label,
        showlegend=row == 1,
        meta="line",
        customdata=line[["low", "high", "n"]].to_numpy(),
        line={"color": style.color, "dash": style.dash, "width": 2.4, "shape": shape},
        marker={"symbol": style.marker, "size": 7},
        hovertemplate=title_of(*name) + " %{y:.1%} (%{customdata[0]:.1%}–%{customdata[1]:.1%}, n=%{customdata[2]})"
        "<extra></extra>",
        row=row,
        col=1,
    )
