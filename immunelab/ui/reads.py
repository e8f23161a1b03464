"""What the pages read: the store's queries, kept until something new is recorded, with failures told in a sentence.

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


def stop_on_error(question: Callable[[], T]) -> T:
    """The answer, or an error box with the fix and the end of the page."""
    try:
        return question()
    except UserError as error:
        st.error(str(error), icon=":material/error:")
        st.stop()


def ask(query: Callable[..., pd.DataFrame], *args: Any, **named: Any) -> pd.DataFrame:
    """What a function of `store.queries` returns for this home's store, kept until something new is taken in."""

    def answer() -> pd.DataFrame:
        store = _store(_home())
        return _answer(_home(), store.revision, query.__name__, args, named)

    return stop_on_error(answer)


def revision() -> str:
    """Another text whenever something was recorded since: what is computed from the record is kept under it."""
    return f"{_home()} {Store(journal.home(None)).revision}"


def runs(showcase: bool | None = None) -> pd.DataFrame:
    """One row a run, the newest first; `showcase` True: only shipped runs, False: only this home's."""
    frame = ask(queries.runs)
    frame = frame if showcase is None else frame[frame["showcase"].astype(bool) == showcase]
    return frame.sort_values("queued_at", ascending=False, na_position="last")


def curves(showcase: bool | None = None) -> pd.DataFrame:
    """One row per attack run and checkpoint, with the run's settings and status."""
    frame = ask(queries.attack_curves)
    return frame if showcase is None else frame[frame["showcase"].astype(bool) == showcase]


def checkpoints(run_id: str) -> pd.DataFrame:
    """The checkpoints that a run wrote. Never kept: which of them are still there is seen on the disk."""
    return stop_on_error(lambda: queries.checkpoints(_store(_home()), run_id))


def has_checkpoint(run_id: str) -> bool:
    """Whether a run of this home has left weights that are still there."""
    return any((journal.home(None) / "runs" / run_id / "checkpoints").glob("step-*"))


def schema() -> pd.DataFrame:
    """The tables and columns that a user's SQL can ask about."""
    return stop_on_error(lambda: _schema(_home()))


def active(frame: pd.DataFrame) -> pd.DataFrame:
    """The runs that are queued or going, the oldest first."""
    return frame[frame["status"].isin(ACTIVE)].sort_values("queued_at")


def forget() -> None:
    """After a page has changed something: take it in at once, and read anew."""

    def take_in() -> None:
        with contextlib.suppress(Busy):  # someone holds the file: a later look takes it in
            Store(journal.home(None)).sync(force=True, wait=READ_WAIT)

    stop_on_error(take_in)
    _made_true.clear()


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


@st.cache_data(ttl=60 * LIVE_SECONDS, max_entries=48, show_spinner=False)
def _answer(home: str, revision: str, query: str, args: tuple[Any, ...], named: dict[str, Any]) -> pd.DataFrame:
    found: pd.DataFrame = getattr(queries, query)(Store(journal.home(home)), *args, **named)
    return found


@st.cache_data(max_entries=8, show_spinner=False)  # a page that waits for a long query must not wait for its schema
def _schema(home: str) -> pd.DataFrame:
    return queries.schema(_store(home))
