"""Benign against harmful gradients: by step, by layer, along attacks, as vectors; and the estimator's error."""

import pandas as pd
import streamlit as st

from immunelab.analysis import collapse, gradients, traces
from immunelab.analysis.variants import BASELINE, among, labels, present
from immunelab.figures.gradients import cosines_along, gradient_plane, layer_map
from immunelab.figures.traces import scalar_traces
from immunelab.store import queries
from immunelab.ui import attack_filter, figure, live, measurements, navigation, reads, run_picker

navigation.heading(
    "gradients", "The angle between what lowers benign loss and what lowers harmful loss: what SEAM turns around."
)

runs = reads.runs()
words = reads.labels(runs)
ESTIMATOR = "Estimator error"  # measured on a model as it is: it needs no run
VIEWS = ["By step", "By layer", "Along attacks", "Projection", ESTIMATOR]
view = st.segmented_control(
    "Show", VIEWS, default=VIEWS[0], required=True, key="view", bind="query-params", label_visibility="collapsed"
)
if runs.empty and view != ESTIMATOR:
    navigation.nothing_yet(
        "No run has recorded gradients yet",
        "Immunizations and attacks record both gradients' angle while they go.",
        ("launch", "Launch an immunization"),
        ("overview", "Run the live demo"),
    )
    live.waiting(lambda: not reads.runs().empty)
    st.stop()
BY_STEP = (
    "cosine/harmful-benign",
    "norm/harmful",
    "norm/benign",
    "norm/coupling",
    "norm/rest",
    "norm/update",
    "estimator/displacement",
)
ALONG = {
    "probe/cosine/harmful-benign": "Cosine of harmful and benign gradient, held-out rows",
    "probe/cosine/update-harmful": "Cosine of the update with the harmful gradient: above 0 it lowers harmful loss",
    "probe/cosine/update-benign": "Cosine of the update with the benign gradient: below 0 it raises benign loss",
}


def by_step() -> None:
    chosen = run_picker.runs(runs, words, key="runs", default=run_picker.latest(runs[runs["kind"] == "immunize"], 3))
    known = [n for n in BY_STEP if n in set(reads.ask(queries.names, chosen)["name"])] if chosen else []
    if not known:
        st.caption("Choose runs that record gradients, such as an immunization with SEAM.")
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        shown = st.multiselect("Scalars", known, default=known[:3], key="scalars", bind="query-params")
        smoothing = st.slider("Smoothing", 0.0, 0.99, 0.0, 0.01, key="smooth", bind="query-params", width=220)

    @st.fragment(run_every=live.tick(runs[runs["run_id"].isin(chosen)]))
    def draw() -> None:
        points = traces.with_x(reads.ask(queries.points, chosen, shown), "step", runs)
        told, theme = {i: words[i] for i in chosen}, figure.theme()
        rows = int(pd.util.hash_pandas_object(points, index=False).sum())
        drawn = reads.kept(
            ("by step", rows, told, smoothing, theme),
            lambda: figure.shared(scalar_traces(points, told, smoothing=smoothing, theme=theme)),
        )
        figure.show(drawn, "gradients", alt=f"{', '.join(shown)} of {len(chosen)} runs against the step")
        figure.downloads(drawn, lambda: points, "gradients", "Gradients by step")
        live.rerun_when_over()

    draw()


def one_run(having: set[str], key: str) -> str | None:
    """A choice among the runs that recorded something, the one to show first at the top."""
    mine = runs[runs["run_id"].isin(having)].sort_values("kind", key=lambda k: k != "immunize", kind="stable")
    first = run_picker.latest(mine, most=1)
    mine = mine.sort_values("run_id", key=lambda i: ~i.isin(first), kind="stable")
    if mine.empty:
        st.caption("No run has recorded this yet: it appears with the first immunization.")
        return None
    ids, asked_for = mine["run_id"].tolist(), st.query_params.get(key)
    start = ids.index(asked_for) if asked_for in ids else 0
    run_id = st.selectbox("Run", ids, index=start, format_func=lambda i: words.get(i, i), key=f"{key}-choice")
    st.query_params[key] = run_id
    return run_id


def by_layer() -> None:
    run_id = one_run(set(reads.ask(queries.with_layers)["run_id"]), "run")
    if run_id is None:
        return
    known = reads.ask(queries.layer_names, [run_id])["name"].unique().tolist()
    name = st.segmented_control("Series", known, default=known[0], required=True, key="series", bind="query-params")
    frame = reads.ask(queries.layers, [run_id], name)
    drawn = layer_map(frame, name, figure.theme())
    ends = frame[frame["step"] == frame["step"].max()]
    figure.show(drawn, "layers", alt=f"{name} by step and layer; last: " + ", ".join(f"{v:.3g}" for v in ends["value"]))
    scale = (
        "from -1 (orange) over 0 (as the page) to 1 (blue)"
        if "cosine" in name
        else "logarithmic: the bluer, the larger"
    )
    st.caption(f"Colors: {scale}. Numbers stand in the cells, or under the pointer.")
    figure.downloads(drawn, lambda: frame, "layers", f"{name} by step and layer")


def along_attacks() -> None:
    attacks = runs[(runs["kind"] == "attack") & (runs["status"] == "done")].iloc[::-1]  # the oldest first
    if attacks.empty:
        st.caption("No finished attack is recorded yet.")
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        attacks = collapse.comparable(attacks, attack_filter.attacked(attacks))
        attacks = attack_filter.of_attack(attacks, attack_filter.which(attacks))
        others = attack_filter.beside(attacks)
    attacks = among(attacks, [BASELINE, *others])
    rates = sorted(attacks["learning_rate"].dropna().unique())
    if not rates:
        st.caption("These attacks have no learning rate.")
        return
    rate = rates[len(rates) // 2]
    if len(rates) > 1:
        texts = {f"{r:g}": r for r in rates}
        rate = texts[st.select_slider("Learning rate", list(texts), f"{rate:g}", key="rate", bind="query-params")]
    mine = collapse.one_attack(attacks[attacks["learning_rate"] == rate], "step").set_index("run_id")
    points = traces.with_x(reads.ask(queries.points, mine.index.tolist(), list(ALONG)), "step", runs)
    if points.empty:
        st.caption("These attacks recorded no probes (`probe_every` was 0).")
        return
    bands = traces.bands(points, labels(mine).to_dict())
    drawn = cosines_along(bands, ALONG, {v.label: v for v in present(mine)}, figure.theme())
    figure.show(drawn, "along", alt=f"Cosines of held-out gradients along attacks at learning rate {rate:g}")
    figure.downloads(drawn, lambda: bands, "along", "Gradients along attacks")


def projection() -> None:
    run_id = one_run(set(runs.loc[runs["kind"].isin(("immunize", "attack")), "run_id"]), "run")
    if run_id is None:
        return
    names = [n for source in gradients.SOURCES for n in gradients.names(source)]
    points = reads.ask(queries.points, [run_id], names)
    planes = {s: gradients.plane(points, s) for s in gradients.SOURCES}
    sources = [s for s in planes if len(planes[s])]
    if not sources:
        st.caption("This run has not recorded both gradients.")
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        source = st.segmented_control(
            "Measured on", sources, default=sources[0], required=True, format_func=gradients.SOURCES.get, key="source"
        )
        unit = st.toggle("Unit lengths", key="unit", bind="query-params")
    plane = planes[source]
    steps = plane["step"].tolist()
    step = (
        st.select_slider("Step", steps, value=steps[-1], key=f"step-{run_id}-{source}") if len(steps) > 1 else steps[0]
    )
    drawn = gradient_plane(plane, step, unit, figure.theme())
    first, now = plane.iloc[0], plane[plane["step"] == step].iloc[0]
    said = f"Cosine {first['cosine']:.3f} at step {first['step']:g}, {now['cosine']:.3f} at step {step}."
    st.markdown(live.plain(said))
    figure.show(drawn, "projection", alt=f"{said} Both gradients in the plane that they span.")
    st.caption(
        "Exact, not a reduction: two vectors span a plane, and lengths and cosine are those of all weights. "
        "Each step's plane is its own; the harmful gradient is turned onto the horizontal axis."
    )
    figure.downloads(drawn, lambda: plane, "projection", "Benign and harmful gradients")


{
    "By step": by_step,
    "By layer": by_layer,
    "Along attacks": along_attacks,
    "Projection": projection,
    ESTIMATOR: lambda: measurements.estimator(runs),
}[view]()
