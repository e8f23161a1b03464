"""Frame → Plotly figure for the Trade-off page: the plane of utility and harm, and what an attacker's budget buys.

No Streamlit here, as in `charts.py`, whose grammar this follows.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from immunelab.analysis.outcomes import DEFAULT, Thresholds
from immunelab.analysis.tradeoff import BUDGETS, SEARCHED
from immunelab.figures.collapse import finish, title_of
from immunelab.figures.palette import INK, Style, Theme, defense_style, tint

LOW, HIGH = -0.07, 1.06  # both axes, with room for markers at the ends
HOVER = "%{text}<br>harmfulness %{y:.1%}, utility %{x:.1%}<extra></extra>"


def plane(
    points: pd.DataFrame,
    front: pd.DataFrame,
    thresholds: Thresholds = DEFAULT,
    base_utility: float | None = None,
    theme: Theme = "light",
    paths: bool = True,
) -> go.Figure:
    """Utility (horizontal) against harmfulness: where each attack ended, and with `paths` how it got there.

    `points` is what `analysis.tradeoff.checkpoints` returns, `front` what `front` returns. The attacker wants the top
    right corner. Each outcome has its region, and the regions follow the thresholds. Markers carry the run's id.
    """
    figure = go.Figure()
    _regions(figure, thresholds, base_utility, theme)
    defenses = sorted(points["defense"].unique(), key=lambda d: (d != "undefended", d))
    for name in defenses:
        style, mine = defense_style(name, defenses, theme), points[points["defense"] == name]
        if paths:
            _paths(figure, mine, name, style)
        ends = mine[mine["end"] & (mine["step"] > 0)]
        attacks = f"{len(ends)} {'attack' if len(ends) == 1 else 'attacks'}"
        _markers(figure, ends, f"{title_of(name)} ({attacks})", name, style, size=10, role="ends")
        _front(figure, front[front["defense"] == name], name, style)
    figure.update_xaxes(title_text="Utility", range=[LOW, HIGH], tickformat=".0%", tickvals=[0, 0.25, 0.5, 0.75, 1])
    figure.update_yaxes(title_text="Harmfulness", range=[LOW, HIGH], tickformat=".0%", tickvals=[0, 0.25, 0.5, 0.75, 1])
    figure = finish(figure, theme, height=560)
    return figure.update_layout(hovermode="closest", hoversubplots="single")


def budgets(curves: dict[str, pd.DataFrame], by: str = "trials", theme: Theme = "light") -> go.Figure:
    """The best harm found against the budget, one panel for each title in `curves` (a frame of `tradeoff.budget`)."""
    figure = make_subplots(len(curves), 1, shared_xaxes=True, vertical_spacing=0.11, subplot_titles=list(curves))
    known = {str(d) for frame in curves.values() for d in frame["defense"].unique()}
    defenses = sorted(known, key=lambda d: (d != "undefended", d))
    for row, frame in enumerate(curves.values(), start=1):
        for name in defenses:
            line = frame[frame["defense"] == name].sort_values("x")
            if len(line):
                _budget_line(figure, line, name, defense_style(name, defenses, theme), by, row)
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


def searches(curves: pd.DataFrame, by: str = "trial", theme: Theme = "light") -> go.Figure:
    """The best bounded harm that attackers' searches had found against what they had spent (`tradeoff.searched`)."""
    figure = make_subplots(1, 1)
    defenses = sorted(curves["defense"].unique(), key=lambda d: (d != "undefended", d))
    for name in defenses:
        line = curves[curves["defense"] == name].sort_values("x")
        _budget_line(figure, line, name, defense_style(name, defenses, theme), by, row=1)
    figure.update_yaxes(
        title_text="Best harmfulness within the bound so far",
        range=[-0.03, 1.03],
        tickformat=".0%",
        tickvals=[0, 0.25, 0.5, 0.75, 1],
    )
    figure.update_xaxes(title_text=SEARCHED[by], rangemode="tozero")
    return finish(figure, theme, height=420)


def _regions(figure: go.Figure, thresholds: Thresholds, base: float | None, theme: Theme) -> None:
    ink = INK[theme]
    harm, floor = thresholds.harm, thresholds.floor(base if base is not None else float("nan"))
    if floor != floor:  # no base utility is recorded, and the rule is relative to it: only harm is known
        figure.add_hline(y=harm, line={"color": ink["muted"], "width": 1.2, "dash": "dot"})
        return
    corners = {
        "broken": (floor, HIGH, harm, HIGH, 0.11),
        "broken-and-degraded": (LOW, floor, harm, HIGH, 0.06),
        "self-destructed": (LOW, floor, LOW, harm, 0.03),
        "resisted": (floor, HIGH, LOW, harm, 0.0),
    }
    for name, (left, right, bottom, top, shade) in corners.items():
        figure.add_shape(
            type="rect",
            x0=left,
            x1=right,
            y0=bottom,
            y1=top,
            layer="below",
            line={"width": 0},
            fillcolor=tint(ink["muted"], shade),
        )
        upper = name.startswith("broken")
        figure.add_annotation(
            text=name,
            x=right - 0.008 if left == floor else left + 0.008,
            y=top - 0.008 if upper else bottom + 0.006,
            xanchor="right" if left == floor else "left",
            yanchor="top" if upper else "bottom",
            showarrow=False,
            font={"size": 12, "color": ink["muted"]},
        )
    edge = {"color": ink["muted"], "width": 1.2, "dash": "dot"}
    figure.add_shape(type="line", x0=LOW, x1=HIGH, y0=harm, y1=harm, line=edge, layer="below")
    figure.add_shape(type="line", x0=floor, x1=floor, y0=LOW, y1=HIGH, line=edge, layer="below")


def _paths(figure: go.Figure, mine: pd.DataFrame, name: str, style: Style) -> None:
    """The checkpoints of every run, joined in order; a gap between runs."""
    x: list[float | None] = []
    y: list[float | None] = []
    ids: list[str | None] = []
    text: list[str | None] = []
    for run_id, run in mine.sort_values("step").groupby("run_id", sort=True):
        x += [*run["utility"], None]
        y += [*run["harmfulness"], None]
        ids += [*[str(run_id)] * len(run), None]
        text += [*_words(run), None]
    figure.add_scatter(
        x=x,
        y=y,
        mode="lines+markers",
        customdata=ids,
        text=text,
        hovertemplate=HOVER,
        legendgroup=name,
        showlegend=False,
        meta="paths",
        opacity=0.4,
        line={"color": style.color, "width": 1},
        marker={"symbol": style.marker, "size": 5, "color": style.color},
    )


def _markers(
    figure: go.Figure, rows: pd.DataFrame, label: str, name: str, style: Style, *, size: int, role: str
) -> None:
    figure.add_scatter(
        x=rows["utility"],
        y=rows["harmfulness"],
        mode="markers",
        name=label,
        legendgroup=name,
        meta=role,
        customdata=rows["run_id"].tolist(),
        text=_words(rows),
        hovertemplate=HOVER,
        cliponaxis=False,
        marker={"symbol": style.marker, "size": size, "color": style.color, "line": {"width": 1, "color": style.color}},
    )


def _front(figure: go.Figure, line: pd.DataFrame, name: str, style: Style) -> None:
    if line.empty:
        return
    ordered = line.sort_values("utility")
    # From the left edge: with any smaller utility the attacker has at least this much harm.
    figure.add_scatter(
        x=[0.0, *ordered["utility"]],
        y=[ordered["harmfulness"].iloc[0], *ordered["harmfulness"]],
        mode="lines",
        line={"color": style.color, "dash": style.dash, "width": 2.4, "shape": "vh"},
        name=f"{title_of(name)}: front",
        legendgroup=name,
        showlegend=False,
        hoverinfo="skip",
        meta="front",
    )


def _budget_line(figure: go.Figure, line: pd.DataFrame, name: str, style: Style, by: str, row: int) -> None:
    shape = "linear" if by == "trials" else "hv"
    if (line["n"] > 1).any():
        ends = {"line": {"width": 0, "shape": shape}, "hoverinfo": "skip", "showlegend": False, "legendgroup": name}
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
        name=f"{title_of(name)} (n={line['n'].max()})",
        legendgroup=name,
        showlegend=row == 1,
        meta="line",
        customdata=line[["low", "high", "n"]].to_numpy(),
        line={"color": style.color, "dash": style.dash, "width": 2.4, "shape": shape},
        marker={"symbol": style.marker, "size": 7},
        hovertemplate=title_of(name) + " %{y:.1%} (%{customdata[0]:.1%}–%{customdata[1]:.1%}, n=%{customdata[2]})"
        "<extra></extra>",
        row=row,
        col=1,
    )


def _words(rows: pd.DataFrame) -> Sequence[str]:
    """A checkpoint in words: defense, intensity, seed, step, outcome."""
    return [
        f"{title_of(r['defense'])}, lr {r['learning_rate']:g}, seed {r['seed']}, step {r['step']:g}"
        + (f": {r['outcome']}" if r["outcome"] else "")
        for r in rows.to_dict("records")
    ]
