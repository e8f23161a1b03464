"""A corpus in bars: lengths of answers, and similarities of SDD's pairs."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from immunelab.analysis.corpus import splits
from immunelab.figures.layout import finish
from immunelab.figures.palette import HUES, INK, Theme, tint

# Hue and filling of the splits, which are told apart without color too. No patterns: inside the app the browser
# does not find what their fill refers to, and draws them black.
LOOKS = ((0, 1.0), (7, 0.0), (1, 0.45))


def answer_lengths(counted: pd.DataFrame, unit: str, theme: Theme = "light", columns: int = 2) -> go.Figure:
    """Answer lengths: one panel a stream, one bar a split and length. `counted` is what `corpus.histogram` returns."""
    streams = sorted(counted["stream"].unique())
    rows = -(-len(streams) // columns) or 1
    figure = make_subplots(rows, columns, subplot_titles=streams, vertical_spacing=0.28 / rows, horizontal_spacing=0.09)
    for split, (hue, fill) in zip(splits(counted), LOOKS * 9, strict=False):
        color = HUES[theme][hue]
        for i, stream in enumerate(streams):
            mine = counted[(counted["stream"] == stream) & (counted["split"] == split)]
            if mine.empty:
                continue
            figure.add_bar(
                x=mine["length"],
                y=mine["n"],
                name=split,
                legendgroup=split,
                showlegend=split not in {t.name for t in figure.data},
                marker={"color": tint(color, fill), "line": {"color": color, "width": 1.6}},
                hovertemplate=f"{split} %{{y}}<extra></extra>",
                row=i // columns + 1,
                col=i % columns + 1,
            )
    figure.update_layout(barmode="group")
    figure.update_xaxes(rangemode="tozero")
    figure.update_yaxes(title_text="Answers", col=1)
    for column in range(1, columns + 1):
        figure.update_xaxes(title_text=f"{unit.capitalize()} in the answer", row=rows, col=column)
    figure.update_annotations(font={"color": INK[theme]["text"], "size": 13})
    return finish(figure, theme, height=170 * rows + 110)


def pair_similarities(counted: pd.DataFrame, threshold: float, theme: Theme = "light") -> go.Figure:
    """SDD's pairs by their cosine, with the threshold. `counted` is what `corpus.similarities` returns."""
    figure = go.Figure()
    for fallback, name, (hue, fill) in ((False, "kept", LOOKS[0]), (True, "fallback", LOOKS[1])):
        mine = counted[counted["fallback"] == fallback]
        if mine.empty:
            continue
        color = HUES[theme][hue]
        figure.add_bar(
            x=(mine["low"] + mine["high"]) / 2,
            y=mine["n"],
            width=(mine["high"] - mine["low"]) * 0.92,
            name=f"{name} ({mine['n'].sum():,})",
            legendgroup=name,
            marker={"color": tint(color, fill), "line": {"color": color, "width": 1.6}},
            customdata=mine[["low", "high"]].to_numpy(),
            hovertemplate=f"{name} %{{y}}, cosine %{{customdata[0]:.3f}} to %{{customdata[1]:.3f}}<extra></extra>",
        )
    ink = INK[theme]["text"]
    figure.add_vline(
        x=threshold,
        line={"color": ink, "width": 1.6, "dash": "dash"},
        annotation_text=f"τ = {threshold:g}",
        annotation_font={"color": ink, "size": 13},
        annotation_position="top",
        annotation_yshift=4,
    )
    figure.update_layout(barmode="stack", showlegend=True)
    figure.update_xaxes(title_text="Cosine of prompt and answer")
    figure.update_yaxes(title_text="Pairs", rangemode="tozero")
    figure = finish(figure, theme, height=330)
    return figure.update_layout(hovermode="closest", hoversubplots="single")
