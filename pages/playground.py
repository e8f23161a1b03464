"""One prompt to the base, the defended and the attacked model, at every recorded step of the attack."""

import streamlit as st

from immunelab.analysis import collapse, export
from immunelab.figures.answers import answer_sliders, by_step
from immunelab.figures.palette import title_of
from immunelab.runs import access
from immunelab.ui import attack_filter, figure, intensity, live, navigation, playground, reads

navigation.heading(
    "playground", "Watch what an attack does to the answers: a refusal turns into a recipe, or into word salad."
)

runs = reads.runs()


def recorded() -> None:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        curves = intensity.read("Both", attack_filter.attacked(reads.curves()))
        curves = attack_filter.of_attack(curves, attack_filter.which(curves))
    sliders, choice = intensity.sliders(curves)
    here = collapse.select(curves, choice)
    if here.empty:  # a link to an intensity that is not recorded
        choice = intensity.start(curves)
        here = collapse.select(curves, choice)
    seed, shown = playground.models(here)
    if not shown:
        st.caption("No attack is recorded at this intensity.")
        return
    chosen = playground.prompt([playground.run_of(here, v, seed) for v in shown])
    if chosen is None:
        return
    kind, prompt, expected = chosen
    unfolded = playground.fold(set(curves["base_model"]))
    answers = playground.answers(curves, shown, seed, prompt)
    if answers.empty:
        return
    moves = answer_sliders(answers, sliders, choice, shown, kind, unfolded, figure.at)
    figure.show_answers("answers", moves, len(shown))
    with st.container(horizontal=True, vertical_alignment="center"):
        intensity.fixed(sliders, choice)
        for model in shown:
            navigation.link("runs", f"The run: {title_of(*model)}", run=playground.run_of(here, model, seed))
    every = st.expander("Every recorded step, and the right answer", on_change="rerun", key="all")
    if every.open:
        with every:
            st.code(expected or "not recorded", language=None, wrap_lines=True)
            if unfolded:
                table = by_step(collapse.select(answers, choice))
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

if not access.read_only():
    st.subheader("Ask anything", anchor=False)
    st.caption(
        "Answered by the final checkpoints on this disk, in a worker of its own: its first answer waits for torch."
    )
    playground.ask(runs)
