"""The lab in one page to give away: made from Overview, kept for all sessions, and then downloaded."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from immunelab.errors import UserError
from immunelab.formatting import size
from immunelab.reports import static_page
from immunelab.runs import access
from immunelab.store import Store
from immunelab.ui import live, reads

PARTS = 8  # that the page tells of while it is drawn


def offer(curves: pd.DataFrame, subject: str) -> None:
    """What the page is, a button that makes it, and then one that downloads it. `curves` are the attacks in it."""
    if access.read_only():
        return
    key = (reads.finished(curves), subject)
    made: dict[tuple[int, str], bytes] = reads.kept("shared page", dict)  # the last one, for all sessions
    with st.popover("One page to share", icon=":material/ios_share:"):
        st.markdown(
            "Overview, collapse, outcomes, trade-off, gradients, scorecards and answers of the finished runs, with "
            "their sliders, in one file. It opens from disk and from any static host, without the lab or a network. "
            "Answers of real models are left out. Other choices: `immunelab export --help`."
        )
        if key not in made:
            place = st.empty()
            if not place.button("Make the page", key="make-page", icon=":material/html:"):
                st.caption("Takes some seconds for a few runs, and up to half a minute for all that ship.")
                return
            page = _drawn(subject)
            if page is None:
                return
            place.empty()
            made.clear()
            made[key] = page
        text = made[key]
        if len(text) > static_page.MOST_BYTES:
            st.warning(
                f"It has {size(len(text))}, which many browsers open slowly. `immunelab export` with `--defense`, or "
                "into a folder, makes smaller files."
            )
        st.download_button(
            f"Download ({size(len(text))})",
            data=text,
            file_name="immunelab.html",
            mime="text/html",
            on_click="ignore",
            icon=":material/download:",
            key="download-page",
        )


def _drawn(subject: str) -> bytes | None:
    """The page, with a bar that says what is drawn; None where there is nothing to show, which is told."""
    bar, seen = st.progress(0.0, "Reading the runs"), list[str]()

    def tell(part: str) -> None:
        seen.append(part)
        bar.progress(min(1.0, len(seen) / PARTS), f"Drawing {part}")

    try:
        return static_page.page(Store(reads.home()), static_page.Choice(subject=subject), tell).encode()
    except UserError as error:
        st.error(live.plain(str(error)), icon=":material/error:")
        return None
    finally:
        bar.empty()
