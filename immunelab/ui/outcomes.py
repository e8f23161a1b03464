"""What became of every defense under every recorded rung: the map of outcomes, as a figure and as a table."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from immunelab.analysis import outcome_table
from immunelab.analysis.outcomes import Thresholds
from immunelab.analysis.variants import each
from immunelab.figures.outcome_map import outcome_map
from immunelab.figures.palette import title_of
from immunelab.ui import attack_filter, figure, outcome_text, reads

CAPTION = (
    "In each cell: the outcome, then harmfulness and utility after the last step, mean over seeds. A click opens the "
    "runs behind a cell."
)


def show(curves: pd.DataFrame, thresholds: Thresholds, key: str) -> None:
    """The map of one attack's ladder, all defenses of `curves`; asks which attack where several are recorded."""
    done = curves[curves["status"] == "done"] if "status" in curves else curves
    table = _ladder(reads.revision(), tuple(done["run_id"].unique()), thresholds, done)
    if table.empty:
        st.caption("No finished attack is recorded yet.")
        return
    methods = attack_filter.attacks(curves[curves["method"].isin(table["method"])])
    method = methods[0]
    if len(methods) > 1:
        method = st.segmented_control(
            "Attack", methods, default=method, required=True, key=f"{key}-map", bind="query-params", wrap=True
        )
    mine = table[table["method"] == method]
    drawn = outcome_map(mine, theme=figure.theme())
    clicked = figure.show(drawn, f"{key}-outcomes", alt=sentence(mine), min_width=90 + 92 * mine[X].nunique())
    notes = " ".join(f"{sign}: {words}" for sign, words in outcome_table.notes(mine).items())
    st.caption(f"{CAPTION} {notes}")
    figure.downloads(drawn, lambda: table, f"{key}-outcomes", "Outcome of every defense at every rung")
    with st.expander("As a table"):
        view = outcome_table.wide(mine)
        view.index = [title_of(*pair) for pair in view.index]
        view.columns = [f"Learning rate {v:g}" if v == v else "After" for v in view.columns]
        st.dataframe(view, alt=sentence(mine), height="content")
    outcome_text.open_behind(clicked, curves[curves["method"].eq(method) & curves["status"].eq("done")], X)


@st.cache_data(max_entries=32, show_spinner=False)
def _ladder(revision: str, run_ids: tuple[str, ...], thresholds: Thresholds, _curves: pd.DataFrame) -> pd.DataFrame:
    return outcome_table.ladder(outcome_table.outcome_table(_curves, thresholds))


X = "learning_rate"


def sentence(table: pd.DataFrame) -> str:
    """The map in words: of each defense the outcome at every rung."""
    parts = []
    for variant, mine in each(table, sort=False):
        said = ", ".join(f"{r['outcome']} at {r[X]:g}" for r in mine.to_dict("records"))
        parts.append(f"{title_of(*variant)}: {said}")
    return ". ".join(parts)
