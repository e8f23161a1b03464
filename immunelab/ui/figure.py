"""Draw a figure on a page: updated in place, with downloads beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from immunelab.analysis import export
from immunelab.figures import browser
from immunelab.figures.browser import to_html
from immunelab.figures.palette import Theme
from immunelab.figures.sliders import Slider, Sliders
from immunelab.ui.navigation import PLOTLY_PATH

VIEW, MOST_VIEW = "zoom", 2000  # where the address holds it, and the longest text that is taken from there
RESTED = "rested"  # in the session, until it is asked for
SELECTED = "selected"  # where the address holds what a box has caught
NOT_RECORDED = "Nobody has run this one yet; the picture is of the last recorded position."

_mount = st.components.v2.component(
    "immunelab_figure",
    html=browser.HTML,
    css=browser.CSS,
    js=browser.component("drawFigure", "sliders", "figure"),
    isolate_styles=False,  # Plotly writes its styles into the document
)
_mount_answers = st.components.v2.component(
    "immunelab_answers",
    html=browser.ANSWERS_HTML,
    css=browser.CSS,
    js=browser.component("drawAnswers", "sliders", "answers"),
    isolate_styles=False,
)


def theme() -> Theme:
    """The theme that the browser shows."""
    return "dark" if st.context.theme.type == "dark" else "light"


def shared(figure: go.Figure) -> str:
    """A figure as JSON, which sessions may share: a figure itself must not be read by two threads at once."""
    return str(figure.to_json(remove_uids=False))


def show(
    figure: go.Figure | str,
    key: str,
    alt: str,
    *,
    min_width: int = 0,
    brush: bool = False,
    sliders: Sliders | None = None,
    missing: str = NOT_RECORDED,
) -> str | None:
    """Draw a figure, or one that sessions share as JSON, under a stable key; `alt` is what a screen reader says.

    Returns what the clicked point says: a run (or group), or "defense|x" for a point over several runs. Narrower than
    `min_width` pixels it scrolls sideways. With `brush` points can be selected by box or lasso: `brushed` tells whose
    they are. What is zoomed to and hidden goes into the page's address, and comes from it.

    `sliders` change it in the browser; when a handle rests, the address holds where (`at` reads it), and the page is
    drawn anew. `missing` is said where nothing is recorded.
    """
    base = str(st.get_option("server.baseUrlPath") or "").strip("/")
    text = figure if isinstance(figure, str) else shared(figure)
    data = {
        "figure": text,
        "height": int(json.loads(text)["layout"].get("height") or 400),
        "alt": alt,
        "minWidth": min_width,
        "brush": brush,
        "view": st.query_params.get(VIEW, "")[:MOST_VIEW],
        "name": f"immunelab-{key}",
        "plotly": (f"/{base}" if base else "") + PLOTLY_PATH,
    }
    if sliders is not None:
        data |= {"sliders": sliders.json, "missing": missing}
    none = lambda: None  # noqa: E731 - a trigger needs a callback to be reported
    told = _mount(
        key=key,
        data=data,
        on_clicked_change=none,
        on_brushed_change=none,
        on_view_change=none,
        on_picked_change=lambda: _rested(key, sliders),
    )
    if told.brushed is not None:
        st.session_state[f"{key}-brushed"] = [str(i) for i in json.loads(told.brushed)]
    if told.view:
        st.query_params[VIEW] = told.view[:MOST_VIEW]
    elif told.view == "":
        st.query_params.pop(VIEW, None)
    return told.clicked


def show_answers(key: str, sliders: Sliders, columns: int, missing: str = NOT_RECORDED) -> None:
    """Answers as cards in so many columns, which `sliders` change in the browser; as with a figure's."""
    data = {"sliders": sliders.json, "columns": columns, "missing": missing}
    _mount_answers(key=key, data=data, on_picked_change=lambda: _rested(key, sliders))


def _rested(key: str, sliders: Sliders | None) -> None:
    """A handle has come to rest: the address says where."""
    texts = json.loads(st.session_state[key].picked or "[]")
    st.session_state[RESTED] = True
    for slider, text in zip(sliders.sliders if sliders else (), texts, strict=False):
        st.query_params[slider.key] = str(text)


def rested() -> bool:
    """Whether the page is drawn because the reader has just let a slider go; said once."""
    return bool(st.session_state.pop(RESTED, False))


def at(slider: Slider, default: float) -> float:
    """Where a slider stands: what the address says, or the default."""
    text = st.query_params.get(slider.key)
    return default if text is None else slider.value(text)


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


def _page(figure: go.Figure | str, title: str, sliders: Sliders | None) -> bytes:
    drawn = go.Figure(json.loads(figure)) if isinstance(figure, str) else figure
    return to_html({title: drawn}, f"ImmuneLab: {title}", {title: sliders} if sliders else {}).encode()


def downloads(
    figure: go.Figure | str,
    frame: Callable[[], pd.DataFrame],
    key: str,
    title: str,
    notebook: Callable[[], bytes] | None = None,
    sliders: Sliders | None = None,
) -> None:
    """Take a figure, or its JSON, away: CSV of the rows, a self-contained HTML page with its `sliders`, and a notebook
    that draws it where there is one; PNG and SVG are buttons on the chart itself."""
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
            data=lambda: _page(figure, title, sliders),
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
