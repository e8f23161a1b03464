"""What pages read is kept until something new is recorded, and no longer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

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


@pytest.mark.parametrize(
    ("running", "waits", "looks"),
    [
        (False, False, [0.0, 0.8, 1.6, 2.4, 3.2, 4.0]),  # a run that is started elsewhere is found at once
        (True, False, [0.0, 3.2]),  # pages follow it
        (True, True, [0.0, 0.8, 1.6, 2.4, 3.2, 4.0]),
    ],
)
def test_how_often_journals_are_looked_at(
    running: bool, waits: bool, looks: list[float], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up.lab(home, seeds=1, rates=(1e-3,), running=running)
    reads.forget()
    reads.runs(showcase=False)
    now, seen = [0.0], []

    class Counted:
        def __init__(self, _: Path) -> None:
            seen.append(now[0])

        def sync(self) -> None:
            """Nothing new."""

    intake = reads.Intake()
    monkeypatch.setattr(reads, "Store", Counted)
    monkeypatch.setattr(reads, "time", SimpleNamespace(monotonic=lambda: now[0]))
    for tenth in range(0, 44, 4):
        now[0] = tenth / 10
        if waits:
            intake.hurry()
        intake.look(str(home))
    assert seen == looks
