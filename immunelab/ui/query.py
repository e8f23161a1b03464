"""The Query page's question: it runs in a thread of its own, so that the page can show a clock and stop it."""

from __future__ import annotations

import threading
import time

import pandas as pd
import streamlit as st

from immunelab.errors import UserError
from immunelab.runs import access, journal
from immunelab.store import Store
from immunelab.store.question import MEMORY, QUESTIONS, TABLES
from immunelab.ui import reads

__all__ = ["MEMORY", "MOST", "QUESTIONS", "Question", "ask", "asked", "limit", "schema", "shown"]

MOST = 10_000  # rows that a page shows and its CSV holds
LIMIT_SECONDS = 10.0
STRANGERS_SECONDS = 2.0  # where the lab is open for reading only: all its readers wait meanwhile
PROMPT = 0.6  # seconds in which most questions are answered: until then no clock is shown
SLOT = "_question"


class Question:
    """One query and what became of it. The thread calls nothing of Streamlit."""

    def __init__(self, sql: str, store: Store) -> None:
        self.sql, self.began = sql, time.monotonic()
        self.frame: pd.DataFrame | None = None
        self.error = ""
        self.seconds = 0.0
        self.more = False  # there are more rows than are shown
        self.stop, self.over = threading.Event(), threading.Event()
        threading.Thread(target=self._answer, args=(store,), name="query", daemon=True).start()

    def elapsed(self) -> float:
        """Seconds since it was asked."""
        return time.monotonic() - self.began

    def _answer(self, store: Store) -> None:
        try:
            frame = store.query(self.sql, limit(), MOST, self.stop)
            self.more = len(frame) > MOST
            self.frame = frame.head(MOST)
        except UserError as error:
            self.error = str(error)
        except Exception as error:  # noqa: BLE001 - a thread has nobody to raise to: the page tells it
            self.error = f"The query ended in an unexpected way ({type(error).__name__}): {error!s:.300}"
        finally:
            self.seconds = time.monotonic() - self.began
            self.over.set()


def limit() -> float:
    """Seconds that a question may take."""
    return STRANGERS_SECONDS if access.read_only() else LIMIT_SECONDS


def ask(sql: str) -> Question:
    """The session's question for this SQL; another one that still goes is stopped."""
    before: Question | None = st.session_state.get(SLOT)
    if before is not None:
        before.stop.set()
    store = Store(journal.home(None))
    store.sync()
    question = Question(sql, store)
    st.session_state[SLOT] = question
    question.over.wait(PROMPT)
    return question


def asked() -> Question | None:
    """The question that this session asked last."""
    question: Question | None = st.session_state.get(SLOT)
    return question


def schema() -> None:
    """Tables and columns, folded, with what each table is."""
    found = reads.schema()
    for table, words in TABLES.items():
        columns = found[found["table"] == table]
        with st.expander(f"`{table}`"):
            st.caption(words)
            lines = [f"{c:<16} {t.lower()}" for c, t in zip(columns["column"], columns["type"], strict=True)]
            st.code("\n".join(lines), language=None)


def shown(question: Question) -> str:
    """How many rows there are, in words."""
    frame = question.frame
    rows = 0 if frame is None else len(frame)
    words = f"{rows:,} {'row' if rows == 1 else 'rows'} in {question.seconds:.2f} s"
    if question.more:
        return f"The first {words}. There are more: at most {MOST:,} are shown and downloaded; add LIMIT, or sum up."
    return f"{words}."
