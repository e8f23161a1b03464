"""What the pages read: the store's queries, cached for a second, with failures told in a sentence.

No connection is kept and no model is loaded; torch is never imported on this path.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import streamlit as st

from immunelab import jobs
from immunelab.analysis.collapse import INTENSITY
from immunelab.errors import UserError
from immunelab.runs import journal
from immunelab.store import Busy, Store, queries
from immunelab.store.door import READ_WAIT

ACTIVE = ("queued", "running", "stopping")
LIVE_SECONDS = 1.0  # how often pages look while something runs; equal to how often the store takes in journals
USUAL = "harmful-sft"  # the attack that labels call just that
T = TypeVar("T")


def ask(question: Callable[[], T]) -> T:
    """The answer, or an error box with the fix and the end of the page."""
    try:
        return question()
    except UserError as error:
        st.error(str(error), icon=":material/error:")
        st.stop()


def revision() -> str:
    """Another text whenever something was recorded since: what is computed from the record is kept under it."""
    return f"{_home()} {Store(journal.home(None)).revision}"


def runs(showcase: bool | None = None) -> pd.DataFrame:
    """One row a run, the newest first; `showcase` True: only shipped runs, False: only this home's."""
    frame = ask(lambda: _runs(_home()))
    frame = frame if showcase is None else frame[frame["showcase"].astype(bool) == showcase]
    return frame.sort_values("queued_at", ascending=False, na_position="last")


def curves(showcase: bool | None = None) -> pd.DataFrame:
    """One row per attack run and checkpoint, with the run's settings and status."""
    frame = ask(lambda: _curves(_home()))
    return frame if showcase is None else frame[frame["showcase"].astype(bool) == showcase]


def searches() -> pd.DataFrame:
    """Attackers' searches, one row for each trial that has ended."""
    return ask(lambda: queries.searches(_store(_home())))


def trials(run_ids: list[str]) -> pd.DataFrame:
    """The trials of searches of this home, with their settings."""
    return ask(lambda: queries.trials(_store(_home()), run_ids))


def names(run_ids: list[str]) -> pd.DataFrame:
    """The scalar names that runs recorded, by phase."""
    return ask(lambda: _names(_home(), tuple(sorted(run_ids))))


def points(run_ids: list[str], wanted: list[str], phase: str | None = None) -> pd.DataFrame:
    """Scalars of runs, at most 500 bins a series, extremes kept in `low` and `high`."""
    return ask(lambda: _points(_home(), tuple(sorted(run_ids)), tuple(sorted(wanted)), phase))


def examples(run_id: str, step: int | None = None) -> pd.DataFrame:
    """The prompts and answers behind a run's scores: untrusted text, for code blocks and tables only."""
    return ask(lambda: queries.examples(_store(_home()), run_id, step=step))


def scores(run_id: str) -> pd.DataFrame:
    """Every score of a run, its parts (skills, domains) included."""
    return ask(lambda: queries.scores(_store(_home()), [run_id], splits=None))


def checkpoints(run_id: str) -> pd.DataFrame:
    """The checkpoints that a run wrote."""
    return ask(lambda: queries.checkpoints(_store(_home()), run_id))


def has_checkpoint(run_id: str) -> bool:
    """Whether a run of this home has left weights that are still there."""
    return any((journal.home(None) / "runs" / run_id / "checkpoints").glob("step-*"))


def layer_names(run_ids: list[str]) -> pd.DataFrame:
    """The per-layer series that runs recorded, by phase."""
    return ask(lambda: queries.layer_names(_store(_home()), run_ids))


def runs_with_layers() -> set[str]:
    """The runs that recorded something by layer."""
    return set(ask(lambda: queries.with_layers(_store(_home())))["run_id"])


def layers(run_id: str, name: str) -> pd.DataFrame:
    """One per-layer series of a run: step, layer, value."""
    return ask(lambda: queries.layers(_store(_home()), [run_id], name))


def answers(run_ids: list[str], prompt: str) -> pd.DataFrame:
    """What runs answered to a prompt at every evaluated step: untrusted text."""
    return ask(lambda: queries.answers(_store(_home()), run_ids, prompt))


def prompts(run_ids: list[str]) -> pd.DataFrame:
    """The prompts that runs were evaluated on."""
    return ask(lambda: queries.prompts(_store(_home()), run_ids))


def schema() -> pd.DataFrame:
    """The tables and columns that a user's SQL can ask about."""
    return ask(lambda: _schema(_home()))


def active(frame: pd.DataFrame) -> pd.DataFrame:
    """The runs that are queued or going, the oldest first."""
    return frame[frame["status"].isin(ACTIVE)].sort_values("queued_at")


def forget() -> None:
    """After a page has changed something: take it in at once, and read anew."""

    def take_in() -> None:
        with contextlib.suppress(Busy):  # someone holds the file: a later look takes it in
            Store(journal.home(None)).sync(force=True, wait=READ_WAIT)

    ask(take_in)
    for cached in (_made_true, _runs, _curves, _names, _points):
        cached.clear()


def label(run: Any) -> str:
    """A run in words: the user's name for it, or what it did, at which intensity, with which seed."""
    rate = f"{run['learning_rate']:g}" if pd.notna(run["learning_rate"]) else ""
    name = run["name"] if isinstance(run["name"], str) else ""
    word, _, value = name.partition(" ")
    setting = f"{word.replace('_', ' ')} {value}" if word in INTENSITY and value else ""
    if name and not setting and name not in (run["method"], rate):
        return name
    if run["kind"] == "attack":
        parts = [f"{'attack' if run['method'] == USUAL else run['method']} on {run['defense']}"]
    else:
        parts = [f"{run['kind']} {run['method'] or ''}".strip()]
    parts += [f"lr {rate}"] if rate else []
    return " · ".join([*parts, *([setting] if setting else []), f"seed {run['seed']}"])


def labels(frame: pd.DataFrame) -> dict[str, str]:
    """run_id → label; where two runs would read the same, the end of the id tells them apart."""
    words = {row["run_id"]: label(row) for row in frame.to_dict("records")}
    seen = pd.Series(list(words.values()), dtype=object).value_counts()
    return {i: f"{w} · {i[-6:]}" if seen[w] > 1 else w for i, w in words.items()}


def home() -> Path:
    """The folder of this lab's runs."""
    return journal.home(None)


def _home() -> str:
    return str(journal.home(None))


@st.cache_data(ttl=2 * LIVE_SECONDS, max_entries=4, show_spinner=False)
def _made_true(home: str) -> list[str]:
    return jobs.reconcile(home)  # a run whose process is gone is interrupted, never running


def _store(home: str) -> Store:
    _made_true(home)
    store = Store(journal.home(home))
    store.sync()
    return store


@st.cache_data(ttl=LIVE_SECONDS, max_entries=8, show_spinner=False)
def _runs(home: str) -> pd.DataFrame:
    return queries.runs(_store(home))


@st.cache_data(ttl=LIVE_SECONDS, max_entries=8, show_spinner=False)
def _curves(home: str) -> pd.DataFrame:
    return queries.attack_curves(_store(home))


@st.cache_data(ttl=LIVE_SECONDS, max_entries=32, show_spinner=False)
def _names(home: str, run_ids: tuple[str, ...]) -> pd.DataFrame:
    return queries.names(_store(home), list(run_ids))


@st.cache_data(ttl=LIVE_SECONDS, max_entries=32, show_spinner=False)
def _points(home: str, run_ids: tuple[str, ...], wanted: tuple[str, ...], phase: str | None) -> pd.DataFrame:
    return queries.points(_store(home), list(run_ids), list(wanted), phase=phase)


@st.cache_data(max_entries=8, show_spinner=False)  # a page that waits for a long query must not wait for its schema
def _schema(home: str) -> pd.DataFrame:
    return queries.schema(_store(home))
