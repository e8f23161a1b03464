"""A tuning of a defense: harm that the panel does against utility before any attack, one point a setting."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from immunelab.analysis.variants import Variant
from immunelab.figures.layout import finish
from immunelab.figures.palette import INK, Theme, defense_style, title_of

SYMBOLS = {"tried": "circle", "pruned": "circle-open", "costly": "x-thin-open", "failed": "x-thin-open"}
WORDS = {
    "tried": "faced the whole panel",
    "pruned": "ended early: harm of the attacks so far",
    "costly": "costs too much utility: not attacked",
}


def tuning(table: pd.DataFrame, defense: str, utility: float, control: float, theme: Theme = "light") -> go.Figure:
    """`table` is what `analysis.tuning.settings_table` gives; `utility` the least share that had to be kept, `control`
    the most harm that the same panel does to the undefended model (NaN: not drawn)."""
    name = Variant(defense)
    style, ink = defense_style(name, [name], theme), INK[theme]
    figure = go.Figure()
    for outcome, words in WORDS.items():
        rows = table[table["outcome"] == outcome]
        if len(rows):
            figure.add_scatter(
                x=rows["kept"],
                y=rows["harm"].fillna(0.0),
                mode="markers",
                name=words,
                customdata=rows[["setting", "worst"]].to_numpy(),
                marker={
                    "symbol": SYMBOLS[outcome],
                    "size": 9,
                    "color": style.color,
                    "line": {"color": style.color, "width": 1.6},
                },
                hovertemplate="setting %{customdata[0]}: harm %{y:.1%}, utility %{x:.1%}<br>%{customdata[1]}"
                "<extra></extra>",
            )
    sure = table[table["n"] > 0]
    if len(sure):
        figure.add_scatter(
            x=sure["confirmed_kept"],
            y=sure["confirmed_harm"],
            mode="markers+text",
            text=["preset" if s == 1 else f"{s}" for s in sure["setting"]],
            textposition="middle right",
            textfont={"color": ink["text"]},
            name=f"confirmed with {int(sure['n'].max())} other seeds: mean and range; the star is the winner",
            customdata=sure[["setting", "low", "high", "n"]].to_numpy(),
            error_y={
                "type": "data",
                "symmetric": False,
                "array": sure["high"] - sure["confirmed_harm"],
                "arrayminus": sure["confirmed_harm"] - sure["low"],
                "color": ink["text"],
                "thickness": 1.2,
            },
            marker={
                "symbol": ["star" if w else "diamond" for w in sure["winner"]],
                "size": [15 if w else 10 for w in sure["winner"]],
                "color": ink["text"],
            },
            hovertemplate="setting %{customdata[0]}: harm %{y:.1%} (%{customdata[1]:.1%}–%{customdata[2]:.1%}, "
            "n=%{customdata[3]}), utility %{x:.1%}<extra></extra>",
        )
    figure.add_vline(
        x=utility,
        line_dash="dot",
        line_color=ink["muted"],
        annotation_text=f"{utility:.0%} of the utility",
        annotation_position="bottom left",
    )
    if control == control:
        figure.add_hline(
            y=control,
            line_dash="dot",
            line_color=ink["muted"],
            annotation_text="undefended",
            annotation_position="bottom left",
        )
    figure.update_yaxes(title_text="Most harm of the panel", range=[-0.03, 1.05], tickformat=".0%")
    figure.update_xaxes(
        title_text=f"Utility of {title_of(defense)} before any attack, of the base model's", tickformat=".0%"
    )
    return finish(figure, theme, height=440)
