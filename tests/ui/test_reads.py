"""What pages read is kept until something new is recorded, and no longer."""

from __future__ import annotations

from pathlib import Path

import made_up
import pandas as pd
import pytest

from immunelab.runs.journal import Journal, RunFolder
from immunelab.store import queries
from immunelab.ui import reads


def test_an_answer_is_kept_until_something_is_taken_in(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = made_up.immunize(home, seed=0)
    reads.forget()
    asked = []
    names = queries.names

    def counted(*args: object) -> pd.DataFrame:
        asked.append(args)
        return names(*args)  # type: ignore[arg-type]

    counted.__name__ = "names"
    monkeypatch.setattr(queries, "names", counted)
    before = reads.ask(queries.names, [run_id])
    assert reads.ask(queries.names, [run_id]).equals(before)
    assert len(asked) == 1
    with Journal(RunFolder(home / "runs" / run_id)) as journal:
        journal.points("immunize", 500, {"another/scalar": 1.0})
    reads.forget()
    after = reads.ask(queries.names, [run_id])
    assert len(asked) == 2
    assert set(after["name"]) - set(before["name"]) == {"another/scalar"}


def test_unlike_questions_have_answers_of_their_own(home: Path) -> None:
    first, second = made_up.immunize(home, seed=0), made_up.immunize(home, seed=1)
    reads.forget()
    whole = reads.ask(queries.scores, [first], splits=None)
    assert set(whole["run_id"]) == {first}
    assert set(reads.ask(queries.scores, [second], splits=None)["run_id"]) == {second}
    assert len(reads.ask(queries.scores, [first])) < len(whole)
    whole["score"] = -1.0  # a page may change its own copy
    assert (reads.ask(queries.scores, [first], splits=None)["score"] >= 0).all()
