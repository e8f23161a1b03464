"""Objective, source, streams and knobs of each registered method, and its code."""

import pandas as pd
import streamlit as st

from immunelab.method import catalogue
from immunelab.ui import forms, live, methods, navigation

navigation.heading(
    "methods", "What each defense, attack and evaluation optimizes or measures, where it comes from, and its knobs."
)

kinds = {kind: catalogue.names(kind) for kind in catalogue.FOLDERS}

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
about = catalogue.entry(kind, name)

st.header(about.title, anchor=False)
st.code(about.objective, language=None, wrap_lines=True)
with st.container(horizontal=True, vertical_alignment="center"):
    if about.paper:
        number = about.paper.removeprefix("arXiv:")
        if about.paper.startswith("arXiv:"):
            st.link_button(about.paper, f"https://arxiv.org/abs/{number}", icon=":material/article:")
        else:
            st.text(about.paper)
    for fact in (about.stage, *(f"{s} stream" for s in about.streams)):
        if fact:
            st.badge(fact, color="gray")

if about.assumes:
    st.text(f"Assumes of the defender: {about.assumes}.")
if kind == "defense":
    methods.one(about)
if about.text:
    st.markdown(live.prose(about.text), width=760)

if about.deviations:
    st.subheader("Paper, released code, and here", anchor=False)
    st.caption("What the presets named after the paper or its code do otherwise, and why.")
    names = {"what": "", "paper": "Paper", "code": "Released code", "here": "Here", "why": "Why"}
    table = pd.DataFrame(about.deviations).rename(columns=names)
    st.dataframe(table, hide_index=True, alt=f"What {about.title} does otherwise than its paper and its code")

st.subheader("Knobs", anchor=False)
presets = about.presets
rows = [
    {
        "Knob": k.name,
        "Symbol": k.symbol,
        "Meaning": k.help,
        "Default": forms.shown(k.default),
        **{f"Preset {p}": forms.shown(values.get(k.name, k.default)) for p, values in presets.items()},
        "Group": k.group,
    }
    for k in about.knobs
]
groups = {"method": "Knobs of the method", "budget": "Budget: how long and how hard to train"}
for group, title in groups.items():
    table = pd.DataFrame([r for r in rows if r["Group"] == group])
    if len(table):
        st.caption(title)
        st.dataframe(table.drop(columns="Group"), hide_index=True, alt=f"{title} of {about.title}")
navigation.link("launch", "Launch a run with it", **({kind: name} if kind in ("defense", "attack") else {}))

source = st.expander("Source code", on_change="rerun", key="source")
if source.open:
    with source:
        st.caption(live.plain(f"immunelab/{about.file}"))
        st.code(about.source.read_text(encoding="utf-8"), language="python", line_numbers=True)
