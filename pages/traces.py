"""Every recorded scalar of any runs, overlaid and live."""

import streamlit as st

from immunelab.analysis import traces
from immunelab.figures.traces import scalar_traces
from immunelab.store import queries
from immunelab.ui import figure, live, navigation, notebook, reads, run_picker

navigation.heading(
    "traces", "Every scalar that a run records: loss terms, gradient norms, cosines, learning rate, step time."
)

runs = reads.runs()
if runs.empty:
    navigation.nothing_yet(
        "No run has been recorded yet",
        "Start one, and its losses, norms and cosines are drawn here while it goes.",
        ("launch", "Launch a run"),
    )
    st.stop()

words = reads.labels(runs)
chosen = run_picker.runs(runs, words, key="runs", default=run_picker.latest(runs))
if not chosen:
    st.caption("Choose one or more runs above.")
    st.stop()

known = reads.ask(queries.names, chosen)
phases = sorted(known["phase"].unique())
if not phases:
    st.caption("These runs have not recorded a scalar yet.")
    live.waiting(lambda: not reads.ask(queries.names, chosen).empty)
    st.stop()
with st.grid(min_column_width=200, vertical_alignment="bottom"):
    phase = st.selectbox("Phase", phases, key="phase", bind="query-params")
    x = st.selectbox("Horizontal axis", traces.AXES, format_func=traces.AXES.get, key="x", bind="query-params")
    group = st.selectbox(
        "Group by",
        run_picker.GROUPS,
        format_func=run_picker.GROUPS.get,
        key="group",
        bind="query-params",
        help="Runs that share the setting become one line: their mean, with a band from lowest to highest.",
    )
    smoothing = st.slider("Smoothing", 0.0, 0.99, 0.0, 0.01, key="smooth", bind="query-params")
names = known.loc[known["phase"] == phase, "name"].unique().tolist()
shown = st.multiselect(
    "Scalars", sorted(names), default=run_picker.telling(names), key=f"names-{phase}", bind="query-params"
)
with st.container(horizontal=True, vertical_alignment="center"):
    log_x = st.toggle("Log horizontal", key="logx", bind="query-params")
    log_y = st.toggle("Log vertical", key="logy", bind="query-params")
    two = st.toggle("Two columns", key="two", bind="query-params")
    going = reads.active(runs)
    going = going[going["run_id"].isin(chosen)]
if not shown:
    st.caption("Choose one or more scalars above.")
    st.stop()


@st.fragment(run_every=live.tick(going))
def draw() -> None:
    points = traces.with_x(reads.ask(queries.points, chosen, shown, phase), x, runs)
    if points.empty:
        st.caption("Nothing recorded for this choice yet.")
        return
    labels, groups = {i: words[i] for i in chosen}, None
    if group != "run":
        groups = run_picker.groups(runs, chosen, group)
        points, labels = traces.bands(points, groups), {}
    drawn = scalar_traces(
        points,
        labels,
        x_title=traces.AXES[x],
        smoothing=smoothing,
        log_x=log_x,
        log_y=log_y,
        theme=figure.theme(),
        columns=2 if two else 1,
    )
    clicked = figure.show(drawn, "traces", alt=f"{', '.join(shown)} of {len(chosen)} runs against {traces.AXES[x]}")
    if clicked in words:
        navigation.go("runs", run=clicked)
    options = {
        "names": shown,
        "phase": phase,
        "x": x,
        "groups": groups,
        "labels": labels,
        "smoothing": smoothing,
        "log_x": log_x,
        "log_y": log_y,
        "columns": 2 if two else 1,
        "theme": figure.theme(),
    }
    figure.downloads(
        drawn,
        lambda: points,
        "traces",
        "Traces",
        lambda: notebook.drawing("Traces", reads.home(), "traces", options, chosen),
    )
    if live.tick(going) and reads.active(reads.runs().query("run_id in @chosen")).empty:
        st.rerun()


draw()
with st.expander("Settings that differ"):
    run_picker.differences(runs[runs["run_id"].isin(chosen)], words)
if len(going):
    for run in going.to_dict("records"):
        st.caption(live.plain(f"{words[run['run_id']]}: {run['status']}"))
