"""Every run: filter, compare, stop, resume, label and delete."""

import streamlit as st

from immunelab.ui import actions, live, navigation, reads, run_picker, run_table

navigation.heading("runs", "Every run under its own id, with the settings that ran, its state, log and record.")

runs = reads.runs()
if runs.empty:
    navigation.nothing_yet(
        "No run has been recorded yet",
        "Runs appear here the moment they are queued, from this app or from the command line.",
        ("launch", "Launch a run"),
        ("overview", "Run the live demo"),
    )
    st.stop()

actions.told()
words = reads.labels(runs)
with st.grid(min_column_width=190, vertical_alignment="bottom"):
    text = st.text_input("Search", key="q", bind="query-params", placeholder="name, id, tag, note", type="search")
    kinds = st.multiselect("Kind", sorted(runs["kind"].unique()), key="kinds", bind="query-params")
    states = st.multiselect("Status", sorted(runs["status"].unique()), key="states", bind="query-params")
    defended = st.multiselect("Defense", sorted(runs["defense"].dropna().unique()), key="defenses", bind="query-params")
    with st.container(horizontal=True):
        shipped = st.toggle("Showcase", value=True, key="shipped", bind="query-params")
        archived = st.toggle("Archived", key="archived", bind="query-params")
found = run_table.filtered(runs, words, text, kinds, states, defended, shipped, archived)


@st.fragment(run_every=live.tick(runs))
def overview() -> None:
    fresh = reads.runs()
    run_table.draw(fresh[fresh["run_id"].isin(found["run_id"])], words)
    live.rerun_when_over()


overview()
st.caption(f"{len(found)} of {len(runs)} runs. Select rows to open or compare them; click a heading to sort.")
chosen = run_picker.runs(runs, words, key="run", default=[])
rows = runs[runs["run_id"].isin(chosen)]
if rows.empty:
    st.stop()
if len(rows) > 1:
    st.subheader("Compare", anchor=False)
    everything = st.toggle("Show equal settings too", key="equal")
    table = run_picker.difference(rows, words, everything)
    if table.empty:
        st.caption("These runs have the same settings.")
    else:
        st.dataframe(table, alt="Settings of the chosen runs side by side")
    navigation.link("traces", "Overlay their traces", runs=list(rows["run_id"]))
    actions.on_several(rows, words)
    st.stop()

run = rows.iloc[0].to_dict()
st.subheader(live.plain(words[run["run_id"]]), anchor=False)
st.caption(live.plain(run["run_id"]))


@st.fragment(run_every=live.tick(rows))
def detail() -> None:
    now = reads.runs()
    now = now[now["run_id"] == run["run_id"]]
    if now.empty:
        st.rerun()
    current = now.iloc[0].to_dict()
    if current["status"] in reads.ACTIVE:
        live.progress(current, words[run["run_id"]])
    actions.state(current)
    actions.buttons(current)
    if current["status"] != run["status"]:
        st.rerun()


detail()
tab = st.segmented_control(
    "Show",
    ["Settings", "Log", "Scores", "Checkpoints", "Labels"],
    default="Settings",
    required=True,
    key="tab",
    bind="query-params",
    label_visibility="collapsed",
)
if tab == "Settings":
    st.dataframe(run_table.settings(run), hide_index=True, alt="The settings that ran")
elif tab == "Log":

    @st.fragment(run_every=live.tick(rows))
    def log() -> None:
        st.code(run_table.log_tail(run) or "The log is empty.", language=None, height=420, wrap_lines=True)

    log()
elif tab == "Scores":
    run_table.scores(run)
elif tab == "Checkpoints":
    held = reads.checkpoints(run["run_id"])
    st.dataframe(held, hide_index=True, alt="Checkpoints") if len(held) else st.caption("No checkpoint is recorded.")
else:
    actions.labels_form(run)
