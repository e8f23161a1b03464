"""What the pages read: the store's queries, kept until something new is recorded, with failures told in a sentence.

All sessions share what is read, so ten readers of a page cost one query. No connection is kept and no model is loaded;
torch is never imported on this path.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import streamlit as st

from immunelab import jobs
from immunelab.analysis.collapse import INTENSITY
from immunelab.analysis.variants import KEYS, complete
from immunelab.errors import UserError
from immunelab.runs import journal
from immunelab.store import Busy, Store, queries
from immunelab.store.door import READ_WAIT

ACTIVE = ("queued", "running", "stopping")
LIVE_SECONDS = 3.0  # how often pages look while something runs: runs need the processor more than pages do
SOON_SECONDS = 0.8  # the same while the reader waits for what he has just asked for
ELSEWHERE = "recorded elsewhere"
TOLD = ("name", "kind", "method", "defense", "learning_rate", "seed", "recorded_by")  # columns that a label is made of
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
    return _ask(query, args, named).frame.copy(deep=False)  # pandas copies what a page writes to


def runs(showcase: bool | None = None) -> pd.DataFrame:
    """One row a run, the newest first; `showcase` True: only shipped runs, False: only this home's."""
    found = _whole(queries.runs, showcase)
    return _newest_first(found.version, found.frame).copy(deep=False)


def curves(showcase: bool | None = None) -> pd.DataFrame:
    """One row per attack run and checkpoint, with the run's settings and status."""
    return _whole(queries.attack_curves, showcase).frame.copy(deep=False)


def version(showcase: bool | None = None) -> int:
    """Another number whenever `curves` has other rows or values: what is made of them is kept under it."""
    return _whole(queries.attack_curves, showcase).version


def finished(curves: pd.DataFrame) -> int:
    """A number for the attacks of a frame and how their defenses are told apart. Of finished runs nothing else changes,
    so what is made of them is kept under it."""
    known = complete(curves).drop_duplicates("run_id")[["run_id", *KEYS]]
    return hash((_home(), *known.itertuples(index=False, name=None)))


def kept(key: Hashable, make: Callable[[], T]) -> T:
    """What `make` gives, shared by all sessions as long as the key is the same: it must say all that it is made from.
    Nobody may change it."""
    found: T = _kept(repr((_home(), key)), make)
    return found


@st.cache_resource(max_entries=48, show_spinner=False)
def _kept(key: str, _make: Callable[[], Any]) -> Any:
    return _make()


def ended() -> int:
    """Another number whenever a run has ended or is gone: what takes many queries is kept under it, and not made anew
    for every step of a run."""
    own = runs(showcase=False)
    over = own.loc[~own["status"].isin(ACTIVE), ["run_id", "status", "archived"]]
    return hash((_home(), version(showcase=True), *over.sort_values("run_id").itertuples(index=False, name=None)))


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
    _intake.forget()


def label(run: Any) -> str:
    """A run in words: the user's name for it, or what it did, at which intensity, with which seed."""
    return _label(*(run[name] for name in TOLD))


@functools.lru_cache(maxsize=4096)
def _label(*told: Any) -> str:
    run = dict(zip(TOLD, told, strict=True))
    rate = f"{run['learning_rate']:g}" if pd.notna(run["learning_rate"]) else ""
    name = run["name"] if isinstance(run["name"], str) else ""
    word, _, value = name.partition(" ")
    setting = f"{word.replace('_', ' ')} {value}" if word in INTENSITY and value else ""
    elsewhere = [ELSEWHERE] if run["recorded_by"] else []
    if name and not setting and name not in (run["method"], rate):
        return " · ".join([name, *elsewhere])
    if run["kind"] == "attack":
        parts = [f"{'attack' if run['method'] == USUAL else run['method']} on {run['defense']}"]
    else:
        parts = [f"{run['kind']} {run['method'] or ''}".strip()]
    parts += [f"lr {rate}"] if rate else []
    return " · ".join([*parts, *([setting] if setting else []), f"seed {run['seed']}", *elsewhere])


def labels(frame: pd.DataFrame) -> dict[str, str]:
    """run_id → label; where two runs would read the same, the end of the id tells them apart."""
    columns = ("run_id", *TOLD)
    cells = zip(*(frame[name].tolist() for name in columns), strict=True)
    words = {run_id: _label(*told) for run_id, *told in cells}
    seen = pd.Series(list(words.values()), dtype=object).value_counts()
    return {i: f"{w} · {i[-6:]}" if seen[w] > 1 else w for i, w in words.items()}


def home() -> Path:
    """The folder of this lab's runs."""
    return journal.home(None)


def _home() -> str:
    return str(journal.home(None))


@st.cache_data(ttl=LIVE_SECONDS, max_entries=4, show_spinner=False)
def _made_true(home: str) -> list[str]:
    return jobs.reconcile(home)  # a run whose process is gone is interrupted, never running


def _store(home: str) -> Store:
    _made_true(home)
    _intake.look(home)
    return Store(journal.home(home))


class Intake:
    """When journals are looked at: while runs go as often as pages are drawn anew, else soon, so that a page finds what
    has just been started elsewhere; and not once more while one is drawn, which would then ask all its questions again.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.looked: dict[str, float] = {}
        self.hurried: dict[str, float] = {}  # until when somebody waits

    def look(self, home: str) -> None:
        """Take in what is new, if it is time to."""
        now = time.monotonic()
        known = _answers(home, queries.runs.__name__, (), {"showcase": False}).frame
        follows = "status" in known and len(active(known)) > 0 and now > self.hurried.get(home, 0.0)
        every = LIVE_SECONDS if follows else SOON_SECONDS
        with self.lock:
            if now - self.looked.get(home, -LIVE_SECONDS) < every - 0.1:
                return
            self.looked[home] = now
        Store(journal.home(home)).sync()

    def hurry(self) -> None:
        """Somebody waits for what runs record next: look more often for a while."""
        self.hurried[_home()] = time.monotonic() + LIVE_SECONDS

    def forget(self) -> None:
        """Look again at once."""
        with self.lock:
            self.looked.clear()


_intake = Intake()
hurry = _intake.hurry


class Answer:
    """A frame that a query gave, shared by all sessions: it is asked again after something new was taken in, and has
    another version only if other rows came back."""

    numbers = itertools.count(1)

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.asked_at: object = None  # what was known when the query was asked last
        self.frame = pd.DataFrame()
        self.version = 0

    def renew(self, state: object, ask: Callable[[], pd.DataFrame]) -> Answer:
        """The answer in this state of what it is made from. Of many who ask, one does, and the others wait for it."""
        with self.lock:
            if self.asked_at != state:
                found = ask()
                if not self.version or not found.equals(self.frame):
                    self.frame, self.version = found, next(self.numbers)
                self.asked_at = state
        return self


def _ask(query: Callable[..., pd.DataFrame], args: tuple[Any, ...], named: dict[str, Any]) -> Answer:
    def answer() -> Answer:
        store = _store(_home())
        # Shipped runs change with the shipped version alone.
        state = store.shipped if named.get("showcase") else store.revision
        kept = _answers(_home(), query.__name__, args, named)
        return kept.renew(state, lambda: getattr(queries, query.__name__)(store, *args, **named))

    return stop_on_error(answer)


def _whole(query: Callable[..., pd.DataFrame], showcase: bool | None) -> Answer:
    """Of shipped runs, of this home's, or of both, which are then read apart: shipped ones are most, and stay."""
    if showcase is not None:
        return _ask(query, (), {"showcase": showcase})
    shipped, own = (_ask(query, (), {"showcase": k}) for k in (True, False))
    both = _answers(_home(), query.__name__, ("both",), {})
    return both.renew((shipped.version, own.version), lambda: _together([shipped.frame, own.frame]))


def _together(frames: list[pd.DataFrame]) -> pd.DataFrame:
    filled = [f for f in frames if len(f)]
    return pd.concat(filled, ignore_index=True) if filled else frames[0]


@st.cache_resource(max_entries=8, show_spinner=False)
def _newest_first(version: int, _frame: pd.DataFrame) -> pd.DataFrame:
    return _frame.sort_values("queued_at", ascending=False, na_position="last")


@st.cache_resource(ttl=600, max_entries=96, show_spinner=False)
def _answers(home: str, query: str, args: tuple[Any, ...], named: dict[str, Any]) -> Answer:
    return Answer()


@st.cache_data(max_entries=8, show_spinner=False)  # a page that waits for a long query must not wait for its schema
def _schema(home: str) -> pd.DataFrame:
    return queries.schema(_store(home))
