"""What is going on now: progress and time left of live runs, and the demo."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import streamlit as st

from immunelab import jobs
from immunelab.analysis.estimate import duration
from immunelab.errors import UserError
from immunelab.runs.spec import RunSpec
from immunelab.ui import navigation, reads

DEMO_CORPUS, DEMO_STEPS = "IMMUNELAB_DEMO_CORPUS", "IMMUNELAB_DEMO_STEPS"  # the demo, smaller: for trying it out
LIVE = "live"  # the switch in the sidebar


def submit(specs: list[RunSpec], reuse: bool = False, go_on: bool = False) -> list[str]:
    """Queue runs; a mistake the user can mend is told in place, and nothing is queued. With `reuse`, what a finished
    run of this home has already is not run again; with `go_on`, an unfinished one is gone on with."""
    try:
        run_ids = jobs.submit(specs, reuse=reuse, go_on=go_on, from_warm=True)
    except UserError as error:
        st.error(str(error), icon=":material/error:")
        return []
    reads.forget()
    return run_ids


def start_demo(seeds: tuple[int, ...] = (0,)) -> list[str]:
    """Queue the demo's runs."""
    from immunelab.sweep import demo_specs

    specs = demo_specs(seeds, os.environ.get(DEMO_CORPUS) or "fable")
    most = os.environ.get(DEMO_STEPS, "")
    return submit([_shortened(s, int(most)) for s in specs] if most.isdecimal() and int(most) else specs)


def _shortened(spec: RunSpec, most: int) -> RunSpec:
    """The same run with at most so many steps, evaluated at its end, on all the rows that a small corpus has."""
    steps = min(most, int(spec.knobs["steps"]))
    return dataclasses.replace(spec, knobs={**spec.knobs, "steps": steps, "samples": 0}, evaluate_every=steps)


def tick(frame: pd.DataFrame, soon: bool = False) -> float | None:
    """How often a page should look again, in seconds, while runs go; else (and while paused) not at all. `soon`: the
    reader has asked for these runs and waits for them."""
    follow = st.session_state.get(LIVE, True)
    every = reads.SOON_SECONDS if soon else reads.LIVE_SECONDS
    return every if follow and len(reads.active(frame)) else None


def control() -> None:
    """One switch for every page: whether figures, tables and progress follow what is going on, or hold still."""
    st.toggle(
        "Live updates",
        value=True,
        key=LIVE,
        persist_state="session",
        help="Off: figures, tables and progress hold still on every page; runs go on.",
    )


def under_way_line() -> None:
    """On every page, above its title: how many runs are under way, how far the first is, and where its curve grows."""
    if tick(reads.runs(showcase=False)) is None:
        return

    @st.fragment(run_every=reads.LIVE_SECONDS)
    def line() -> None:
        going = reads.active(reads.runs(showcase=False))
        if going.empty:
            return
        begun = going[going["status"] != "queued"]
        first = (begun if len(begun) else going).iloc[0]
        parts = [f"{len(going)} {'run' if len(going) == 1 else 'runs'} under way", reads.label(first)]
        parts += [f"{first['progress']:.0%}"] if pd.notna(first["progress"]) else []
        parts += [f"{duration(first['eta_seconds'])} left"] if pd.notna(first["eta_seconds"]) else []
        with st.container(horizontal=True, vertical_alignment="center"):
            st.caption(plain(" · ".join(parts)), width="content")
            navigation.link("collapse", "The curve")
            navigation.link("runs", "All runs")

    line()


def runs_under_way(limit: int = 6, idle: str = "") -> None:
    """The queue with progress and time left; looks again each second while something runs, and then stops looking.
    `idle` is said when nothing runs."""
    every = tick(reads.runs(showcase=False))

    @st.fragment(run_every=every)
    def fragment() -> None:
        going = reads.active(reads.runs(showcase=False))
        if every is not None and going.empty:
            st.rerun()  # the last run has ended: draw the whole page anew, with its results
        if going.empty:
            if idle:
                st.caption(idle)
            return
        words = reads.labels(going)
        for run in going.head(limit).to_dict("records"):
            progress(run, words[run["run_id"]])
        if len(going) > limit:
            navigation.link("runs", f"and {len(going) - limit} more in the queue")

    fragment()


def waiting(arrived: Callable[[], bool]) -> None:
    """For a page that has nothing to draw yet: show what is going on, and draw the page anew once something arrived."""
    runs_under_way()

    @st.fragment(run_every=tick(reads.runs(showcase=False)))
    def look() -> None:
        if arrived():
            st.rerun()

    look()


def rerun_when_over() -> None:
    """Inside a ticking fragment: when the last live run has ended, draw the whole page anew and stop ticking."""
    going = len(reads.active(reads.runs(showcase=False)))
    seen = st.session_state.get("_going", 0)
    st.session_state["_going"] = going
    if seen and not going:
        st.rerun()


def progress(run: Mapping[Any, Any], words: str) -> None:
    """One run's bar, with its step and the time left."""
    share = run["progress"] if pd.notna(run["progress"]) else 0.0
    parts = [words, str(run["status"])]
    if run["status"] != "queued":
        parts += [str(run[k]) for k in ("phase", "message") if isinstance(run.get(k), str) and run[k]][:1]
        if pd.notna(run["eta_seconds"]):
            parts.append(f"{duration(run['eta_seconds'])} left")
    st.progress(min(1.0, max(0.0, float(share))), text=plain(" · ".join(parts)))


def prose(text: str) -> str:
    """A docstring as Markdown: only its `code` is marked up, all else stands as written."""
    return "".join(f"`{part}`" if i % 2 else plain(part) for i, part in enumerate(text.split("`")))


def plain(text: str) -> str:
    """A user's or run's text with Markdown's signs escaped, for places that would render it."""
    return "".join(f"\\{c}" if c in r"\`*_{}[]()#+-.!|<>~$:" else c for c in text)
