"""The list of pages, and links between them that also hold where a page runs alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import streamlit as st
from streamlit.errors import StreamlitAPIException

from immunelab import bundled
from immunelab.runs import access

PAGES = bundled.app() / "pages"
PLOTLY_PATH = "/assets/plotly.min.js"  # the route that `ui.server` adds for `ui.figure`
ICON = str(Path(__file__).with_name("icon.png"))  # a Material icon here would be fetched from a font host

STARTING = ("launch", "overview")  # pages that an empty one points to because runs are started there

# name of the file: title, Material icon, what the page is
ENTRIES = {
    "overview": (
        "Overview",
        ":material/home:",
        "What happens to an undefended and to an immunized model, and live runs.",
    ),
    "tour": ("Guided demo", ":material/tour:", "The story in five steps, on recorded runs or live."),
    "launch": ("Launch", ":material/play_arrow:", "Choose model, defense and attack, set the knobs, and start runs."),
    "runs": ("Runs", ":material/list_alt:", "Every run: filter, compare, stop, resume, label and delete."),
    "traces": ("Traces", ":material/show_chart:", "Every recorded scalar of any runs, live and overlaid."),
    "collapse": ("Collapse", ":material/trending_down:", "Harmfulness and utility against steps and intensity."),
    "tradeoff": ("Trade-off", ":material/balance:", "Harm against utility, and what an attacker's budget buys."),
    "gradients": ("Gradients", ":material/polyline:", "Cosines and norms by step and layer; the estimator's error."),
    "scorecard": ("Scorecard", ":material/fact_check:", "The four conditions of immunization, with their runs."),
    "playground": ("Playground", ":material/chat:", "One prompt to base, defended and attacked models, step by step."),
    "methods": ("Methods", ":material/menu_book:", "Objective, source and knobs of each registered method."),
    "data": ("Data", ":material/dataset:", "Streams, splits, lengths and overlap of a corpus, and its rows."),
    "query": ("Query", ":material/database_search:", "Read-only SQL on everything that is recorded."),
}


def pages() -> list[Any]:
    """The pages of the router, Overview first."""
    return [
        st.Page(PAGES / f"{name}.py", title=title, icon=icon, help=text, url_path=name, default=name == "overview")
        for name, (title, icon, text) in ENTRIES.items()
    ]


def heading(name: str, caption: str) -> None:
    """Title and one line on what the page measures; each page sets its own, since each also runs alone."""
    title = ENTRIES[name][0]
    st.set_page_config(page_title=f"{title} · ImmuneLab", page_icon=ICON, layout="wide")
    st.title(title, anchor=False)
    st.caption(caption)


def go(name: str, **query: Any) -> NoReturn:
    """Open another page, with what it should show."""
    st.switch_page(PAGES / f"{name}.py", query_params=_texts(query))


def link(name: str, label: str, **query: Any) -> None:
    """A link to another page; where a page runs without the router there is nowhere to go, so it is plain text."""
    try:
        st.page_link(PAGES / f"{name}.py", label=label, icon=ENTRIES[name][1], query_params=_texts(query))
    except StreamlitAPIException:
        st.text(label)


def nothing_yet(title: str, sentence: str, *links: tuple[str, str]) -> None:
    """A designed empty state: what will be here, and the next action."""
    with st.container(border=True, horizontal_alignment="center"):
        st.subheader(title, anchor=False, width="content")
        st.markdown(sentence, width="content", text_alignment="center")
        with st.container(horizontal=True, horizontal_alignment="center"):
            for name, label in links:
                if name not in STARTING or not access.read_only():
                    link(name, label)


def _texts(query: Mapping[str, Any]) -> dict[str, str | list[str]] | None:
    texts = {k: [str(i) for i in v] if isinstance(v, list | tuple) else str(v) for k, v in query.items()}
    return texts or None
