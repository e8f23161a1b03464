"""Draw a figure on a page: updated in place, with downloads beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from immunelab.analysis import export
from immunelab.figures.layout import to_html
from immunelab.figures.palette import Theme
from immunelab.ui.navigation import PLOTLY_PATH

VIEW, MOST_VIEW = "zoom", 2000  # where the address holds it, and the longest text that is taken from there
SELECTED = "selected"  # where the address holds what a box has caught

_mount = st.components.v2.component(
    "immunelab_figure",
    html='<div class="immunelab-frame"><div class="immunelab-figure" role="img" tabindex="0"></div>'
    '<div class="immunelab-said" aria-live="polite"></div></div>',
    css=""".immunelab-frame {
  width: 100%;
  overflow-x: auto;
}
.immunelab-figure {
  width: 100%;
}
.immunelab-said {
  position: absolute;
  width: 1px;
  height: 1px;
  overflow: hidden;
  clip-path: inset(50%);
}""",
    js=Path(__file__).with_name("figure.js").read_text(encoding="utf-8"),
    isolate_styles=False,  # Plotly writes its styles into the document
)


def theme() -> Theme:
    """The theme that the browser shows."""
    return "dark" if st.context.theme.type == "dark" else "light"


def show(figure: go.Figure, key: str, alt: str, *, min_width: int = 0, brush: bool = False) -> str | None:
    """Draw a figure under a stable key; `alt` is what a screen reader says. Returns what the clicked point says: a run
    (or group), or "defense|x" for a point over several runs. Narrower than `min_width` pixels it scrolls sideways.
    With `brush` points can be selected by box or lasso: `brushed` tells whose they are. What is zoomed to and hidden
    goes into the page's address, and comes from it.
    """
    base = str(st.get_option("server.baseUrlPath") or "").strip("/")
    data = {
        "figure": figure.to_json(remove_uids=False),
        "height": int(figure.layout.height or 400),
        "alt": alt,
        "minWidth": min_width,
        "brush": brush,
        "view": st.query_params.get(VIEW, "")[:MOST_VIEW],
        "name": f"immunelab-{key}",
        "plotly": (f"/{base}" if base else "") + PLOTLY_PATH,
    }
    none = lambda: None  # noqa: E731 - a trigger needs a callback to be reported
    told = _mount(key=key, data=data, on_clicked_change=none, on_brushed_change=none, on_view_change=none)
    if told.brushed is not None:
        st.session_state[f"{key}-brushed"] = [str(i) for i in json.loads(told.brushed)]
    if told.view:
        st.query_params[VIEW] = told.view[:MOST_VIEW]
    elif told.view == "":
        st.query_params.pop(VIEW, None)
    return told.clicked


def brushed(key: str, known: Iterable[str]) -> list[str]:
    """Those of the `known` runs that the reader has selected in a figure by box or lasso.

    The page's address carries the ends of their ids, which are random: 200 whole ids would be too long for a link.
    """
    ids = list(dict.fromkeys(known))
    selected = st.session_state.get(f"{key}-brushed")
    if selected is None:  # a page just opened
        ends = set(st.query_params.get(SELECTED, "")[:MOST_VIEW].split(".")) - {""}
        return [i for i in ids if i.rpartition("-")[2] in ends]
    if selected:
        st.query_params[SELECTED] = ".".join(i.rpartition("-")[2] for i in selected)
    else:
        st.query_params.pop(SELECTED, None)
    return [i for i in ids if i in set(selected)]


def downloads(
    figure: go.Figure,
    frame: Callable[[], pd.DataFrame],
    key: str,
    title: str,
    notebook: Callable[[], bytes] | None = None,
) -> None:
    """Take it away: CSV of the rows, a self-contained HTML page, and a notebook that draws the figure where there is
    one; PNG and SVG are buttons on the chart itself."""
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="right"):
        st.caption("PNG and SVG: the buttons at the chart's top right", width="content")
        st.download_button(
            "CSV",
            data=lambda: export.csv(frame()),
            file_name=f"immunelab-{key}.csv",
            mime="text/csv",
            on_click="ignore",
            icon=":material/download:",
            key=f"{key}-csv",
        )
        st.download_button(
            "HTML",
            data=lambda: to_html({title: figure}, f"ImmuneLab: {title}").encode(),
            file_name=f"immunelab-{key}.html",
            mime="text/html",
            on_click="ignore",
            icon=":material/download:",
            key=f"{key}-html",
        )
        if notebook is not None:
            st.download_button(
                "Open as notebook",
                data=notebook,
                file_name=f"immunelab-{key}.ipynb",
                mime="application/x-ipynb+json",
                on_click="ignore",
                icon=":material/code:",
                key=f"{key}-notebook",
            )
