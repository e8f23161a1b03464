"""Choosing runs, and reading their settings side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd
import streamlit as st

from immunelab.runs.spec import CorpusName

GROUPS = {
    "run": "Each run alone",
    "defense": "Defense",
    "method": "Method",
    "learning_rate": "Learning rate",
    "seed": "Seed",
    "steps": "Steps",
    "samples": "Samples",
    "harmful_share": "Harmful share",
    "optimizer": "Optimizer",
    "precision": "Precision",
    "defense, learning_rate": "Defense and learning rate",
    "grp": "Launched together",
}
TELLING = ("loss/total", "cosine/harmful-benign", "loss/harmful", "loss/benign", "norm/update")
# Facts of a run rather than settings; a diff of settings leaves them out.
_FACTS = ("name", "group", "parent", "parent_hash")


def runs(frame: pd.DataFrame, words: dict[str, str], key: str, default: Sequence[str]) -> list[str]:
    """A choice of runs that the link carries by id; ids in a link that are no longer recorded are named and left out.

    Written to the link by hand: a bound widget would write labels, which change when a run is renamed.
    """
    options = frame["run_id"].tolist()
    asked = st.query_params.get_all(key)
    gone = [i for i in asked if i not in set(options)]
    widget = f"{key}-choice"
    if widget not in st.session_state:
        st.session_state[widget] = [i for i in asked if i not in gone] or list(default)
        if gone:
            st.warning(f"No longer recorded here: {', '.join(gone[:5])[:500]}.", icon=":material/link_off:")
    st.session_state[widget] = [i for i in st.session_state[widget] if i in set(options)]
    chosen = st.multiselect(
        "Runs", options, format_func=lambda i: words.get(i, i), key=widget, placeholder="Choose runs"
    )
    if chosen != asked:
        st.query_params[key] = chosen
    return chosen


def latest(frame: pd.DataFrame, most: int = 4) -> list[str]:
    """What to show first: what is running, else the newest immunizations, else the newest runs, of this lab. Only runs
    of one kind, length and base model: the steps of others are not comparable.

    Of a lab that holds only shipped runs, those of SEAM with all hazards: their gradients are what the pages are about.
    """
    own = frame[~frame["showcase"].astype(bool)]
    immunized = frame[frame["kind"] == "immunize"]
    whole = immunized["corpus"].map(lambda name: not CorpusName.read(str(name)).part).astype(bool)
    seam = immunized[(immunized["method"] == "seam") & whole]
    for part in (frame[frame["status"] == "running"], own[own["kind"] == "immunize"], own, seam, immunized, frame):
        if len(part):
            same = part[["kind", "base_model", "steps"]].astype(object).fillna("")
            return part.loc[(same == same.iloc[0]).all(axis=1), "run_id"].head(most).tolist()
    return []


def telling(names: Sequence[str], most: int = 3) -> list[str]:
    """The scalars to show first."""
    return [n for n in TELLING if n in names][:most] or sorted(names)[:most]


def groups(frame: pd.DataFrame, chosen: Sequence[str], by: str) -> dict[str, str]:
    """run_id → the label of its group, for one setting or several joined by commas."""
    columns = [c.strip() for c in by.split(",")]
    mine = frame[frame["run_id"].isin(chosen)]
    return {
        row["run_id"]: " · ".join(f"{c.replace('_', ' ')} {short(row[c])}" for c in columns)
        for row in mine.to_dict("records")
    }


def settings(run: Any) -> dict[str, Any]:
    """A run's spec, flat: its knobs beside its other fields."""
    spec = json.loads(run["spec"])
    knobs = spec.pop("knobs", {})
    return {k: v for k, v in spec.items() if k not in _FACTS} | knobs


def difference(frame: pd.DataFrame, words: dict[str, str], everything: bool = False) -> pd.DataFrame:
    """One row a setting, one column a run, only the settings that differ unless `everything`; texts."""
    table = pd.DataFrame({words[r["run_id"]]: settings(r) for r in frame.to_dict("records")}, dtype=object)
    table = table.map(lambda v: "—" if isinstance(v, float) and v != v else short(v))
    differs = table.nunique(axis=1) > 1
    return table if everything else table[differs]


def differences(frame: pd.DataFrame, words: dict[str, str]) -> None:
    """Draw the settings that differ between runs."""
    if len(frame) < 2:
        st.caption("Choose two or more runs to see what differs.")
        return
    table = difference(frame, words)
    if table.empty:
        st.caption("These runs have the same settings.")
    else:
        st.dataframe(table, alt="Settings that differ between the chosen runs")


def short(value: Any) -> str:
    """A setting as text."""
    return f"{value:g}" if isinstance(value, float) else str(value)
