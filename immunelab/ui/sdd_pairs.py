"""The Data page's view of SDD's pairs: what was built for a corpus, and a button that builds. No torch here.

Building embeds texts, which needs torch: the button starts `immunelab pairs build` in a process of its own.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import pandas as pd
import streamlit as st

from immunelab import jobs
from immunelab.analysis import export
from immunelab.analysis.corpus import find, similarities
from immunelab.corpus import pairing
from immunelab.corpus.pairing import Kept, Pairing
from immunelab.figures.corpus import pair_similarities
from immunelab.formatting import share
from immunelab.runs import access, journal
from immunelab.ui import actions, figure, live, navigation

EVERY = 1.0  # seconds between two looks at a process that builds
COLUMNS = ["cosine", "tries", "fallback", "category", "prompt", "answer", "source"]


def show(corpus: str, fingerprint: str) -> None:
    """Everything about the pairs of the corpus with that fingerprint."""
    folder = journal.home(None) / pairing.FOLDER
    mine = [one for one in pairing.kept(folder) if one.made["fingerprint"] == fingerprint]
    going = _under_way(fingerprint, mine)
    if not mine:
        if not going:
            _nothing_yet(corpus, fingerprint)
        return
    words = {one.path.stem: _words(one) for one in mine}
    key = st.selectbox(
        "Pairs",
        list(words),
        format_func=words.__getitem__,
        key="pairs",
        bind="query-params",
        width=620,
        help="Each pairing follows from corpus, seed and SDD's settings; runs with the same take the same.",
    )
    chosen = next((one for one in mine if one.path.stem == key), mine[0])
    found = _read(str(chosen.path), chosen.path.stat().st_mtime)
    if found is None:
        st.error("This file of pairs is broken: build the pairs again.", icon=":material/error:")
    else:
        _pairing(found, chosen.path)
    if not going and not access.read_only():
        with st.expander("Build others"):
            _form(corpus, fingerprint)


@st.cache_data(max_entries=8, show_spinner=False)
def _read(path: str, changed: float) -> Pairing | None:
    return pairing.read(Path(path))


def _words(one: Kept) -> str:
    made = one.made
    part = "" if made["split"] == "defense" else f", split {made['split']}"
    return (
        f"seed {made['seed']}, τ {made['similarity']:g}, R {made['redraws']:,}, at most {made['pairs']:,} pairs, "
        f"answers of {max(1, made['words'])}+ words{part}"
    )


def _pairing(found: Pairing, path: Path) -> None:
    told, threshold = found.statistics(), float(found.made["similarity"])
    with st.grid(4, min_column_width=150):
        st.metric("Pairs", f"{told['built']:,}", border=True, help="Each harmful prompt once.")
        st.metric("Mean cosine", f"{told['similarity_mean']:.3f}", border=True)
        st.metric("Answers drawn a prompt", f"{told['tries_mean']:.2f}", border=True, help="The mean; 1 is no re-draw.")
        st.metric(
            "Fallbacks",
            f"{told['fallbacks']:,}",
            border=True,
            help=f"Prompts for which {told['redraws'] + 1:,} draws found no answer at or below τ = {threshold:g}.",
        )
    frame = as_frame(found)
    counted = similarities(frame.assign(similarity=frame["cosine"]), threshold)
    drawn = pair_similarities(counted, threshold, figure.theme())
    quantiles = told["similarity_quantiles"]
    alt = (
        f"Cosine of prompt and answer in {told['built']:,} pairs: {quantiles['0']} to {quantiles['1']}, median "
        f"{quantiles['0.5']}; threshold {threshold:g}; {share(told['fallback_share'])} fallbacks."
    )
    figure.show(drawn, "pair-similarity", alt=alt)
    figure.downloads(drawn, lambda: frame, "pairs", "SDD pairs by similarity")
    _table(frame, path)
    lacking = "; ".join(f"{name} lacks {n:,}, filled by the others" for name, n in told["shortfalls"].items())
    parts = ", ".join(f"{c} {n:,}" for c, n in told["categories"].items()) + (f" ({lacking})" if lacking else "")
    st.caption(
        live.plain(
            f"Prompts of each category: {parts}. {told['prompts']:,} distinct prompts and {told['answers']:,} distinct "
            f"answers to draw from; {told['answers_used']:,} answers used. Embedded with {told['embedder']}. Digest of "
            f"the pairs, in the journal of each run that takes them: {told['digest']}."
        )
    )


def _table(frame: pd.DataFrame, path: Path) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        text = st.text_input("Search", key="pq", placeholder="in prompts and answers", type="search", width=320)
        only = st.checkbox("Fallbacks only", key="fallbacks")
        st.download_button(
            "JSONL",
            data=path.read_bytes,
            file_name=f"immunelab-pairs-{path.stem}.jsonl",
            mime="application/jsonl",
            on_click="ignore",
            icon=":material/download:",
            key="pairs-jsonl",
            help="The file that runs read: a line on how it was made, then a pair a line.",
        )
    hits = find(frame[frame["fallback"]] if only else frame, text or "")
    st.caption(f"{len(hits):,} of {len(frame):,} pairs.")
    st.dataframe(
        export.inert(hits),
        hide_index=True,
        height="content" if len(hits) <= 12 else 480,
        column_config={"cosine": st.column_config.NumberColumn(format="%.3f")},
        alt="SDD's pairs: harmful prompt, answer to another question, their cosine, and draws",
    )


def as_frame(found: Pairing) -> pd.DataFrame:
    """One row a pair."""
    frame = pd.DataFrame(found.pairs)
    return frame.rename(columns={"similarity": "cosine"})[COLUMNS]


def _nothing_yet(corpus: str, fingerprint: str) -> None:
    navigation.nothing_yet(
        "No pairs were built for this corpus yet",
        "SDD pairs each harmful prompt with a good answer to another question. A run of SDD builds its pairs itself; "
        "here they can be built, and looked at, before.",
    )
    _form(corpus, fingerprint)


def _form(corpus: str, fingerprint: str) -> None:
    """Seed and settings, the command that stands for them, and the button that runs it."""
    if access.read_only():
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        seed = st.number_input("Seed", 0, 2**31 - 1, 0, key="pair-seed", width=130)
        tau = st.number_input("Similarity τ", -1.0, 1.0, 0.25, 0.05, format="%g", key="pair-tau", width=150)
        redraws = st.number_input("Re-draws R", 0, 100_000, 50, key="pair-redraws", width=150)
        pressed = st.button("Build the pairs", type="primary", icon=":material/join_inner:", key="build-pairs")
    arguments = [
        "pairs",
        "build",
        "--corpus",
        corpus,
        "--seed",
        str(seed),
        "--similarity",
        f"{tau:g}",
        "--redraws",
        str(redraws),
    ]
    st.code(f"immunelab {shlex.join(arguments)}", language=None)
    if pressed:
        actions.attempt(lambda: jobs.start_command(_name(fingerprint), arguments))
        st.rerun()


def _name(fingerprint: str) -> str:
    return f"pairs-{fingerprint}"


def _under_way(fingerprint: str, mine: list[Kept]) -> bool:
    """Whether pairs are being built, with the builder's last line; one that failed is told until pairs come after."""
    state = jobs.command_state(_name(fingerprint))
    if state is None:
        return False
    if not state.alive:
        newest = max((one.path.stat().st_mtime for one in mine), default=0.0)
        if newest < state.log.stat().st_mtime and not state.words.startswith("Ready"):
            words = state.words.removeprefix("immunelab: ") or "it wrote nothing"
            st.error(live.plain(words), icon=":material/error:", title="The pairs were not built")
        return False

    @st.fragment(run_every=EVERY)
    def look() -> None:
        now = jobs.command_state(_name(fingerprint))
        if now is None or not now.alive:
            st.rerun()
        with st.container(border=True):
            st.markdown("**Building pairs**")
            st.text(now.words or "starting")

    look()
    return True
