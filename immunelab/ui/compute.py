"""Letting a slider go at an intensity that nobody ran: the attacks are run, and the curve grows where one looks."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence

import pandas as pd
import streamlit as st

from immunelab import jobs
from immunelab.analysis.estimate import duration
from immunelab.analysis.variants import Variant
from immunelab.errors import UserError
from immunelab.ui import intensity, live, reads

ASKED, GIVEN_UP = "compute-asked", "compute-given-up"  # run ids in the session
MISSING = "Nobody has run this one. Let go, and it is run; until its first point is there, the last picture stays."


def ask(runs: pd.DataFrame, curves: pd.DataFrame, models: Sequence[Variant], choice: Mapping[str, float]) -> bool:
    """Run the attacks on these models at an intensity: one seed of each first, then the others. Whether any began.

    What was asked for before and has not begun is given up: the latest wish wins. A model that would have to be
    immunized first, which takes minutes, is left to its button.
    """
    first, rest = [], []
    for model in models:
        chains = intensity.missing_chains(runs, curves, model, choice)
        ready = [c for c in chains if all(p.state == "done" for p in jobs.plan(c)[:-1])]
        first += ready[:1]
        rest += ready[1:]
    if not first:
        return False
    _give_up(runs)
    asked = live.submit(intensity.chained([*first, *rest]), reuse=True)
    st.session_state[ASKED] = asked
    return bool(asked)


def _give_up(runs: pd.DataFrame) -> None:
    waiting = set(runs.loc[runs["status"] == "queued", "run_id"])
    dropped = [i for i in st.session_state.pop(ASKED, []) if i in waiting]
    for run_id in dropped:
        with contextlib.suppress(UserError):
            jobs.stop(run_id, force_after=None)
    st.session_state[GIVEN_UP] = [*st.session_state.get(GIVEN_UP, []), *dropped]


def waiting(runs: pd.DataFrame, curves: pd.DataFrame) -> bool:
    """Whether this session waits for the first point of what it asked for."""
    going = reads.active(_mine(runs))
    waits = bool(len(going)) and not curves["run_id"].isin(st.session_state.get(ASKED, [])).any()
    if waits:
        reads.hurry()
    return waits


def forget_given_up(runs: pd.DataFrame) -> None:
    """Runs that were given up before they began leave no trace."""
    gone = runs[runs["run_id"].isin(st.session_state.get(GIVEN_UP, []))]
    for run_id in gone.loc[(gone["status"] == "stopped") & gone["started_at"].isna(), "run_id"]:
        with contextlib.suppress(UserError):
            jobs.delete(run_id)


def progress(runs: pd.DataFrame) -> None:
    """What this session asked for: how many are done, and of those going the step, steps a second and time left."""
    mine = _mine(runs)
    going = reads.active(mine)
    if going.empty:
        return
    done = int((mine["status"] == "done").sum())
    parts = [f"{done} of {len(mine)} attacks done"]
    for run in going[going["status"] == "running"].to_dict("records"):
        told = [f"on {run['defense']}, seed {run['seed']}"]
        if pd.notna(run["step"]) and run["step"]:
            seconds = time.time() - run["started_at"].timestamp()
            told += [f"step {run['step']:.0f} of {run['steps']:.0f}", f"{run['step'] / max(seconds, 0.1):.1f} steps/s"]
        else:
            told += [str(run["message"] or "starting")]
        told += [f"{duration(run['eta_seconds'])} left"] if pd.notna(run["eta_seconds"]) else []
        parts.append(", ".join(told))
    share = (done + float(going["progress"].fillna(0.0).sum())) / len(mine)
    st.progress(min(1.0, share), text=live.plain(" · ".join(parts)))


def _mine(runs: pd.DataFrame) -> pd.DataFrame:
    attacks = runs[runs["kind"] == "attack"]
    return attacks[attacks["run_id"].isin(st.session_state.get(ASKED, []))]
