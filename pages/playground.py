"""One prompt to the base, the defended and the attacked model, at every recorded step of the attack."""

import streamlit as st

from immunelab.analysis import collapse, export
from immunelab.analysis.variants import BASELINE
from immunelab.figures.palette import title_of
from immunelab.store import queries
from immunelab.ui import attack_filter, intensity, live, navigation, playground, reads

navigation.heading(
    "playground", "Watch what an attack does to the answers: a refusal turns into a recipe, or into word salad."
)

runs = reads.runs()


def recorded() -> None:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        curves = intensity.read("Both", attack_filter.attacked(reads.curves()))
        curves = attack_filter.of_attack(curves, attack_filter.which(curves))
    choice = intensity.sliders(curves)
    curves = collapse.select(curves, choice)
    if curves.empty:
        st.caption("No attack is recorded at this intensity: move a slider.")
        return
    shown = playground.pair(curves)
    chosen = playground.prompt(list(shown.values()))
    if chosen is None:
        return
    kind, prompt, expected = chosen
    answers = reads.ask(queries.answers, list(shown.values()), prompt)
    steps = [str(s) for s in sorted(answers["step"].unique().tolist())]
    unfolded = playground.fold(set(curves["base_model"]))
    step = steps[-1]
    if len(steps) > 1:
        step = st.select_slider(
            "Attack step (recorded ones only)", steps, value=steps[-1], key="at", bind="query-params"
        )
    for column, (model, run_id) in zip(st.columns(len(shown)), shown.items(), strict=True):
        with column:
            before = "Base model" if model == BASELINE else f"Immunized with {title_of(*model)}"
            playground.card(f"{before}, before the attack", playground.at(answers, run_id, 0), kind, unfolded)
            playground.card(
                f"{before}, after {step} attack steps", playground.at(answers, run_id, int(step)), kind, unfolded
            )
            navigation.link("runs", "This run", run=run_id)
    every = st.expander("Every recorded step, and the right answer", on_change="rerun", key="all")
    if every.open:
        with every:
            st.code(expected or "not recorded", language=None, wrap_lines=True)
            if unfolded:
                table = playground.by_step(answers, shown)
                st.dataframe(
                    export.inert(table), hide_index=True, height="content", alt="Answers at every recorded step"
                )


if reads.curves().empty:
    navigation.nothing_yet(
        "No attack has been recorded yet",
        "Attack a model, undefended and immunized, and their answers can be followed here step by step.",
        ("launch", "Launch an attack"),
        ("overview", "Run the live demo"),
    )
    live.waiting(lambda: not reads.curves().empty)
else:
    recorded()

st.subheader("Ask anything", anchor=False)
st.caption("Answered by the final checkpoints on this disk, in a worker of its own: its first answer waits for torch.")
playground.ask(runs)
