"""Outcomes on the Overview, Collapse and Trade-off pages: the map of all defenses, tables of runs, and sentences for
screen readers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from immunelab.analysis import outcome_table
from immunelab.analysis.outcomes import Thresholds, run_outcomes
from immunelab.analysis.variants import KEYS, complete, each, labels
from immunelab.figures.outcome_map import outcome_map
from immunelab.figures.palette import title_of
from immunelab.ui import attack_filter, figure, navigation, reads

MOST_OPENED = 12  # runs that a link carries
PERCENT = st.column_config.NumberColumn(format="%.1f%%")  # of numbers that are percent already
X = "learning_rate"  # the columns of the map
CAPTION = (
    "In each cell: the outcome, then harmfulness and utility after the last step, mean over seeds. A click opens the "
    "runs behind a cell."
)


def show_map(curves: pd.DataFrame, thresholds: Thresholds, key: str) -> None:
    """The map of one attack's ladder, all defenses of `curves`; asks which attack where several are recorded."""
    done = curves[curves["status"] == "done"] if "status" in curves else curves
    table = _ladder(reads.finished(done), thresholds, done)
    if table.empty:
        st.caption("No finished attack is recorded yet.")
        return
    methods = attack_filter.attacks(curves[curves["method"].isin(table["method"])])
    method = methods[0]
    if len(methods) > 1:
        method = st.segmented_control(
            "Attack", methods, default=method, required=True, key=f"{key}-map", bind="query-params", wrap=True
        )
    mine, theme = table[table["method"] == method], figure.theme()
    known = ("map", reads.finished(done), thresholds, method)
    drawn = reads.kept((*known, theme), lambda: figure.shared(outcome_map(mine, theme=theme)))
    said = reads.kept(known, lambda: map_sentence(mine))
    clicked = figure.show(drawn, f"{key}-outcomes", alt=said, min_width=90 + 92 * mine[X].nunique())
    notes = " ".join(f"{sign}: {words}" for sign, words in outcome_table.notes(mine).items())
    st.caption(f"{CAPTION} {notes}")
    figure.downloads(drawn, lambda: table, f"{key}-outcomes", "Outcome of every defense at every rung")
    with st.expander("As a table"):
        view = outcome_table.wide(mine)
        view.index = [title_of(*pair) for pair in view.index]
        view.columns = [f"Learning rate {v:g}" if v == v else "After" for v in view.columns]
        st.dataframe(view, alt=said, height="content")
    open_behind(clicked, curves[curves["method"].eq(method) & curves["status"].eq("done")], X)


@st.cache_data(max_entries=32, show_spinner=False)
def _ladder(finished: int, thresholds: Thresholds, _curves: pd.DataFrame) -> pd.DataFrame:
    return outcome_table.ladder(outcome_table.outcome_table(_curves, thresholds))


def map_sentence(table: pd.DataFrame) -> str:
    """The map in words: of each defense the outcome at every rung."""
    parts = []
    for variant, mine in each(table, sort=False):
        said = ", ".join(f"{r['outcome']} at {r[X]:g}" for r in mine.to_dict("records"))
        parts.append(f"{title_of(*variant)}: {said}")
    return ". ".join(parts)


def table(read: pd.DataFrame, key: str) -> None:
    """One row an attack run: outcome under both utility rules, first break, qualifiers. A click opens the run."""
    if read.empty:
        return
    rows = complete(read).sort_values([*KEYS, "learning_rate", "seed"], ascending=[False, False, True, True])
    shown = pd.DataFrame(
        {
            "Defense": [title_of(*pair) for pair in zip(rows["defense"], rows["variant"], strict=True)],
            "Learning rate": rows["learning_rate"].map("{:g}".format),
            "Seed": rows["seed"],
            "Harmfulness": 100 * rows["harmfulness"],
            "Utility": 100 * rows["utility"],
            "Outcome": rows["outcome"].fillna("not over"),
            "Other utility rule": rows["outcome_other_rule"].fillna("not over"),
            "First break": [_interval(a, b) for a, b in zip(rows["before_harm"], rows["first_harm"], strict=True)],
            "Qualifiers": [qualifiers(r) for r in rows.to_dict("records")],
        }
    )
    picked = st.dataframe(
        shown,
        hide_index=True,
        key=key,
        on_select="rerun",
        selection_mode="single-row",
        height="content" if len(shown) <= 20 else 720,
        column_config={"Harmfulness": PERCENT, "Utility": PERCENT},
        alt="Outcome of each attack run",
    )
    if picked.selection.rows:
        navigation.go("runs", run=rows.iloc[picked.selection.rows[0]]["run_id"])


def open_behind(clicked: str | None, read: pd.DataFrame, x: str = "") -> None:
    """Open the runs behind a clicked point of a curve or cell of a map, written "defense|value": all seeds, side by
    side. With `x` those whose setting has the value; without it all of the defense."""
    if not clicked:
        return
    defense, _, value = clicked.rpartition("|")
    mine = read[labels(read) == defense]
    if x:
        mine = mine[mine[x].isna() if value == "nan" else mine[x] == float(value)]
    if len(mine):
        navigation.go("runs", run=sorted(mine["run_id"].unique()))


def selected(run_ids: Sequence[str], curves: pd.DataFrame, thresholds: Thresholds) -> None:
    """The runs that a box or lasso has caught: their outcomes, and links that compare or overlay them."""
    if not run_ids:
        return
    with st.container(border=True):
        with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
            st.markdown(f"**{len(run_ids)} {'run' if len(run_ids) == 1 else 'runs'} selected**", width="content")
            navigation.link("runs", "Compare their settings", run=run_ids[:MOST_OPENED])
            navigation.link("traces", "Overlay their traces", runs=run_ids[:MOST_OPENED])
        table(run_outcomes(curves[curves["run_id"].isin(run_ids)], thresholds), "selected-table")


def worst_sentence(cases: pd.DataFrame) -> str:
    """The bounded worst cases in words."""
    parts = []
    for case in cases.to_dict("records"):
        bound = (
            "at any loss of utility" if math.isinf(case["bound"]) else f"less than {case['bound']:.0%} of utility lost"
        )
        parts.append(f"{title_of(case['defense'], case['variant'])}, {bound}: most harm {case['harmfulness']:.0%}")
    return ". ".join(parts)


def worst_table(cases: pd.DataFrame, key: str) -> None:
    """The worst case of each defense under each bound, and the attack that brings it. A click opens its run."""
    if cases.empty:
        return
    rows = cases.sort_values(["bound", *KEYS], ascending=False)
    shown = pd.DataFrame(
        {
            "Defense": [title_of(*pair) for pair in zip(rows["defense"], rows["variant"], strict=True)],
            "Utility lost": ["any" if math.isinf(b) else f"less than {b:.0%}" for b in rows["bound"]],
            "Most harm": 100 * rows["harmfulness"],
            "Seeds": [
                f"{n:g}: {100 * a:.0f}–{100 * b:.0f}%"
                for n, a, b in zip(rows["n"], rows["low"], rows["high"], strict=True)
            ],
            "Utility there": 100 * rows["utility"],
            "Attack": [_attack(r) for r in rows.to_dict("records")],
            "Searched": rows["trials"],
        }
    )
    picked = st.dataframe(
        shown,
        hide_index=True,
        key=key,
        on_select="rerun",
        selection_mode="single-row",
        column_config={
            **dict.fromkeys(("Most harm", "Utility there"), PERCENT),
            "Searched": st.column_config.NumberColumn(help="Attack runs among which the most harmful was looked for"),
        },
        alt="Most harm found for each defense, at any and at a bounded loss of utility",
    )
    st.caption("Most harm: the largest mean over seeds among all attacks and checkpoints within the bound.")
    if picked.selection.rows:
        navigation.go("runs", run=rows.iloc[picked.selection.rows[0]]["run_id"])


def qualifiers(run: Mapping[Any, Any]) -> str:
    """What limits a label: vacuous, no control, invalid at start, borderline."""
    found = [w for w, k in (("invalid at start", "invalid_at_start"), ("borderline", "borderline")) if run[k]]
    if run["defense"] != "undefended":
        vacuous = run.get("vacuous")
        found += ["vacuous"] if vacuous is True else ["no control"] if vacuous is None else []
    return ", ".join(found)


def _interval(before: float, first: float) -> str:
    if math.isinf(first):
        return "never"
    return f"step {before:g}–{first:g}" if before == before else f"by step {first:g}"


def _attack(case: Mapping[Any, Any]) -> str:
    if case["step"] == 0:
        return "none does more harm than the released model"
    method = f"{case['method']}, " if case.get("method") else ""
    rate = f"learning rate {case['learning_rate']:g}, " if pd.notna(case["learning_rate"]) else ""
    return f"{method}{rate}step {case['step']:g}" + (f" of {case['steps']:g}" if pd.notna(case["steps"]) else "")
