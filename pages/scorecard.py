"""The four conditions of immunization for one defense, each with the runs behind it and the tested budget."""

import streamlit as st

from immunelab.ui import live, navigation, reads, scorecard

navigation.heading(
    "scorecard",
    "Resistance, stability, generalization and trainability of a defense, beside the undefended model; a verdict "
    "covers the tested budget only.",
)

runs = reads.runs()
if not ((runs["kind"] == "immunize") & (runs["status"] == "done")).any():
    navigation.nothing_yet(
        "No finished immunization to score yet",
        "Immunize a model and attack it and its undefended twin; each verdict shows the runs behind it.",
        ("launch", "Launch an immunization"),
        ("overview", "Run the live demo"),
    )
    live.waiting(lambda: (reads.runs().query("kind == 'immunize'")["status"] == "done").any())
    st.stop()

view = st.segmented_control(
    "Show", ["One defense", "All defenses"], default="One defense", required=True, key="view", bind="query-params"
)
if view == "All defenses":
    with st.spinner("Reading the scorecards"):
        scorecard.side_by_side(runs, reads.stop_on_error(scorecard.limits))
    live.runs_under_way()
    st.stop()

with st.container(horizontal=True, vertical_alignment="bottom"):
    chosen = scorecard.choose(runs)
limits = reads.stop_on_error(scorecard.limits)


@st.fragment(run_every=live.tick(reads.runs(showcase=False)))
def draw() -> None:
    found = scorecard.scorecard(chosen, limits)
    st.caption(live.plain(f"Seeds {', '.join(map(str, found.seeds))}. Tested budget: {found.budget}."))
    scorecard.verdicts(found)
    scorecard.offer(found, reads.runs(), chosen)
    scorecard.downloads(found)
    which = st.segmented_control(
        "Behind the verdicts",
        list(scorecard.TABLES),
        default="Attacks",
        required=True,
        key="table",
        bind="query-params",
    )
    scorecard.table(found, scorecard.TABLES[which])
    live.rerun_when_over()


draw()
navigation.link("tradeoff", "Harm against utility, and the bounded worst case")
live.runs_under_way()
