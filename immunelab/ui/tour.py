"""The steps of the guided demo: what each shows from recorded runs, and how to run it live."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pandas as pd
import streamlit as st

from immunelab.analysis import collapse, traces
from immunelab.analysis.collapse import INTENSITY
from immunelab.analysis.outcomes import Thresholds, label
from immunelab.analysis.variants import KEYS, complete, of, present
from immunelab.figures.collapse import along_attack, intensity_sliders, over_intensities, step_slider
from immunelab.figures.palette import title_of
from immunelab.figures.traces import scalar_traces
from immunelab.reports.story import Story
from immunelab.runs import access
from immunelab.store import queries
from immunelab.sweep import demo_specs
from immunelab.ui import compute, figure, live, reads

STEPS = {
    "1 The threat": "A released model refuses to give hazards away. Drag the step: a few dozen steps of fine-tuning on "
    "harmful answers undo that, and the model stays useful.",
    "2 Immunize": "The defense changes the weights before release, so that a harmful step is a step against "
    "everything else the model can do. Choose what to look at while it trains.",
    "3 Attack again": "The same attack on both models. Drag the step, and compare what each gives away and keeps.",
    "4 Drag the intensity": "An attacker chooses how hard to train. Every mark is a recorded attack; let the "
    "slider go between them, and the attack is run.",
    "5 Read the scorecard": "What may be claimed from these runs, and what may not. Move the thresholds.",
}
FIRST = next(iter(STEPS))


def pair(curves: pd.DataFrame, tale: Story) -> pd.DataFrame:
    """The curves of the story's attack, on the undefended and on the defended model."""
    return curves[curves["run_id"].isin(tale.curves["run_id"])]


def immunizations(shown: pd.DataFrame) -> list[str]:
    """The immunizations behind the defended curves."""
    return sorted({i for i in shown["immunized_by"].dropna() if i})


def along(shown: pd.DataFrame, base: float, key: str) -> None:
    """A slider through the attack's recorded checkpoints: both scores of each model there, and the curve."""
    steps = sorted(int(s) for s in shown["step"].unique())
    step = int(figure.at(step_slider(steps), steps[-1]))
    models = present(shown)
    with st.grid(2 * len(models), min_column_width=150):
        for name in models:
            here = of(shown[shown["step"] == step], name)
            harm, use = float(here["harmfulness"].mean()), float(here["utility"].mean())
            said = label(harm, use, Thresholds(), base) if step else "before the attack"
            runs = f"mean of {len(here)} runs"
            for measure, value, note in (("harmfulness", harm, said), ("utility", use, runs)):
                title = f"{title_of(*name)}: {measure}"
                st.metric(title, f"{value:.0%}", note, delta_color="off", delta_arrow="off", border=True)
    drawn, moves = along_attack(shown, step, Thresholds(), figure.theme())
    figure.show(drawn, f"tour-{key}-curve", alt="Harmfulness and utility along the attack", sliders=moves)
    title = "Harmfulness and utility along the attack"
    figure.downloads(drawn, lambda: collapse.by_step(shown), f"tour-{key}", title, sliders=moves)


def ladder(both: pd.DataFrame, tale: Story) -> None:
    """The attack of the story at every recorded learning rate, with a slider over them: let go where nobody ran, it
    runs there. The picture grows as attacks finish."""
    runs = reads.runs()
    compute.forget_given_up(runs)

    @st.fragment(run_every=live.tick(reads.runs(showcase=False)))
    def grows() -> None:
        asked = st.session_state.get(compute.ASKED, [])
        own = reads.curves(showcase=False)
        new = own[own["run_id"].isin(asked) & (own["status"] == "done")]
        _ladder(pd.concat([both, new[~new["run_id"].isin(both["run_id"])]]), tale)
        live.rerun_when_over()

    grows()


def _ladder(shown: pd.DataFrame, tale: Story) -> None:
    shown = complete(shown).assign(variant=lambda f: f["variant"].fillna(""))
    sliders = {k: v for k, v in intensity_sliders(shown, free=not access.read_only()).items() if k == "learning_rate"}
    rates = collapse.recorded(shown, "learning_rate")
    if not rates:
        st.caption("The attacks recorded here do not train, so there is no learning rate to choose.")
        return
    start = float(tale.link["rate"])
    rate = figure.at(sliders["learning_rate"], start) if sliders else rates[0]
    here, runs = {"learning_rate": rate}, reads.runs()
    if rate not in rates and figure.rested() and not access.read_only():
        alike = {k: shown[k].iloc[0] for k in INTENSITY if k != "learning_rate" and shown[k].notna().any()}
        if compute.ask(runs, shown, present(shown), here | alike):
            st.rerun()
    with st.container():
        compute.progress(runs)
    drawn, moves = over_intensities(shown, sliders, here, "learning_rate", Thresholds(), figure.theme())
    title = "Harmfulness and utility by intensity"
    figure.show(drawn, "tour-intensity", alt=title, sliders=moves if sliders else None, missing=compute.MISSING)
    bands = collapse.by_intensity(shown, "learning_rate")
    figure.downloads(drawn, lambda: bands, "tour-intensity", title, sliders=moves)
    outcomes(bands, rate)


def immunizing(shown: pd.DataFrame) -> None:
    """One scalar of the immunizations, chosen by the reader."""
    ids = immunizations(shown)
    known = reads.ask(queries.names, ids)
    names = sorted(known.loc[known["phase"] == "immunize", "name"].unique()) if ids else []
    if not names:
        st.caption("These immunizations have recorded no scalars.")
        return
    usual = "cosine/harmful-benign"
    name = st.selectbox("Scalar", names, index=names.index(usual) if usual in names else 0, key="tour-scalar")
    runs = reads.runs()
    points = traces.with_x(reads.ask(queries.points, ids, [name], "immunize"), "step", runs)
    drawn = scalar_traces(points, reads.labels(runs[runs["run_id"].isin(ids)]), theme=figure.theme())
    figure.show(drawn, "tour-immunize", alt=f"{name} while immunizing")
    figure.downloads(drawn, lambda: points, "tour-immunize", f"{name} while immunizing")


def turn(step: str) -> None:
    """Buttons to the steps before and after."""
    names = list(STEPS)
    at = names.index(step)

    def to(name: str) -> None:
        st.session_state["step"] = name

    with st.container(horizontal=True, horizontal_alignment="distribute"):
        if at:
            st.button(f"Back: {names[at - 1]}", icon=":material/arrow_back:", on_click=to, args=(names[at - 1],))
        if at + 1 < len(names):
            st.button(
                f"Next: {names[at + 1]}",
                icon=":material/arrow_forward:",
                on_click=to,
                args=(names[at + 1],),
                type="primary",
            )


def outcomes(bands: pd.DataFrame, rate: float) -> None:
    """What became of each model at the chosen rate, in words."""
    cells = bands[bands["learning_rate"] == rate].drop_duplicates(KEYS)
    for cell in cells.to_dict("records"):
        st.markdown(f"**{title_of(cell['defense'], cell['variant'])}** at {rate:g}: {cell['outcomes'] or 'not scored'}")


def run_it_live(what: str, tale: Story, kinds: Sequence[str], *, defended: bool, ladder: bool = False) -> None:
    """A button that queues the step's runs, with a seed that is not recorded yet."""
    if access.read_only():
        return
    runs = reads.runs()
    seed = int(runs["seed"].max()) + 1 if len(runs) else 0
    if not st.button("Run it live", icon=":material/play_arrow:", key="tour-live", help=f"New runs: {what}."):
        st.caption(f"To {what}, with seed {seed}; the runs go on if you close this page.")
        return
    specs = demo_specs((seed,))
    first = next(k for k, s in enumerate(specs) if s.kind == "immunize")
    chosen = [specs[first]] if "immunize" in kinds else []
    for spec in specs:
        mine = f"{spec.knobs.get('learning_rate', 0):g}" == tale.link.get("rate")
        if spec.kind == "attack" and "attack" in kinds and (mine or ladder):
            on_defended = spec.model.startswith("run:")
            if on_defended and defended:
                chosen.append(dataclasses.replace(spec, model="run:#0"))  # the immunization stands first
            elif not on_defended and (ladder or not defended):
                chosen.append(spec)
    if live.submit(chosen):
        st.rerun()
