"""Outcomes on the Collapse and Trade-off pages: tables of runs, and sentences for screen readers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from immunelab.analysis.collapse import describe
from immunelab.ui import navigation
from immunelab.ui.charts import title_of


def sentence(read: pd.DataFrame) -> str:
    """What the figure shows, in words."""
    parts = []
    for defense, mine in read.groupby("defense"):
        scores = f"harmfulness {mine['harmfulness'].mean():.0%}, utility {mine['utility'].mean():.0%} after the attack"
        parts.append(f"{title_of(str(defense))}: {scores}; {describe(mine['outcome']) or 'no outcome yet'}")
    return ". ".join(parts)


def table(read: pd.DataFrame, key: str) -> None:
    """One row an attack run: outcome under both utility rules, first break, qualifiers. A click opens the run."""
    if read.empty:
        return
    rows = read.sort_values(["defense", "learning_rate", "seed"], ascending=[False, True, True])
    shown = pd.DataFrame(
        {
            "Defense": rows["defense"].map(title_of),
            "Learning rate": rows["learning_rate"].map("{:g}".format),
            "Seed": rows["seed"],
            "Harmfulness": rows["harmfulness"],
            "Utility": rows["utility"],
            "Outcome": rows["outcome"].fillna("not over"),
            "Other utility rule": rows["outcome_other_rule"].fillna("not over"),
            "First break": [_interval(a, b) for a, b in zip(rows["before_harm"], rows["first_harm"], strict=True)],
            "Qualifiers": [qualifiers(r) for r in rows.to_dict("records")],
        }
    )
    percent = st.column_config.NumberColumn(format="percent")
    picked = st.dataframe(
        shown,
        hide_index=True,
        key=key,
        on_select="rerun",
        selection_mode="single-row",
        height="content" if len(shown) <= 20 else 720,
        column_config={"Harmfulness": percent, "Utility": percent},
        alt="Outcome of each attack run",
    )
    if picked.selection.rows:
        navigation.go("runs", run=rows.iloc[picked.selection.rows[0]]["run_id"])


def worst_sentence(cases: pd.DataFrame) -> str:
    """The bounded worst cases in words."""
    parts = []
    for case in cases.to_dict("records"):
        bound = (
            "at any loss of utility" if math.isinf(case["bound"]) else f"at most {case['bound']:.0%} of utility lost"
        )
        parts.append(f"{title_of(case['defense'])}, {bound}: most harm {case['harmfulness']:.0%}")
    return ". ".join(parts)


def worst_table(cases: pd.DataFrame, key: str) -> None:
    """The worst case of each defense under each bound, and the attack that brings it. A click opens its run."""
    if cases.empty:
        return
    rows = cases.sort_values(["bound", "defense"], ascending=[False, False])
    shown = pd.DataFrame(
        {
            "Defense": rows["defense"].map(title_of),
            "Utility lost": ["any" if math.isinf(b) else f"at most {b:.0%}" for b in rows["bound"]],
            "Most harm": rows["harmfulness"],
            "Lowest seed": rows["low"],
            "Highest seed": rows["high"],
            "Seeds": rows["n"],
            "Utility there": rows["utility"],
            "Attack": [_attack(r) for r in rows.to_dict("records")],
            "Attacks searched": rows["trials"],
        }
    )
    percent = st.column_config.NumberColumn(format="percent")
    picked = st.dataframe(
        shown, hide_index=True, key=key, on_select="rerun", selection_mode="single-row",
        column_config=dict.fromkeys(("Most harm", "Lowest seed", "Highest seed", "Utility there"), percent),
        alt="Most harm found for each defense, at any and at a bounded loss of utility",
    )  # fmt: skip
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
        return "none: within the bound no attack does more harm than the released model"
    return f"learning rate {case['learning_rate']:g}, step {case['step']:g} of {case['steps']:g}"
