"""A grid file on the Launch page: pasted or chosen, shown as the runs that it stands for, and carried out."""

from __future__ import annotations

import dataclasses
from typing import Any

import pandas as pd
import streamlit as st

from immunelab import jobs
from immunelab.analysis.estimate import estimate
from immunelab.errors import UserError
from immunelab.jobs import demand, follow
from immunelab.runs.spec import RunSpec
from immunelab.sweep import grid
from immunelab.ui import live, reads

PLAY = ":material/play_arrow:"
EXAMPLE = """seeds = [0, 1]

[[defense]]
method = "seam"

[[attack]]
method = "harmful-sft"
rung = ["0.0003", "0.001"]"""


def section(runs: pd.DataFrame) -> None:
    """What the file stands for, what of it is on record, an estimate, and the button. Nothing starts before that."""
    st.caption(
        "Defenses × attacks × settings × seeds, as `immunelab sweep` reads them: a list is varied, anything else is "
        "fixed. What is on record is not run again, and what was cut short goes on."
    )
    text = st.text_area("Grid (TOML)", placeholder=EXAMPLE, height=220, key="grid")
    file = st.file_uploader("or a file", type="toml", key="grid-file")
    source = file.name if file else "The grid"
    try:
        specs = read(file.getvalue() if file else text.encode(), source)
        planned = jobs.plan(specs) if specs else []
    except UserError as error:
        st.error(str(error), icon=":material/error:")
        return
    if not planned:
        return
    new = [i for i, p in enumerate(planned) if p.state in ("new", "unfinished")]
    wanted = [planned[i].spec for i in new]
    st.dataframe(table(planned), hide_index=True, height=min(420, 38 + 35 * len(planned)))
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        rest = (
            f"{estimate(wanted, runs)} {demand.told([p.spec for p in planned], reads.home(), new)}"
            if wanted
            else "All is on record."
        )
        st.write(f"{len(wanted)} of {len(planned)} runs to carry out. {rest}")
        go = st.button(
            "Run the grid", type="primary", icon=":material/play_arrow:", key="run-grid", disabled=not wanted
        )
    if go and live.submit(specs, reuse=True, go_on=True):
        st.toast(f"Queued: {len(wanted)} runs.")


def read(content: bytes, source: str) -> list[RunSpec]:
    """The runs of a grid file; none for an empty one. A UserError says what does not fit."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{source} is not UTF-8 text.") from None
    specs = grid.expand(text, source) if text.strip() else []
    return [dataclasses.replace(spec, model=follow.model(spec.model, reads.home())) for spec in specs]


def table(planned: list[Any]) -> pd.DataFrame:
    """One row a run, in order: what it is, and what is on record of it."""
    return pd.DataFrame(
        {
            "row": range(len(planned)),
            "kind": [p.spec.kind for p in planned],
            "method": [p.spec.method for p in planned],
            "model": [p.spec.model.replace("run:#", "made by row ") for p in planned],
            "what": [p.spec.name for p in planned],
            "seed": [p.spec.seed for p in planned],
            "on record": [p.state for p in planned],
            "run": [p.run_id or "" for p in planned],
        }
    )
