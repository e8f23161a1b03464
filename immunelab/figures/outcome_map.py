"""Frame → Plotly figure: outcomes of defenses (rows) along a setting of the attack (columns), words in every cell."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from immunelab.analysis.outcome_table import NOT_SCORED, cell, wide
from immunelab.analysis.outcomes import BROKEN, DEGRADED, DESTROYED, OUTCOMES, RESISTED
from immunelab.analysis.variants import Variant, complete
from immunelab.figures.layout import AXIS_TITLES, finish
from immunelab.figures.palette import HUES, INK, UNDEFENDED, Theme, mix, title_of

ROW = 50  # pixels


def outcome_map(table: pd.DataFrame, x: str = "learning_rate", theme: Theme = "light") -> go.Figure:
    """One row a defense, one column a value of `x`; `table` is `analysis.outcome_table.ladder`'s, of one attack.

    Cells are written out and shaded by outcome, and carry their defense and value for a click.
    """
    table = complete(table)
    shown = table.assign(
        text=[_text(r) for r in table.to_dict("records")],
        code=table["outcome"].map({o: float(i) for i, o in enumerate(OUTCOMES)}),
        key=[f"{Variant(r['defense'], r['variant']).label}|{r[x]!r}" for r in table.to_dict("records")],
        hover=[_hover(r) for r in table.to_dict("records")],
    )
    frames = {name: wide(shown, x, name) for name in ("text", "code", "key", "hover")}
    rows = [title_of(*pair) for pair in frames["text"].index]
    columns = [f"{v:g}" if v == v else "as it is" for v in frames["text"].columns]
    texts = {name: frame.astype(object).where(frame.notna(), "").to_numpy() for name, frame in frames.items()}
    figure = go.Figure(
        go.Heatmap(
            x=columns,
            y=rows,
            z=frames["code"].to_numpy(dtype=float),
            zmin=0,
            zmax=len(OUTCOMES) - 1,
            colorscale=_scale(theme),
            showscale=False,
            xgap=2,
            ygap=2,
            text=texts["text"],
            texttemplate="%{text}",
            textfont={"size": 11, "color": INK[theme]["text"]},
            customdata=texts["key"],
            hovertext=texts["hover"],
            hovertemplate="%{hovertext}<extra></extra>",
        )
    )
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False, ticks="")
    figure.update_xaxes(
        type="category", showgrid=False, ticks="", side="top", title_text=AXIS_TITLES.get(x, x), title_standoff=4
    )
    figure.update_layout(hovermode="closest", margin={"b": 12})
    return finish(figure, theme, height=ROW * len(rows) + 112)


def _text(row: dict[Any, Any]) -> str:
    words, _, scores = cell(row).partition(": ")
    harm, utility = f"{row['harmfulness']:.0%}", f"{row['utility']:.0%}"
    words = words.replace("broken-and-degraded", "broken-and-<br>degraded").replace(" (", "<br>(", 1)
    return f"{words}<br>{harm} · {utility}" if scores else NOT_SCORED


def _hover(row: dict[Any, Any]) -> str:
    return f"{title_of(row['defense'], row['variant'])}: {row['outcomes'] or NOT_SCORED}<br>{cell(row, bands=True)}"


def _scale(theme: Theme) -> list[tuple[float, str]]:
    paper = INK[theme]["paper"]
    shades = {
        BROKEN: (UNDEFENDED[theme], 0.42),
        DEGRADED: (UNDEFENDED[theme], 0.18),
        DESTROYED: (HUES[theme][0], 0.38),
        RESISTED: (HUES[theme][0], 0.14),
    }
    last = len(OUTCOMES) - 1
    return [(i / last, mix(shades[o][0], paper, shades[o][1])) for i, o in enumerate(OUTCOMES)]
