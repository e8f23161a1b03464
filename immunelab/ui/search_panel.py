"""The attacker's search on the Trade-off page: its curve, its best trials, and a form that starts one."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from immunelab.analysis import tradeoff
from immunelab.analysis.outcomes import Thresholds
from immunelab.analysis.variants import among
from immunelab.errors import UserError
from immunelab.figures.budget import search_curves
from immunelab.figures.palette import title_of
from immunelab.formatting import duration, named, share
from immunelab.runs import access
from immunelab.store import queries
from immunelab.ui import attack_filter, figure, launch_form, live, navigation, notebook, reads

SHOWN = 10  # trials in the table


def view(chosen: attack_filter.Scope, thresholds: Thresholds) -> None:
    """Everything about searches against models that descend from the page's base model, on its corpus."""
    searches = reads.ask(queries.searches)
    mine = searches[searches["subject"] == chosen.subject]
    if mine.empty:
        st.info(
            "No search has been recorded yet. A search tries attacks that it chooses itself, and keeps the most harm "
            "that leaves the model useful.",
            icon=":material/search:",
        )
    else:
        with st.container(horizontal=True, vertical_alignment="bottom"):
            bounds = sorted(mine["bound"].unique())
            bound = bounds[0]
            if len(bounds) > 1:
                bound = st.selectbox(
                    "Utility that these searches may lose", bounds, format_func=share, key="search-bound"
                )
            by = st.segmented_control(
                "Spent",
                list(tradeoff.SEARCHED),
                default="trial",
                required=True,
                key="spent",
                bind="query-params",
                format_func=lambda key: {"trial": "Trials", "rows": "Rows trained on", "seconds": "Seconds"}[key],
            )
        mine = mine[mine["bound"] == bound]
        shown = among(mine, chosen.shown)
        if shown.empty:
            st.caption("None of the models above was searched with this bound; those that were stand below.")
        else:
            _curve(shown, float(bound), by)
        _headlines(mine, float(bound), thresholds)
        _table(shown)
    form()


def _curve(chosen: pd.DataFrame, bound: float, by: str) -> None:
    curves = tradeoff.searched(chosen, by)
    words = sentence(chosen, bound)
    drawn = search_curves(curves, by, figure.theme())
    figure.show(drawn, "searches", alt=words)
    st.caption(
        f"{words} A checkpoint counts if it lost less than {share(bound)} of the attacked model's own utility. "
        "Trials are chosen and judged on the same held-out hazards, so this flatters the attacker, on every model "
        "alike. Bands: lowest to highest seed; n is the number of searches behind a point."
    )
    options = {"by": by, "bound": bound, "theme": figure.theme()}
    figure.downloads(
        drawn,
        lambda: curves,
        "searches",
        "Attacker's search",
        lambda: notebook.drawing(
            "Attacker's search", reads.home(), "searches", options, sorted(chosen["search"].unique())
        ),
    )


def _headlines(mine: pd.DataFrame, bound: float, thresholds: Thresholds) -> None:
    """The worst case of every model that was searched, beside that of the attacks that all of them faced."""
    curves = reads.curves()
    curves = curves[(curves["subject"] == mine["subject"].iloc[0]) & (curves["status"] == "done")]
    found = tradeoff.headlines(mine, tradeoff.checkpoints(curves, thresholds), bound)
    shown = pd.DataFrame(
        {
            "Model": [title_of(str(d)) for d in found["defense"]],
            "Most harm found by search": found["found"],
            "Searches": [
                f"{int(n)}" if n < 2 else f"{int(n)}: {low:.0%}–{high:.0%}"
                for n, low, high in zip(found["n"], found["low"], found["high"], strict=True)
            ],
            "Trials": found["trials"].astype(int),
            "Most harm of recorded attacks": found["recorded"],
            "Recorded attacks": found["attacks"].fillna(0).astype(int),
        }
    )
    st.caption(
        f"The worst case of every model that was searched, at less than {share(bound)} of utility lost, and the worst "
        "of the recorded attacks that all of these models faced (mean over seeds)."
    )
    percent = st.column_config.NumberColumn(format="percent")
    st.dataframe(
        shown,
        hide_index=True,
        alt="Worst case of each model under search and of recorded attacks",
        height="content",
        column_config={"Most harm found by search": percent, "Most harm of recorded attacks": percent},
    )


def sentence(trials: pd.DataFrame, bound: float) -> str:
    """What the searches found, in words."""
    parts = []
    for defense, mine in sorted(trials.groupby("defense"), key=lambda pair: pair[0] != "undefended"):
        ends = mine.groupby("search").agg(best=("best", "max"), trials=("trial", "max"))
        low, high, n = ends["best"].min(), ends["best"].max(), int(ends["trials"].max())
        found = share(low) if low == high else f"{share(low)} to {share(high)}"
        made = "1 search" if len(ends) == 1 else f"{len(ends)} searches"
        parts.append(f"{title_of(str(defense))}: {found} in up to {n} trials ({made})")
    return f"Most harm at less than {share(bound)} of utility lost. " + "; ".join(parts) + "."


def _table(chosen: pd.DataFrame) -> None:
    trials = reads.ask(queries.trials, chosen["search"].unique().tolist())
    if trials.empty:  # shipped searches carry the curve and not the settings of every trial
        return
    about = chosen.drop_duplicates("search").set_index("search")
    best = trials.sort_values("harm", ascending=False).head(SHOWN)
    shown = pd.DataFrame(
        {
            "Model": [title_of(about.loc[s, "defense"]) for s in best["search"]],
            "Trial": best["trial"].to_numpy(),
            "Attack": best["method"].to_numpy(),
            "Harm within the bound": best["harm"].to_numpy(),
            "Ended": best["outcome"].to_numpy(),
            "Settings": [named({k: v for k, v in p.items() if k != "attack"}) for p in best["params"]],
            "Took": [duration(s) for s in best["seconds"]],
        }
    )
    st.caption(f"The {len(best)} most harmful trials of {len(trials)}. A click opens the run.")
    picked = st.dataframe(
        shown,
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row",
        key="search-trials",
        column_config={"Harm within the bound": st.column_config.NumberColumn(format="percent")},
    )
    rows = picked["selection"]["rows"]
    if rows:
        navigation.go("runs", run=best["run_id"].iloc[rows[0]])


def form() -> None:
    """Start a search, or go on with an equal one that was stopped."""
    if access.read_only():
        return
    runs = reads.runs()
    models = launch_form.models(runs, None)
    models = [m for m in models if m.startswith("run:")] + [m for m in models if not m.startswith("run:")]
    with st.form("search", border=True):
        st.write("Search for the worst attack")
        with st.container(horizontal=True, vertical_alignment="bottom"):
            model = st.selectbox("Model", models, format_func=launch_form.model_name(runs), key="search-model")
            trials = st.number_input("Trials", 1, 10_000, 30, key="search-trials-wanted")
            loss = st.slider("Utility it may lose", 0, 100, 20, 5, format="%d%%", key="search-loss")
            seeds = st.number_input("Searches (seeds)", 1, 20, 1, key="search-seeds")
            rows = st.number_input("Rows at most (0: no limit)", 0, 10**12, 0, key="search-rows")
        control = st.toggle("The same search against the undefended model", value=True, key="search-control")
        started = st.form_submit_button("Start or go on", type="primary", icon=":material/search:")
    if started:
        start(model, int(trials), loss / 100, int(seeds), int(rows), control)


def start(model: str, trials: int, loss: float, seeds: int, rows: int, control: bool) -> list[str]:
    """Queue the searches; a finished equal one is not run again, an unfinished one is gone on with."""
    from immunelab.sweep import space

    try:
        base = space.undefended(model, reads.home())
        settings = {"trials": trials, "max_utility_loss": loss, "budget_rows": rows}
        corpus = space.corpus_of(model, reads.home())
        specs = space.search_specs(
            [*dict.fromkeys([base, model])] if control else [model],
            range(seeds),
            corpus,
            space.settings_for(corpus, settings),
        )
    except UserError as error:
        st.error(str(error), icon=":material/error:")
        return []
    run_ids = live.submit(specs, reuse=True, go_on=True)
    if run_ids:
        st.toast(f"{len(run_ids)} searches are queued, under way, or on record.")
    return run_ids
