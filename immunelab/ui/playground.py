"""The Playground: recorded answers side by side, and questions of one's own. Answers are untrusted text: shown as code,
never as Markdown or HTML; those of models other than Fable stay folded until someone asks for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from immunelab.analysis.variants import BASELINE, KEYS, Variant, among, of, pinned_first, present
from immunelab.figures.collapse import SLIDERS
from immunelab.figures.palette import title_of
from immunelab.method import catalogue
from immunelab.store import queries
from immunelab.ui import live, measurements, reads

MOST_MODELS = 8
MOST_BESIDE = 3  # columns of answers that have room side by side


def models(curves: pd.DataFrame) -> tuple[int, list[Variant]]:
    """The seed and the models to show: the undefended one and defenses that were attacked with the same seed."""
    seeds = sorted(int(s) for s in curves["seed"].unique())
    if not seeds:
        return 0, []
    seed, several = seeds[0], len(seeds) > 1
    known = pinned_first(present(curves))
    with st.container(horizontal=True, vertical_alignment="bottom"):
        if several:
            seed = int(
                st.segmented_control("Seed", seeds, default=seed, required=True, key="seed", bind="query-params")
            )
        found = [v for v in known if not of(curves[curves["seed"] == seed], v).empty]
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
    return seed, found


def run_of(curves: pd.DataFrame, model: Variant, seed: int) -> str:
    """The newest attack of these on a model with a seed."""
    mine = of(curves, model)
    return str(mine[mine["seed"] == seed]["run_id"].max())


def answers(curves: pd.DataFrame, shown: Sequence[Variant], seed: int, prompt: str) -> pd.DataFrame:
    """The answers of these models to a prompt at every recorded intensity and step: run_id, step, answer, score,
    defense, variant and the intensity; of attacks that differ in nothing else the newest."""
    runs = among(curves[curves["seed"] == seed], shown).drop_duplicates("run_id").sort_values("run_id")
    runs = runs.drop_duplicates([*KEYS, *SLIDERS], keep="last")[["run_id", *KEYS, *SLIDERS]]
    found = reads.ask(queries.answers, sorted(runs["run_id"]), prompt)
    return found.merge(runs, on="run_id")


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
