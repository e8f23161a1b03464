"""What happens to an undefended and to an immunized model, live runs, and the demo."""

import streamlit as st

from immunelab import jobs
from immunelab.analysis import collapse
from immunelab.analysis.outcomes import Thresholds
from immunelab.runs import access
from immunelab.ui import headline, live, navigation, outcomes, reads, shared_page

navigation.heading(
    "overview",
    "A lab that immunizes small language models, attacks them by harmful fine-tuning, and shows whether they resist, "
    "break, or destroy themselves. Harmfulness: share of hazards given away. Utility: accuracy on benign skills.",
)

curves = reads.curves(showcase=True)
source = "recorded runs that ship with the project"
if curves.empty:
    curves, source = reads.curves(), "runs of this lab"
comparable = collapse.comparable(curves[curves["status"] == "done"])
tale = headline.recall(reads.finished(comparable), Thresholds(), comparable)

if tale is None:
    navigation.nothing_yet(
        "No undefended and immunized model to compare yet",
        "The demo immunizes the bundled Fable model with SEAM, attacks it and its undefended twin at every rung of the "
        "ladder, and draws the collapse curve here. It needs no network.",
        ("launch", "Or choose model, defense and attack"),
    )
else:
    clicked = headline.show(tale)
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
        navigation.link("tour", "Guided demo: the story in five steps")
        navigation.link("collapse", "Step by step, every intensity", **tale.link)
        navigation.link("playground", "What the models answer", **tale.link)
        shared_page.offer(comparable, str(comparable["subject"].iloc[0]))
    st.caption(f"{tale.basis}; {source}.")

st.subheader("Live runs", anchor=False)
with st.container(horizontal=True, vertical_alignment="center"):
    if not access.read_only() and st.button("Run the live demo", type="primary", icon=":material/play_arrow:"):
        with st.spinner("Starting"):
            run_ids = live.start_demo()
        reads.forget()
        st.toast(f"{len(run_ids)} runs are queued; they go on if you close this page.")
    st.caption(f"Device: {', '.join(jobs.devices())}", width="content")
live.runs_under_way(idle="Nothing is running.")

if tale is not None:
    st.subheader("Every defense at every rung", anchor=False)
    outcomes.show_map(comparable, Thresholds(), "overview")
    outcomes.open_behind(clicked, tale.ladder, "learning_rate")
