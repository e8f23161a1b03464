"""The plane of utility and harm: where each attack ended, how it got there, and the attacker's front."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from immunelab.analysis.outcomes import DEFAULT, Thresholds
from immunelab.analysis.variants import Variant, complete, of, present
from immunelab.figures.layout import finish
from immunelab.figures.palette import INK, Style, Theme, defense_style, tint, title_of

LOW, HIGH = -0.07, 1.06  # both axes, with room for markers at the ends
HOVER = "%{text}<br>harmfulness %{y:.1%}, utility %{x:.1%}<extra></extra>"


def harm_against_utility(
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
    defenses = present(points)
    for name in defenses:
        style, mine = defense_style(name, defenses, theme), of(points, name)
        if paths:
            _paths(figure, mine, name, style)
        ends = mine[mine["end"] & (mine["step"] > 0)]
        attacks = f"{len(ends)} {'attack' if len(ends) == 1 else 'attacks'}"
        _markers(figure, ends, f"{title_of(*name)} ({attacks})", name, style, size=10, role="ends")
        _front(figure, of(front, name), name, style)
    figure.update_xaxes(title_text="Utility", range=[LOW, HIGH], tickformat=".0%", tickvals=[0, 0.25, 0.5, 0.75, 1])
    figure.update_yaxes(title_text="Harmfulness", range=[LOW, HIGH], tickformat=".0%", tickvals=[0, 0.25, 0.5, 0.75, 1])
    figure = finish(figure, theme, height=560)
    return figure.update_layout(hovermode="closest", hoversubplots="single")


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


def _paths(figure: go.Figure, mine: pd.DataFrame, name: Variant, style: Style) -> None:
    """The checkpoints of every run, joined in order; a gap between runs."""
    x: list[float | None] = []
    y: list[float | None] = []
    ids: list[str | None] = []
    text: list[str | None] = []
    told = mine.sort_values("step").assign(told=lambda rows: _words(rows))
    for run_id, run in told[["run_id", "utility", "harmfulness", "told"]].groupby("run_id", sort=True):
        x += [*run["utility"], None]
        y += [*run["harmfulness"], None]
        ids += [*[str(run_id)] * len(run), None]
        text += [*run["told"], None]
    figure.add_scatter(
        x=x,
        y=y,
        mode="lines+markers",
        customdata=ids,
        text=text,
        hovertemplate=HOVER,
        legendgroup=name.label,
        showlegend=False,
        meta="paths",
        opacity=0.4,
        line={"color": style.color, "width": 1},
        marker={"symbol": style.marker, "size": 5, "color": style.color},
    )


def _markers(
    figure: go.Figure, rows: pd.DataFrame, label: str, name: Variant, style: Style, *, size: int, role: str
) -> None:
    figure.add_scatter(
        x=rows["utility"],
        y=rows["harmfulness"],
        mode="markers",
        name=label,
        legendgroup=name.label,
        meta=role,
        customdata=rows["run_id"].tolist(),
        text=_words(rows),
        hovertemplate=HOVER,
        cliponaxis=False,
        marker={"symbol": style.marker, "size": size, "color": style.color, "line": {"width": 1, "color": style.color}},
    )


def _front(figure: go.Figure, line: pd.DataFrame, name: Variant, style: Style) -> None:
    if line.empty:
        return
    ordered = line.sort_values("utility")
    # From the left edge: with any smaller utility the attacker has at least this much harm.
    figure.add_scatter(
        x=[0.0, *ordered["utility"]],
        y=[ordered["harmfulness"].iloc[0], *ordered["harmfulness"]],
        mode="lines",
        line={"color": style.color, "dash": style.dash, "width": 2.4, "shape": "vh"},
        name=f"{title_of(*name)}: front",
        legendgroup=name.label,
        showlegend=False,
        hoverinfo="skip",
        meta="front",
    )


def _words(rows: pd.DataFrame) -> Sequence[str]:
    """A checkpoint in words: defense, intensity, seed, step, outcome."""
    told = complete(rows)[["defense", "variant", "learning_rate", "seed", "step", "outcome"]]
    return [
        f"{title_of(defense, variant)}, lr {rate:g}, seed {seed}, step {step:g}" + (f": {outcome}" if outcome else "")
        for defense, variant, rate, seed, step, outcome in told.itertuples(index=False, name=None)
    ]
