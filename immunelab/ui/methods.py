"""What the Methods page adds to a definition of a defense: what a step costs, what was recorded, where it stands.

Costs are what `benchmarks/step_cost.py` measured; outcomes are read from the recorded runs.
"""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
import streamlit as st

from immunelab import bundled
from immunelab.analysis import collapse, outcome_table
from immunelab.errors import UserError
from immunelab.figures.palette import title_of
from immunelab.method import STAGES, catalogue
from immunelab.method.catalogue import Entry
from immunelab.ui import live, navigation, reads

MEASURED = "step_cost.json"
WHO = {
    "released": "Nobody: the weights are released",
    "trains": "A provider who runs the fine-tuning",
    "serves": "A provider who also serves the model",
}


def costs() -> dict[str, Any]:
    """What was measured, or nothing where this installation has no measurement."""
    path = bundled.measured(MEASURED)
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path else {}
    except (OSError, ValueError):
        raise UserError(f"{path} is not what `python benchmarks/step_cost.py` writes.") from None


def cost_words(defense: Entry, measured: dict[str, Any]) -> str:
    """The cost of a defense in words, of every measured preset; empty if there is no measurement."""
    if defense.edits and not defense.service:
        return "no step: the weights change once"
    parts = []
    for preset, found in measured.get("defenses", {}).get(defense.name, {}).items():
        said = []
        if "step" in found:
            said.append(f"{found['step']:.1f} for a step")
        if "user_step" in found:
            said.append(f"{found['user_step']:.1f} for a user's step")
        if found.get("serving", 0) >= 0.1:
            said.append(f"{found['serving']:.0f} for serving once")
        parts.append(f"{' and '.join(said)} ({preset})")
    return "; ".join(parts)


def needs(defense: Entry) -> str:
    """Who has to be there after the release for a defense to act: a key of `WHO`."""
    if not defense.hooks:
        return "released"
    return "serves" if {"serving", "system"} & {*defense.hooks} else "trains"


def overview() -> pd.DataFrame:
    """Stages down, who has to be there across; in each cell the defenses."""
    found = [(d.stage, WHO[needs(d)], d.name) for d in catalogue.entries("defense").values()]
    frame = pd.DataFrame(found, columns=["Stage", "Who has to be there after the release", "name"])
    table = frame.pivot_table(index="Stage", columns=frame.columns[1], values="name", aggfunc=", ".join, sort=False)
    rows = [s for s in STAGES if s in table.index] + [s for s in table.index if s not in STAGES]
    return table.reindex(index=rows, columns=[w for w in WHO.values() if w in table.columns]).fillna("")


def at_a_glance(measured: dict[str, Any]) -> pd.DataFrame:
    """One row a defense: stage, streams, what it assumes, cost, source."""
    return pd.DataFrame(
        [
            {
                "Defense": defense.name,
                "Stage": defense.stage,
                "Streams": ", ".join(defense.streams) or "none",
                "Assumes of the defender": defense.assumes,
                "Cost in plain steps": cost_words(defense, measured) or "not measured",
                "Source": defense.paper,
                "File": f"immunelab/{defense.file}",
            }
            for defense in catalogue.entries("defense").values()
        ]
    )


def all_defenses() -> None:
    """Every defense by stage and assumption, and as a table."""
    measured = reads.stop_on_error(costs)
    st.caption("Defenses by stage, and by who has to be there after the release for them to act.")
    st.dataframe(overview(), alt="Defenses by stage and assumption", height="content")
    st.dataframe(at_a_glance(measured), hide_index=True, alt="Every defense at a glance", height="content")
    if measured:
        st.caption(meaning(measured))


def meaning(measured: dict[str, Any]) -> str:
    """What the numbers of a measurement are, and where they are from."""
    return (
        "A cost of 1 is a plain fine-tuning step of as many rows, in processor time and without the optimizer. "
        f"Measured on the Fable model on {measured['date']} ({measured['machine']}) by `{measured['command']}`."
    )


def one(defense: Entry) -> None:
    """Cost and recorded outcomes of one defense."""
    measured = reads.stop_on_error(costs)
    words = cost_words(defense, measured)
    if words:
        st.text(f"Costs in plain fine-tuning steps: {words}.")
        if measured and not words.startswith("no step"):
            st.caption(meaning(measured))
    _recorded(defense.name, defense.seen)


def _recorded(name: str, seen: str) -> None:
    curves = reads.curves()
    curves = curves[curves["method"] == reads.USUAL]
    mine = curves[curves["defense"] == name]
    if mine.empty:
        return
    curves = collapse.comparable(curves, collapse.subjects(mine)[0])
    curves = curves[curves["defense"].isin(("undefended", name))]
    if curves.empty:
        return
    table = reads.kept(
        ("recorded", name, reads.finished(curves)), lambda: outcome_table.ladder(outcome_table.outcome_table(curves))
    )
    wide = outcome_table.wide(table)
    wide.index = [title_of(*pair) for pair in wide.index]
    wide.columns = [f"Learning rate {v:g}" for v in wide.columns]
    st.subheader("Recorded", anchor=False)
    if seen:
        st.markdown(live.prose(seen), width=760)
    st.caption(
        "Harmful fine-tuning of all weights, rung by rung: outcome, harmfulness and utility after the last step."
    )
    st.dataframe(wide, alt=f"Recorded outcomes of {name}", height="content")
    notes = " ".join(f"{sign}: {words}" for sign, words in outcome_table.notes(table).items())
    if notes:
        st.caption(notes)
    navigation.link("collapse", "The runs behind it, step by step", beside=[title_of(name)])
