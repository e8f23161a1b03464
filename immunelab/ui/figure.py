"""Draw a figure on a page: updated in place, with downloads beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from immunelab.ui import export
from immunelab.ui.charts import to_html
from immunelab.ui.navigation import PLOTLY_PATH
from immunelab.ui.palette import Theme

_mount = st.components.v2.component(
    "immunelab_figure",
    html='<div class="immunelab-figure" role="img"></div>',
    css=".immunelab-figure {\n  width: 100%;\n}",
    js=Path(__file__).with_name("figure.js").read_text(encoding="utf-8"),
    isolate_styles=False,  # Plotly writes its styles into the document
)


def theme() -> Theme:
    """The theme that the browser shows."""
    return "dark" if st.context.theme.type == "dark" else "light"


def show(figure: go.Figure, key: str, alt: str) -> str | None:
    """Draw a figure under a stable key; `alt` is what a screen reader says. Returns the run (or group) clicked on."""
    base = str(st.get_option("server.baseUrlPath") or "").strip("/")
    data = {
        "figure": figure.to_json(remove_uids=False),
        "height": int(figure.layout.height or 400),
        "alt": alt,
        "name": f"immunelab-{key}",
        "plotly": (f"/{base}" if base else "") + PLOTLY_PATH,
    }
    return _mount(key=key, data=data, on_clicked_change=lambda: None).clicked


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
