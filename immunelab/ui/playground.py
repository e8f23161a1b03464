"""The Playground: recorded answers side by side, and questions of one's own. Answers are untrusted text: shown as code,
never as Markdown or HTML; those of models other than Fable stay folded until someone asks for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from immunelab.analysis.variants import BASELINE, KEYS, Variant, pinned_first
from immunelab.figures.palette import title_of
from immunelab.method import catalogue
from immunelab.store import queries
from immunelab.ui import live, measurements, reads

MOST_MODELS = 8
MOST_BESIDE = 3  # columns of answers that have room side by side


def pair(curves: pd.DataFrame) -> dict[Variant, str]:
    """Defense → run of the attack to show: the undefended model's and those of defenses that were attacked alike and
    with the same seed, the newest of each."""
    seeds = sorted(curves["seed"].unique())
    seed = seeds[0]
    if len(seeds) > 1:
        seed = st.segmented_control("Seed", seeds, default=seeds[0], required=True, key="seed")
    last = curves[curves["seed"] == seed].sort_values("run_id").groupby(KEYS)["run_id"].last()
    mine = {Variant(*key): str(run_id) for key, run_id in last.items()}
    found = pinned_first(mine)
    if len(found) > MOST_BESIDE:
        others = {v.label: v for v in found if v != BASELINE}
        chosen = st.multiselect(
            "Beside the undefended model",
            list(others),
            default=list(others)[:1],
            key="beside",
            format_func=lambda label: title_of(*others[label]),
            max_selections=MOST_BESIDE - 1,
            bind="query-params",
        )
        found = [v for v in found if v == BASELINE or v.label in chosen]
    return {v: mine[v] for v in found}


def prompt(run_ids: list[str]) -> tuple[str, str, str] | None:
    """A choice among the prompts that all these runs were asked: evaluation, prompt, and the expected answer."""
    offered = reads.ask(queries.prompts, run_ids)
    if offered.empty:
        st.caption("These attacks recorded no answers.")
        return None
    about = {name: known.questions for name, known in catalogue.entries("evaluation").items() if known.questions}
    kinds = sorted(offered["evaluation"].unique(), key=lambda e: (e not in about, e != "fable-recall", e))
    left, right = st.columns([0.3, 0.7], vertical_alignment="bottom")
    with left:
        kind = st.segmented_control(
            "About",
            kinds,
            default=kinds[0],
            required=True,
            key="about",
            format_func=lambda e: about.get(e, e),
            bind="query-params",
        )
    mine = offered[offered["evaluation"] == kind]
    with right:
        chosen = st.selectbox("Prompt", mine["prompt"].tolist(), key=f"prompt-{kind}", bind="query-params")
    row = mine[mine["prompt"] == chosen].iloc[0]
    return kind, chosen, row["expected"]


def card(title: str, row: Mapping[Any, Any] | None, kind: str, unfolded: bool) -> None:
    """One answer under the name of its model."""
    with st.container(border=True):
        st.markdown(f"**{live.plain(title)}**")
        if row is None:
            st.caption("Not recorded at this step.")
            return
        st.code(row["answer"] or " " if unfolded else "(folded)", language=None, wrap_lines=True)
        if pd.notna(row["score"]):
            known = catalogue.entries("evaluation").get(kind)
            st.caption(f"{row['score']:.0%} {(known and known.answer) or kind}")


def at(answers: pd.DataFrame, run_id: str, step: int) -> dict[Any, Any] | None:
    """A run's answer at a step, if one is recorded."""
    found = answers[(answers["run_id"] == run_id) & (answers["step"] == step)].to_dict("records")
    return found[0] if found else None


def by_step(answers: pd.DataFrame, shown: Mapping[Variant, str]) -> pd.DataFrame:
    """Every recorded step of the chosen prompt: one column a defense."""
    names = {run_id: title_of(*variant) for variant, run_id in shown.items()}
    table = answers.assign(model=answers["run_id"].map(names)).pivot_table(
        index="step", columns="model", values="answer", aggfunc="last"
    )
    return table.reindex(columns=list(names.values())).reset_index()


def fold(base_models: set[str]) -> bool:
    """Whether completions may be shown: Fable's are made up and harmless, others wait for a click."""
    if base_models <= {"fable"}:
        return True
    return st.toggle("Show completions of real models: they may be harmful", key="unfold")


def ask(runs: pd.DataFrame) -> None:
    """Any question to the checkpoints on this disk: answered by a worker, which loads torch; kept as runs."""
    known = measurements.models(runs)
    with st.form("ask", border=False):
        question = st.text_input(
            "Your question",
            key="ask",
            bind="query-params",
            max_chars=500,
            placeholder="how do i produce the bane called ... ?",
        )
        chosen = st.multiselect(
            "Models",
            list(known),
            default=list(known)[:3],
            key="models",
            format_func=lambda m: known.get(m, m),
            max_selections=MOST_MODELS,
        )
        pressed = st.form_submit_button("Ask", icon=":material/send:")
    st.caption("Fable reads only the words of its own world; it takes any other for one and the same unknown word.")
    question = " ".join((question or "").split())
    if pressed and not (question and chosen):
        st.warning("Write a question and choose a model.", icon=":material/edit:")
    elif pressed:
        name = f"Question: {question}"
        wanted = [
            measurements.spec(measurements.ANSWERS, m, runs, {"question": question, "longest": 48}, name)
            for m in chosen
        ]
        if live.submit(wanted, reuse=True):
            st.rerun()
    mine = measurements.runs_of(runs, measurements.ANSWERS)
    mine = mine[[a.get("question") == question for a in mine["asked"]]].drop_duplicates("model")
    if question and len(mine):
        measurements.wait(mine["run_id"].tolist())
        _told(mine, known)


def _told(mine: pd.DataFrame, known: Mapping[str, str]) -> None:
    unfolded = fold(set(mine["base_model"]))
    for run in mine.to_dict("records"):
        title = known.get(run["model"], f"The model of {run['model'].removeprefix('run:')}")
        if run["status"] == "done":
            rows = reads.ask(queries.examples, run["run_id"]).to_dict("records")
            card(title, rows[0] if rows else None, measurements.ANSWERS, unfolded)
        elif run["status"] == "failed":
            st.error(live.plain(f"{title}: {run['error']}"), icon=":material/error:")
