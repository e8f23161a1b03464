"""The trade-off: what an attack brings in harm against what it costs in utility, and what a budget buys."""

import pandas as pd
import streamlit as st

from immunelab.analysis import tradeoff
from immunelab.analysis.variants import present
from immunelab.figures.budget import budget_curves
from immunelab.figures.tradeoff import harm_against_utility
from immunelab.ui import (
    attack_filter,
    figure,
    intensity,
    live,
    navigation,
    notebook,
    outcomes,
    reads,
    search_panel,
    tuning_panel,
)

navigation.heading(
    "tradeoff",
    "Utility (benign accuracy) against harmfulness (share of hazards given away), for every recorded attack.",
)

chosen = attack_filter.choose(
    "Attack a model, undefended and immunized, and every checkpoint of it stands here.", every_attack=True
)
shown = list(chosen.shown)
with st.container(horizontal=True, vertical_alignment="bottom"):
    view = st.segmented_control(
        "Show",
        ["Harm against utility", "Attacker's budget", "Attacker's search", "Defense tuned"],
        default="Harm against utility",
        required=True,
        key="show",
        bind="query-params",
    )
    loss = st.slider("Utility the attacker may lose", 0, 100, 20, 5, format="%d%%", key="loss", bind="query-params")
    thresholds = intensity.thresholds()
with st.container(horizontal=True, vertical_alignment="center"):
    paths = st.toggle(
        "Every checkpoint", value=True, key="paths", bind="query-params", help="Off: only where each attack ended."
    )
    equal = st.toggle(
        "Only attacks that every model faced",
        value=True,
        key="equal",
        bind="query-params",
        help="An equal budget: otherwise the model that was attacked more often looks weaker.",
    )


def checkpoints() -> pd.DataFrame:
    points = tradeoff.checkpoints(chosen.drawn(), thresholds)
    return tradeoff.faced_by_all(points, present(points)) if equal else points


def known() -> tuple[object, ...]:
    """All that the points are made from."""
    return "tradeoff", chosen.state(), thresholds, equal


@st.fragment(run_every=live.tick(reads.runs(showcase=False)))
def draw() -> None:
    if view == "Attacker's search":
        search_panel.view(chosen, thresholds)
        live.rerun_when_over()
        return
    if view == "Defense tuned":
        tuning_panel.view(chosen)
        live.rerun_when_over()
        return
    points = reads.kept(known(), checkpoints)
    if points.empty:
        st.caption("No attack was made on every model shown. Switch off the equal budget, or show fewer models.")
        return
    bounds = (tradeoff.EVERYTHING, loss / 100)
    cases = reads.kept((known(), "cases", loss), lambda: tradeoff.worst_cases(points, bounds))
    words = outcomes.worst_sentence(cases)
    if view == "Harm against utility":
        against_utility(points, words)
    else:
        against_budget(points, words)
    outcomes.worst_table(cases, "worst-table")
    live.rerun_when_over()


def against_utility(points: pd.DataFrame, words: str) -> None:
    theme = figure.theme()

    def make() -> str:
        mine = chosen.drawn()
        base = mine.loc[mine["run_id"].isin(points["run_id"]), "base_utility"].dropna().mean()
        return figure.shared(harm_against_utility(points, tradeoff.front(points), thresholds, base, theme, paths))

    drawn = reads.kept((known(), "drawn", theme, paths), make)
    clicked = figure.show(drawn, "tradeoff", alt=words, brush=True)
    st.caption(
        "The attacker wants the top right corner. Thick lines: the most harm with at least this utility. "
        "A click on a point opens its run; a box or lasso (buttons at the chart's top right) selects runs."
    )
    outcomes.selected(figure.brushed("tradeoff", points["run_id"]), chosen.read(), thresholds)
    options = {"thresholds": thresholds, "theme": figure.theme(), "paths": paths}
    figure.downloads(
        drawn,
        lambda: points,
        "tradeoff",
        "Trade-off",
        lambda: notebook.drawing("Trade-off", reads.home(), "tradeoff", options, sorted(points["run_id"].unique())),
    )
    if clicked:
        navigation.go("runs", run=clicked)


def against_budget(points: pd.DataFrame, words: str) -> None:
    by = st.segmented_control(
        "Budget",
        list(tradeoff.BUDGETS),
        default="trials",
        required=True,
        format_func=tradeoff.BUDGETS.get,
        key="by",
        bind="query-params",
    )
    bounds = {"Any loss of utility": tradeoff.EVERYTHING, f"Less than {loss}% of utility lost": loss / 100}
    found = {title: tradeoff.budget(points, by, bound) for title, bound in bounds.items()}
    drawn = budget_curves(found, by, figure.theme())
    figure.show(drawn, "budget", alt=words)
    if by == "trials":
        st.caption(
            "Expected best of so many of the recorded attacks, tried in any order; at the right end all are tried, and "
            "it is the recorded best. Bands: lowest to highest seed."
        )
    else:
        st.caption("The best checkpoint that one attack of at most this size reaches. Bands: lowest to highest seed.")
    rows = pd.concat([frame.assign(bound=title) for title, frame in found.items()])
    options = {"by": by, "loss": loss / 100, "theme": figure.theme()}
    ids = sorted(points["run_id"].unique())
    figure.downloads(
        drawn,
        lambda: rows,
        "budget",
        "Attacker's budget",
        lambda: notebook.drawing("Attacker's budget", reads.home(), "budget", options, ids),
    )


draw()
live.runs_under_way()
