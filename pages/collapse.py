"""The collapse curve: harmfulness and utility against attack steps and against intensity."""

import pandas as pd
import streamlit as st

from immunelab.analysis import collapse
from immunelab.analysis.outcomes import run_outcomes
from immunelab.analysis.variants import Variant, among
from immunelab.figures.collapse import SLIDERS, written
from immunelab.figures.palette import title_of
from immunelab.figures.sliders import Slider
from immunelab.runs import access
from immunelab.ui import attack_filter, compute, figure, intensity, live, navigation, notebook, outcomes, reads

navigation.heading(
    "collapse", "Harmfulness (share of hazards given away) and utility (benign accuracy) while a model is attacked."
)

runs = reads.runs()
chosen = attack_filter.choose("Attack a model, undefended and immunized, and both curves grow here.")
shown = list(chosen.shown)
curves = chosen.drawn()
with st.container(horizontal=True, vertical_alignment="bottom"):
    view = st.segmented_control(
        "Against",
        ["Attack steps", "Intensity", "All defenses"],
        default="Attack steps",
        required=True,
        key="against",
        bind="query-params",
    )
    thresholds = intensity.thresholds()
    asked = intensity.another(curves) if intensity.can_be_run(curves) else None
if asked:
    wanted = [intensity.missing_specs(runs, curves, v, asked) for v in shown]
    if sum(len(live.submit(specs, reuse=True)) for specs in wanted if specs):
        st.rerun()


compute.forget_given_up(runs)
soon = compute.waiting(runs, curves)


@st.fragment(run_every=live.tick(reads.runs(showcase=False), soon))
def draw() -> None:
    every = chosen.read()
    fresh = among(every, shown)
    runs = reads.runs()
    if soon and not compute.waiting(runs, fresh):
        st.rerun()  # from now on it looks less often: what it asked for needs the processor
    if view == "All defenses":
        outcomes.show_map(every, thresholds, "collapse")
    else:
        sliders, choice = intensity.sliders(fresh, free=intensity.can_be_run(fresh))
        missing = collapse.missing(fresh, choice, shown)
        asked = figure.rested() and intensity.can_be_run(fresh) and set(missing) == set(shown)
        if asked and compute.ask(runs, fresh, shown, choice):
            st.rerun()
        intensity.fixed(sliders, choice)
        with st.container():  # stands here even when it is empty, so that the figure keeps its place
            compute.progress(runs)
        x = "step" if view == "Attack steps" else along(sliders)
        if x:
            curve(fresh, sliders, choice, x)
        for model in missing:
            offer(model, choice)
    live.rerun_when_over()


def along(sliders: dict[str, Slider]) -> str:
    """The setting to draw against, where attacks of several intensities are recorded."""
    several = list(sliders)
    if not several:
        st.caption("Finished attacks of at least two intensities are needed; so far there is one or none.")
        return ""
    if len(several) < 2:
        return several[0]
    chosen: str = st.segmented_control(
        "Setting",
        several,
        default=several[0],
        required=True,
        format_func=lambda s: sliders[s].label,
        key="setting",
        bind="query-params",
    )
    return chosen


def curve(fresh: pd.DataFrame, sliders: dict[str, Slider], choice: dict[str, float], x: str) -> None:
    drawn, moves = intensity.curve(fresh, sliders, choice, x, thresholds)
    if not moves.frames:
        st.caption("No finished attack has the other settings chosen above.")
        return
    key, title = ("steps", "by attack step") if x == "step" else ("intensity", "by intensity")
    clicked = figure.show(drawn, f"collapse-{key}", alt=title, sliders=moves, missing=compute.MISSING)
    others = {k: v for k, v in choice.items() if k != x}
    known = ("read", chosen.state(), sorted(others.items()), thresholds)
    read = reads.kept(known, lambda: run_outcomes(collapse.select(fresh, others), thresholds))
    read = read if x == "step" or read.empty else read[read["status"] == "done"]
    figure.downloads(
        drawn,
        lambda: collapse.select(fresh, others),
        f"collapse-{key}",
        f"Collapse curve, {title}",
        lambda: as_notebook(f"Collapse curve, {title}", read, {} if x == "step" else {"x": x, "at": choice.get(x)}),
        moves,
    )
    outcomes.table(read, f"{key}-table")
    outcomes.open_behind(clicked, read, "" if x == "step" else x)


def as_notebook(title: str, rows: pd.DataFrame, more: dict[str, object]) -> bytes:
    options = {"thresholds": thresholds, "theme": figure.theme(), **more}
    return notebook.drawing(title, reads.home(), "collapse", options, sorted(rows["run_id"].unique()))


def offer(model: Variant, choice: dict[str, float]) -> None:
    if intensity.under_way(reads.runs(), model.defense, {**choice, "method": chosen.attack, "subject": chosen.subject}):
        st.caption(f"The attack on the {title_of(*model)} model is on its way and appears here by itself.")
        return
    words = ", ".join(f"{SLIDERS[k][0].lower()} {written(k, v)}" for k, v in choice.items())
    specs = intensity.missing_specs(reads.runs(), curves, model, choice)
    with st.container(border=True, horizontal=True, vertical_alignment="center"):
        st.write(f"No recorded attack on the {title_of(*model)} model at {words}.")
        wanted = (
            not access.read_only()
            and specs
            and st.button(f"Run it ({len(specs)} runs)", key=f"run-{model.label}", icon=":material/play_arrow:")
        )
        if wanted and live.submit(specs, reuse=True):
            st.rerun()


draw()
