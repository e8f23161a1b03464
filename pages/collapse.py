"""The collapse curve: harmfulness and utility against attack steps and against intensity."""

import pandas as pd
import streamlit as st

from immunelab.analysis import collapse
from immunelab.analysis.outcomes import run_outcomes
from immunelab.analysis.variants import Variant, among
from immunelab.figures.collapse import collapse_curve
from immunelab.figures.palette import title_of
from immunelab.ui import attack_filter, figure, intensity, live, navigation, notebook, outcomes, reads

navigation.heading(
    "collapse", "Harmfulness (share of hazards given away) and utility (benign accuracy) while a model is attacked."
)

runs = reads.runs()
chosen = attack_filter.choose("Attack a model, undefended and immunized, and both curves grow here.")
shown = list(chosen.shown)
curves = chosen.drawn()
recorded = intensity.cells(chosen.read())

choice = intensity.sliders(curves)
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
    asked = intensity.another(curves, choice)
if asked:
    wanted = [intensity.missing_specs(runs, curves, v, asked) for v in shown]
    if sum(len(live.submit(specs, reuse=True)) for specs in wanted if specs):
        st.rerun()


@st.fragment(run_every=live.tick(reads.runs(showcase=False)))
def draw() -> None:
    every = chosen.read()
    if intensity.cells(every) != recorded:
        st.rerun()  # a new intensity or defense has arrived: the sliders get it too
    fresh = among(every, shown)
    done = fresh[fresh["status"] == "done"]
    if view == "All defenses":
        outcomes.show_map(every, thresholds, "collapse")
    elif view == "Attack steps":
        along_steps(collapse.select(fresh, choice))
    else:
        along_intensity(done)
    live.rerun_when_over()


def along_steps(picked: pd.DataFrame) -> None:
    gaps = collapse.missing(picked, {}, shown)
    if len(picked):
        base = float(picked["base_utility"].dropna().mean())
        read = run_outcomes(picked, thresholds)
        drawn = collapse_curve(
            collapse.by_step(picked),
            "step",
            thresholds,
            base,
            figure.theme(),
            marks=collapse.marks(read[read["status"] == "done"]),
        )
        clicked = figure.show(drawn, "collapse-steps", alt=outcomes.sentence(read))
        figure.downloads(
            drawn,
            lambda: picked,
            "collapse-steps",
            "Collapse curve, by attack step",
            lambda: as_notebook("Collapse curve, by attack step", picked, {}),
        )
        outcomes.table(read, "steps-table")
        outcomes.open_behind(clicked, read)
    for model in gaps:
        offer(model)


def along_intensity(done: pd.DataFrame) -> None:
    several = [s for s in intensity.SLIDERS if len(collapse.recorded(done, s)) > 1]
    if not several:
        st.caption("Finished attacks of at least two intensities are needed; so far there is one or none.")
        return
    x = several[0]
    if len(several) > 1:
        x = st.segmented_control(
            "Setting",
            several,
            default=x,
            required=True,
            format_func=lambda s: intensity.SLIDERS[s][0],
            key="setting",
            bind="query-params",
        )
    along = collapse.select(done, {k: v for k, v in choice.items() if k != x})
    bands = collapse.by_intensity(along, x, thresholds)
    if bands.empty:
        st.caption("No finished attack has the other settings chosen above.")
        return
    base = float(along["base_utility"].dropna().mean())
    drawn = collapse_curve(bands, x, thresholds, base, figure.theme(), at=choice.get(x))
    read = run_outcomes(along, thresholds)
    clicked = figure.show(drawn, "collapse-intensity", alt=outcomes.sentence(read))
    figure.downloads(
        drawn,
        lambda: bands,
        "collapse-intensity",
        "Collapse curve, by intensity",
        lambda: as_notebook("Collapse curve, by intensity", along, {"x": x, "at": choice.get(x)}),
    )
    outcomes.table(read, "intensity-table")
    outcomes.open_behind(clicked, read, x)


def as_notebook(title: str, rows: pd.DataFrame, more: dict[str, object]) -> bytes:
    options = {"thresholds": thresholds, "theme": figure.theme(), **more}
    return notebook.drawing(title, reads.home(), "collapse", options, sorted(rows["run_id"].unique()))


def offer(model: Variant) -> None:
    if intensity.under_way(reads.runs(), model.defense, {**choice, "method": chosen.attack, "subject": chosen.subject}):
        st.caption(f"The attack on the {title_of(*model)} model is on its way and appears here by itself.")
        return
    words = ", ".join(f"{intensity.SLIDERS[k][0].lower()} {intensity.shown(k, v)}" for k, v in choice.items())
    specs = intensity.missing_specs(reads.runs(), curves, model, choice)
    with st.container(border=True, horizontal=True, vertical_alignment="center"):
        st.write(f"No recorded attack on the {title_of(*model)} model at {words}.")
        wanted = specs and st.button(
            f"Run it ({len(specs)} runs)", key=f"run-{model.label}", icon=":material/play_arrow:"
        )
        if wanted and live.submit(specs, reuse=True):
            st.rerun()


draw()
live.runs_under_way()
