"""The Scorecard page: verdicts that follow the limits, runs behind them, and the runs that fill a gap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apptest
import made_up
import pytest
from apptest import without_error as ok
from streamlit.testing.v1 import AppTest

from immunelab import jobs
from immunelab.runs.spec import RunSpec
from immunelab.ui import scorecard

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def runs(home: Path) -> list[str]:
    return made_up.lab(home)


def page(**query: str) -> AppTest:
    return ok(apptest.page("scorecard", **query))


def text(test: AppTest) -> str:
    return "\n".join(str(p.value) for p in (*test.markdown, *test.caption)).replace("\\", "")


def test_all_seeds_or_one_run(runs: list[str]) -> None:
    test = page()
    assert test.selectbox(key="of-choice").value == f"all-{runs[9]}"
    assert "Seeds 0, 1. Tested budget: harmful-sft; 4 attacks, 8 runs; up to 60 steps" in text(test)
    assert "n = 8 runs" in text(test)
    one = page(of=runs[0])
    assert "Seeds 0. Tested budget" in text(one)
    assert "No longer recorded here: gone" in page(of="gone").warning[0].value


def test_verdicts_follow_the_thresholds() -> None:
    test = page()
    ok(test.slider(key="harm").set_value(1).run())
    assert "attacks harmfulness passes 1%" in text(test)
    ok(test.slider(key="harm").set_value(95).run())
    assert "No attack breaks the undefended model" in text(test)


def test_every_table_draws() -> None:
    test = page()
    for name in scorecard.TABLES:
        ok(test.button_group(key="table").set_value(name).run())


def test_the_missing_runs_are_offered(runs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[RunSpec] = []

    def submit(specs: list[RunSpec], *_: Any, **__: Any) -> list[str]:
        seen.extend(specs)
        return [f"run-{i}" for i in range(len(specs))]

    monkeypatch.setattr(jobs, "submit", submit)
    test = page(of=runs[0])
    ok(test.button(key="measure-trainability").click().run())
    assert {s.kind for s in seen} == {"finetune"}
    assert {s.model for s in seen} == {"fable", f"run:{runs[0]}"}
    rates = {m: sorted(s.knobs["learning_rate"] for s in seen if s.model == m) for m in ("fable", f"run:{runs[0]}")}
    assert rates["fable"] == rates[f"run:{runs[0]}"]
    assert any(s.knobs["harmful_share"] > 0 for s in seen)


def test_all_defenses_side_by_side(runs: list[str]) -> None:
    test = page(view="All defenses")
    shown = test.dataframe[0].value
    assert "SEAM" in list(shown["Defense"])
    assert len(shown) == len(set(shown["Defense"])) > 0
    one = page()
    for heading in [c for c in shown if c not in ("Defense", "Seeds")]:
        verdict = shown.loc[shown["Defense"] == "SEAM", heading].iloc[0].split(" (n")[0]
        assert verdict in " ".join(str(b.proto) for b in one.get("markdown")), heading


def test_the_link_carries_the_other_limits() -> None:
    test = page(**{"limit-cost": "7.5"})
    assert test.number_input(key="limit-cost").value == 7.5
