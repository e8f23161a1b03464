"""Measurements that a page asks for: `evaluate` runs on checkpoints that exist. torch stays in the worker's process."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
import streamlit as st

from immunelab.analysis.gradients import estimates
from immunelab.figures.gradients import estimator_error
from immunelab.runs import access, shipped
from immunelab.runs.spec import RunSpec
from immunelab.store import queries
from immunelab.sweep import plan
from immunelab.ui import figure, live, reads

SEAM_EPSILON = 1e-3  # the paper's
ESTIMATOR = "estimator-error"
ANSWERS = "answers"


def models(runs: pd.DataFrame) -> dict[str, str]:
    """The models that can be loaded here, with what they are called: each recorded corpus's own model, and what
    finished runs of this home left on disk."""
    words = reads.labels(runs)
    found = {"fable": "Fable, as it is shipped"}
    have = set(runs["run_id"])
    for name, folder in shipped.named().items():
        if folder.run_id not in have:
            found[name] = shipped.words(folder)
    done = runs[(runs["status"] == "done") & runs["kind"].isin(("immunize", "attack", "finetune"))]
    for run in done[~done["showcase"].astype(bool)].to_dict("records"):
        if reads.has_checkpoint(run["run_id"]):
            found[f"run:{run['run_id']}"] = f"After {words[run['run_id']]}"
    return found


def spec(method: str, model: str, runs: pd.DataFrame, knobs: dict[str, Any], name: str) -> RunSpec:
    """The run that measures a model: on the corpus that the model was trained on, with settings of the evaluation."""
    row = runs[runs["run_id"] == model.removeprefix("run:")]
    corpus = str(row["corpus"].iloc[0]) if len(row) else "fable"
    wanted = plan.choose("evaluate", method, corpus, knobs=knobs, name=name[:200])
    return plan.one(wanted, model=model, corpus=corpus)


def runs_of(runs: pd.DataFrame, method: str) -> pd.DataFrame:
    """The recorded and live runs of such a measurement, newest first, with their knobs and model as columns."""
    mine = runs[(runs["kind"] == "evaluate") & (runs["method"] == method)]
    return mine.assign(asked=[json.loads(s)["knobs"] for s in mine["spec"]])


def wait(run_ids: list[str]) -> bool:
    """Draw the progress of runs that are on their way, and the page anew when the last has ended; whether any is."""
    going = reads.active(reads.runs())
    going = going[going["run_id"].isin(run_ids)]
    if going.empty:
        return False

    @st.fragment(run_every=reads.LIVE_SECONDS)
    def progress() -> None:
        now = reads.active(reads.runs())
        now = now[now["run_id"].isin(run_ids)]
        if len(now) < len(going):
            st.rerun()
        for run in now.to_dict("records"):
            live.progress(run, str(run["name"] or run["method"]))

    progress()
    return True


def estimator(runs: pd.DataFrame) -> None:
    """The estimator's error against ε on a checkpoint: drawn where it is recorded, offered where it is not."""
    known = models(runs)
    measured = runs_of(runs, ESTIMATOR)
    for model in measured["model"]:  # recorded elsewhere, or its checkpoint is gone
        known.setdefault(model, f"The model of {model.removeprefix('run:')}")
    model = st.selectbox(
        "Checkpoint", list(known), format_func=lambda m: known.get(m, m), key="model", bind="query-params"
    )
    mine = measured[measured["model"] == model]
    done = mine[mine["status"] == "done"]
    if done.empty:
        st.write("How far is SEAM's estimate of ∇L_sd from the exact gradient, at this checkpoint and for each ε?")
        if not wait(mine["run_id"].tolist()):
            for error in mine["error"].dropna().head(1):
                st.error(live.plain(error), icon=":material/error:") if error else None
            if access.read_only():
                return
            wanted = [spec(ESTIMATOR, model, runs, {}, f"Estimator error: {known[model]}")]
            if st.button("Measure it", icon=":material/play_arrow:", key="measure") and live.submit(wanted, reuse=True):
                st.rerun()
            st.caption("96 gradients on 8 rows and one double backward, by a worker that loads torch first.")
        return
    frame = estimates(reads.ask(queries.scores, [done["run_id"].iloc[0]], splits=None))
    drawn = estimator_error(frame, SEAM_EPSILON, figure.theme())
    best = frame[frame["metric"] == "error"].sort_values("value").groupby("precision").first()
    said = "; ".join(
        f"{p}: smallest relative error {r['value']:.2g} at ε = {r['epsilon']:.2g}" for p, r in best.iterrows()
    )
    st.markdown(live.plain(f"{said}."))
    figure.show(drawn, "estimator", alt=said)
    st.caption(
        f"Against the exact gradient of the cosine (double backward in fp32), on {frame['n'].max():g} held-out rows. "
        "bf16 rounds the weights first, as the released code does. The gray bar marks ε = 0.001, the paper's. "
        "An error of 1 is that of no estimate at all."
    )
    figure.downloads(drawn, lambda: frame, "estimator", "Error of the gradient estimate against ε")
