"""Tuned defenses on the Trade-off page: each tuning's settings in a figure and a table, and a form that starts one."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from immunelab.analysis import tuning
from immunelab.errors import UserError
from immunelab.figures.palette import title_of
from immunelab.figures.tuning import tuning as drawing
from immunelab.formatting import duration, named, share
from immunelab.method import catalogue
from immunelab.runs import access
from immunelab.store import queries
from immunelab.ui import attack_filter, figure, launch_form, live, navigation, reads


def view(chosen: attack_filter.Scope) -> None:
    """The tunings on the page's base model and corpus, one at a time."""
    found = reads.ask(queries.tunings)
    mine = found[found["subject"] == chosen.subject]
    if mine.empty:
        st.info(
            "No defense has been tuned on this model yet. A tuning tries settings of a defense against a panel of "
            "attacks, and keeps the one that gives least away at 97 % of the utility.",
            icon=":material/tune:",
        )
    else:
        ids = list(reversed(mine["tuning"].unique()))
        about = mine.drop_duplicates("tuning").set_index("tuning")
        picked = st.selectbox(
            "Tuning",
            ids,
            format_func=lambda i: f"{title_of(str(about.loc[i, 'tuned']))}, seed {about.loc[i, 'tuning_seed']} · {i}",
            key="tuning",
            bind="query-params",
        )
        _one(mine[mine["tuning"] == picked])
    form()


def _one(events: pd.DataFrame) -> None:
    table, first = tuning.settings_table(events), events.iloc[0]
    if table.empty:
        st.caption("Nothing has been tried yet: the undefended model faces the panel first.")
        return
    words = tuning.sentence(events)
    drawn = drawing(table, first["tuned"], first["knobs"]["utility"], tuning.control(events), figure.theme())
    figure.show(drawn, "tuned", alt=words)
    bound = share(first["knobs"]["max_utility_loss"])
    st.caption(
        f"{words} Harm: the most that an attack of the panel does in a checkpoint that lost less than {bound} of the "
        "defended model's utility. A setting that costs too much faces no attack and stands at the bottom."
    )
    percent = st.column_config.NumberColumn(format="percent")
    columns = {
        "kept": "Utility before any attack",
        "harm": "Most harm",
        "worst": "By",
        "outcome": "Ended",
        "confirmed_harm": "Harm, other seeds",
        "low": "from",
        "high": "to",
        "confirmed_kept": "Utility, other seeds",
    }
    shown = table.rename(columns=columns)[list(columns.values())]
    shown.insert(0, "Setting", ["preset" if s == 1 else str(s) for s in table["setting"]])
    shown["Settings"] = [named(s) for s in table["settings"]]
    shown["Took"] = [duration(s) for s in table["seconds"]]
    st.dataframe(
        shown,
        hide_index=True,
        alt="Settings that were tried, and what became of them",
        column_config={name: percent for key, name in columns.items() if key not in ("worst", "outcome")},
    )
    won = events[events["event"] == "tuned"]
    if len(won) and st.button("Open the model that was made with the winner", icon=":material/open_in_new:"):
        navigation.go("runs", run=str(won["run_id"].iloc[-1]))


def form() -> None:
    """Start a tuning, or go on with an equal one that was stopped."""
    if access.read_only():
        return
    runs = reads.runs()
    with st.form("tune", border=True):
        st.write("Tune a defense")
        with st.container(horizontal=True, vertical_alignment="bottom"):
            defense = st.selectbox(
                "Defense",
                catalogue.names("defense"),
                index=catalogue.names("defense").index("seam"),
                format_func=title_of,
                key="tune-defense",
            )
            model = st.selectbox(
                "Model",
                launch_form.models(runs, None),
                format_func=launch_form.model_name(runs),
                accept_new_options=True,
                key="tune-model",
            )
            corpus = st.selectbox("Corpus", launch_form.corpora(runs, None), accept_new_options=True, key="tune-corpus")
            trials = st.number_input("Settings to try", 1, 10_000, 24, key="tune-trials")
            kept = st.slider("Utility to keep", 0, 100, 97, 1, format="%d%%", key="tune-kept")
        panel = st.text_input(
            "Panel of attacks",
            "",
            placeholder="as suits the corpus",
            key="tune-panel",
            help="NAME@RUNG or NAME@PRESET, with commas.",
        )
        vary = st.text_input(
            "Settings to vary",
            "",
            placeholder="the numbers of the preset",
            key="tune-vary",
            help="NAME=LOW..HIGH or NAME=A|B, with commas.",
        )
        started = st.form_submit_button("Start or go on", type="primary", icon=":material/tune:")
    if started:
        values = {"trials": int(trials), "utility": kept / 100, "panel": panel, "vary": vary}
        start(str(defense), str(model), str(corpus), values)


def start(defense: str, model: str, corpus: str, values: dict[str, object]) -> list[str]:
    """Queue the tuning; a finished equal one is not run again, an unfinished one is gone on with."""
    from immunelab.sweep import tuning as wanted

    try:
        specs = wanted.tune_specs([defense], model, corpus, values=values)
    except UserError as error:
        st.error(str(error), icon=":material/error:")
        return []
    run_ids = live.submit(specs, reuse=True, go_on=True)
    if run_ids:
        st.toast("The tuning is queued, under way, or on record.")
    return run_ids
