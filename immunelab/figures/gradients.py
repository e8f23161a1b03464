"""Gradients: norms and cosines by layer and along attacks, the plane of two of them, and the estimator's error."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from immunelab.analysis.variants import BASELINE, Variant
from immunelab.figures.layout import band, finish
from immunelab.figures.palette import HUES, INK, UNDEFENDED, Theme, defense_style, tint, title_of

PRECISIONS = {"fp32": (0, "solid", "circle"), "bf16": (7, "dash", "square")}  # hue, dash, marker
MOST_NUMBERS = 16  # columns of a heat map in which there is room for them
PANELS = {
    "error": "Relative error",
    "cosine": "Cosine with the exact gradient",
    "displacement": "Displacement ‖θ′−θ‖/ε",
}


def layer_map(frame: pd.DataFrame, name: str, theme: Theme = "light") -> go.Figure:
    """Step × layer. A cosine has a scale with 0 in the middle; a norm has a logarithmic one."""
    table = frame.pivot_table(index="layer", columns="step", values="value", aggfunc="last")
    signed = "cosine" in name
    paper, values = INK[theme]["paper"], table.to_numpy(dtype=float)
    low, high = (UNDEFENDED[theme], HUES[theme][0])
    with np.errstate(divide="ignore", invalid="ignore"):
        shown = values if signed else np.where(values > 0, np.log10(values), np.nan)
    figure = go.Figure(
        go.Heatmap(
            x=[str(s) for s in table.columns],
            y=[str(i) for i in table.index],
            z=shown,
            text=[[f"{v:.2g}" for v in line] for line in values],
            colorscale=[[0, low], [0.5, paper], [1, high]] if signed else [[0, paper], [1, high]],
            zmin=-1 if signed else None,
            zmax=1 if signed else None,
            showscale=False,  # the numbers stand in the cells; a color bar is drawn black inside the app
            texttemplate="%{text}" if len(table.columns) <= MOST_NUMBERS else None,
            hovertemplate="step %{x}, layer %{y}: %{text}<extra></extra>",
            xgap=1,
            ygap=1,
        )
    )
    figure.update_xaxes(title_text="Step", type="category", nticks=14, showgrid=False)
    figure.update_yaxes(title_text="Layer", type="category", showgrid=False)
    figure.update_layout(hovermode="closest")
    return finish(figure, theme, height=max(260, 46 * len(table) + 130))


def cosines_along(
    bands: pd.DataFrame, titles: Mapping[str, str], models: Mapping[str, Variant], theme: Theme = "light"
) -> go.Figure:
    """Cosines along attacks: one panel a scalar, one line a defense, a band over runs. `bands` has group (a key of
    `models`), name, x, value, low, high, n; `titles` names the scalars in words, in the order of the panels."""
    shown = [n for n in titles if n in set(bands["name"])]
    figure = make_subplots(
        len(shown) or 1, 1, shared_xaxes=True, subplot_titles=[titles[n] for n in shown], vertical_spacing=0.1
    )
    defenses = sorted(bands["group"].unique(), key=lambda d: (models[d] != BASELINE, d))
    for defense in defenses:
        title = title_of(*models[defense])
        style = defense_style(models[defense], [models[d] for d in defenses], theme)
        for row, name in enumerate(shown, start=1):
            line = bands[(bands["group"] == defense) & (bands["name"] == name)].sort_values("x")
            if (line["n"] > 1).any():
                band(figure, line["x"], line["low"], line["high"], style, defense, (row, 1))
            figure.add_scatter(
                x=line["x"],
                y=line["value"],
                name=title,
                legendgroup=defense,
                showlegend=row == 1,
                mode="lines+markers",
                line={"color": style.color, "dash": style.dash, "width": 2.2},
                marker={"symbol": style.marker, "size": 7},
                customdata=line["n"],
                hovertemplate=f"{title} %{{y:.3f}} (n=%{{customdata}})<extra></extra>",
                row=row,
                col=1,
            )
    figure.update_yaxes(
        range=[-1.05, 1.05], tickvals=[-1, -0.5, 0, 0.5, 1], zeroline=True, zerolinecolor=INK[theme]["line"]
    )
    figure.update_xaxes(title_text="Attack step", row=len(shown) or 1, col=1)
    figure.update_annotations(font={"color": INK[theme]["text"], "size": 13})
    return finish(figure, theme, height=190 * max(1, len(shown)) + 110)


def gradient_plane(plane: pd.DataFrame, step: int, unit: bool = False, theme: Theme = "light") -> go.Figure:
    """Both gradients in the plane that they span, at the first recorded step (faint) and at `step`, with the way of
    the benign gradient's tip between them. `plane` is what `analysis.gradients.plane` returns."""
    frame = plane[plane["step"] <= step]
    if unit:
        length = frame["benign"].where(frame["benign"] > 0)
        frame = frame.assign(harmful=1.0, x=frame["x"] / length, y=frame["y"] / length)
    figure = go.Figure()
    benign, harmful = HUES[theme][0], UNDEFENDED[theme]
    figure.add_scatter(
        x=frame["x"],
        y=frame["y"],
        mode="lines+markers",
        name="way of the benign gradient",
        legendgroup="way",
        line={"color": tint(benign, 0.4), "width": 1.2, "dash": "dot"},
        marker={"size": 4, "color": tint(benign, 0.5)},
        customdata=frame[["step", "cosine"]].to_numpy(),
        hovertemplate="step %{customdata[0]}: cosine %{customdata[1]:.3f}<extra></extra>",
    )
    for when, row, strong in (("first", frame.iloc[0], False), ("now", frame.iloc[-1], True)):
        words = f"step {row['step']:g}"
        tips = {"harmful": (row["harmful"], 0.0, harmful), "benign": (row["x"], row["y"], benign)}
        for name, (x, y, color) in tips.items():
            ink = color if strong else tint(color, 0.45)
            figure.add_scatter(
                x=[0, x],
                y=[0, y],
                mode="lines+markers",
                name=f"{name}, {words}",
                legendgroup=f"{name} {when}",
                line={"color": ink, "width": 3 if strong else 2, "dash": "solid" if strong else "dash"},
                marker={"size": [0, 12], "symbol": "arrow", "angleref": "previous", "color": ink},
                hovertemplate=f"{name}, {words}: length {row[name]:.4g}<extra></extra>",
            )
    figure.update_xaxes(title_text="Along the harmful gradient", zeroline=True, zerolinecolor=INK[theme]["line"])
    figure.update_yaxes(
        title_text="Across it", scaleanchor="x", scaleratio=1, zeroline=True, zerolinecolor=INK[theme]["line"]
    )
    figure.update_layout(hovermode="closest")
    return finish(figure, theme, height=520)


def estimator_error(estimates: pd.DataFrame, at: float | None = None, theme: Theme = "light") -> go.Figure:
    """Error, cosine and displacement against ε, fp32 beside bf16, both axes of the error logarithmic. `at` marks ε."""
    figure = make_subplots(
        3, 1, shared_xaxes=True, vertical_spacing=0.08, row_heights=[1.5, 1, 1], subplot_titles=list(PANELS.values())
    )
    for precision, (hue, dash, marker) in PRECISIONS.items():
        for row, metric in enumerate(PANELS, start=1):
            line = estimates[(estimates["precision"] == precision) & (estimates["metric"] == metric)]
            figure.add_scatter(
                x=line["epsilon"],
                y=line["value"],
                name=precision,
                legendgroup=precision,
                showlegend=row == 1,
                mode="lines+markers",
                line={"color": HUES[theme][hue], "dash": dash, "width": 2.2},
                marker={"symbol": marker, "size": 7},
                row=row,
                col=1,
                hovertemplate=f"{precision} %{{y:.3g}}<extra></extra>",
            )
    figure.update_xaxes(type="log", exponentformat="power", dtick=1)
    figure.update_xaxes(title_text="ε", row=3, col=1)
    figure.update_yaxes(type="log", exponentformat="power", dtick=1, row=1, col=1)
    figure.update_yaxes(range=[-1.05, 1.05], row=2, col=1)
    figure.update_yaxes(rangemode="tozero", row=3, col=1)
    if at:
        figure.add_vline(x=at, line={"color": INK[theme]["line"], "width": 6}, opacity=0.45, layer="below")
    figure.update_annotations(font={"color": INK[theme]["text"], "size": 13})
    return finish(figure, theme, height=640)
