"""The story in five short steps, each a live control on recorded runs."""

import streamlit as st

from immunelab.analysis import collapse
from immunelab.analysis.outcomes import Thresholds
from immunelab.analysis.variants import among, present
from immunelab.ui import headline, live, navigation, reads, scorecard, tour

navigation.heading("tour", "A released model is attacked, immunized, and attacked again: five steps on recorded runs.")

sources = [name for name, k in (("Showcase", True), ("This lab", False)) if not reads.curves(showcase=k).empty]
source = sources[0] if sources else "This lab"
if len(sources) > 1:
    source = st.segmented_control("Runs", sources, default=source, required=True, key="source", bind="query-params")
curves = reads.curves(showcase=source == "Showcase")
curves = collapse.comparable(curves[curves["status"] == "done"])
tale = headline.recall(reads.finished(curves), Thresholds(), curves)
if tale is None:
    navigation.nothing_yet(
        "No undefended and immunized model to compare yet",
        "The tour needs one attack on both. The demo records them in a few minutes on a CPU, without a network.",
        ("overview", "Run the live demo"),
    )
    live.waiting(lambda: headline.tell(reads.curves().query("status == 'done'"), Thresholds()) is not None)
    st.stop()

step = st.segmented_control(
    "Step",
    list(tour.STEPS),
    default=tour.FIRST,
    required=True,
    key="step",
    bind="query-params",
    label_visibility="collapsed",
)
st.subheader(step, anchor=False)
st.write(tour.STEPS[step])
shown = tour.pair(curves, tale)
base = tale.base

if step == "1 The threat":
    tour.along(shown[shown["defense"] == "undefended"], base, "threat")
    tour.run_it_live("attack the undefended model", tale, ("attack",), defended=False)
elif step == "2 Immunize":
    tour.immunizing(shown)
    tour.run_it_live("immunize a model", tale, ("immunize",), defended=True)
elif step == "3 Attack again":
    tour.along(shown, base, "again")
    tour.run_it_live("immunize and attack", tale, ("immunize", "attack"), defended=True)
elif step == "4 Drag the intensity":
    alike = curves["method"].isin(shown["method"].unique())
    both = among(curves[alike], present(shown))
    tour.ladder(collapse.one_attack(both, "learning_rate"), tale)
    tour.run_it_live("record the whole ladder", tale, ("immunize", "attack"), defended=True, ladder=True)
else:
    ids = tour.immunizations(shown)
    found = scorecard.scorecard(ids, scorecard.limits())
    scorecard.verdicts(found)
    scorecard.offer(found, reads.runs(), ids)
    navigation.link("scorecard", "The whole scorecard, with its tables and the card to take away")
tour.turn(step)
live.runs_under_way()
