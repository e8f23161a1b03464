"""Objective, source, streams and knobs of each registered method, and its code."""

import inspect

import pandas as pd
import streamlit as st

from immunelab.ui import forms, live, methods, navigation

navigation.heading(
    "methods", "What each defense, attack and evaluation optimizes or measures, where it comes from, and its knobs."
)

with st.spinner("Reading the registry: this loads torch once"):
    from immunelab import method as registry

    kinds = {kind: registry.names(kind) for kind in registry.FOLDERS}

kind = st.segmented_control(
    "Kind", list(kinds), default="defense", required=True, format_func=str.capitalize, key="kind", bind="query-params"
)
if not kinds[kind]:
    navigation.nothing_yet(
        f"No {kind} is registered",
        "A method is one file; docs/adding-a-defense.md shows how to write one.",
    )
    st.stop()
if kind == "defense":
    glance = st.expander("All defenses: stage, assumption, cost", on_change="rerun", key="glance")
    if glance.open:
        with glance:
            methods.all_defenses()
usual = {"defense": "seam", "attack": "harmful-sft", "evaluation": "fable-recall"}.get(kind, "")
first = kinds[kind].index(usual) if usual in kinds[kind] else 0
name = st.selectbox("Method", kinds[kind], index=first, key=f"{kind}-name", bind="query-params")
cls = registry.get(kind, name)
about = registry.describe(cls)

st.header(about["title"], anchor=False)
st.code(about["objective"], language=None, wrap_lines=True)
with st.container(horizontal=True, vertical_alignment="center"):
    if about["paper"]:
        number = about["paper"].removeprefix("arXiv:")
        if about["paper"].startswith("arXiv:"):
            st.link_button(about["paper"], f"https://arxiv.org/abs/{number}", icon=":material/article:")
        else:
            st.text(about["paper"])
    for fact in (about["stage"], *(f"{s} stream" for s in about["streams"])):
        if fact:
            st.badge(fact, color="gray")

if about["assumes"]:
    st.text(f"Assumes of the defender: {about['assumes']}.")
if kind == "defense":
    methods.one(cls)
text = inspect.cleandoc(cls.__doc__ or "").partition("\n")[2].strip()
if text:
    st.markdown(live.prose(text), width=760)

st.subheader("Knobs", anchor=False)
presets = about["presets"]
rows = [
    {
        "Knob": k["name"],
        "Symbol": k["symbol"],
        "Meaning": k["help"],
        "Default": forms.shown(k["default"]),
        **{f"Preset {p}": forms.shown(values.get(k["name"], k["default"])) for p, values in presets.items()},
        "Group": k["group"],
    }
    for k in about["knobs"]
]
groups = {"method": "Knobs of the method", "budget": "Budget: how long and how hard to train"}
for group, title in groups.items():
    table = pd.DataFrame([r for r in rows if r["Group"] == group])
    if len(table):
        st.caption(title)
        st.dataframe(table.drop(columns="Group"), hide_index=True, alt=f"{title} of {about['title']}")
navigation.link("launch", "Launch a run with it", **({kind: name} if kind in ("defense", "attack") else {}))

source = st.expander("Source code", on_change="rerun", key="source")
if source.open:
    with source:
        path = inspect.getsourcefile(cls)
        st.caption(live.plain(f"immunelab/{registry.FOLDERS[kind]}/{path.rpartition('/')[2] if path else ''}"))
        st.code(inspect.getsource(inspect.getmodule(cls)), language="python", line_numbers=True)
