"""The first page's ladder and its sentences."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from immunelab.analysis.outcomes import Thresholds
from immunelab.figures.collapse import along_attack, intensity_sliders, over_intensities
from immunelab.reports.story import RATE, Story, tell
from immunelab.ui import figure, live

PANEL = 140  # pixels: the first screen shows the whole of it


@st.cache_data(max_entries=8, show_spinner=False)
def recall(finished: int, thresholds: Thresholds, _curves: pd.DataFrame) -> Story | None:
    """As `tell`, kept as long as the same runs are asked about (`reads.finished`)."""
    return tell(_curves, thresholds)


def show(tale: Story) -> str | None:
    """Harm and utility against intensity with a slider to look into any of them, and a sentence per regime beside it.
    Returns what a clicked point says."""
    sliders = {k: v for k, v in intensity_sliders(tale.ladder).items() if k == RATE}
    chart, words = st.columns([0.64, 0.36], gap="medium")
    with chart:
        if sliders:
            at = {RATE: figure.at(sliders[RATE], float(tale.link["rate"]))}
            drawn, moves = over_intensities(tale.ladder, sliders, at, RATE, Thresholds(), figure.theme(), PANEL)
        else:
            drawn, moves = along_attack(tale.curves, int(tale.curves["step"].max()), Thresholds(), figure.theme())
        clicked = figure.show(drawn, "overview", alt=" ".join(tale.regimes), sliders=moves)
    with words:
        for sentence in tale.regimes:
            st.markdown(live.plain(sentence))
    title = "Undefended and immunized, at every intensity"
    figure.downloads(drawn, lambda: tale.ladder, "overview", title, sliders=moves)
    return clicked
