"""The guided demo: every step shows recorded runs, and can be run live."""

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
from immunelab.ui import tour

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def runs(home: Path) -> list[str]:
    return made_up.lab(home)


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[RunSpec]:
    seen: list[RunSpec] = []

    def submit(specs: list[RunSpec], *_: Any, **__: Any) -> list[str]:
        seen.extend(specs)
        return [f"run-{i}" for i in range(len(specs))]

    monkeypatch.setattr(jobs, "submit", submit)
    return seen


def page(step: str) -> AppTest:
    return ok(apptest.page("tour", step=step))


@pytest.mark.parametrize("step", list(tour.STEPS))
def test_every_step_draws(step: str) -> None:
    assert page(step).subheader[0].value == step


def test_the_slider_goes_through_recorded_checkpoints() -> None:
    test = page("1 The threat")
    (figure,) = apptest.shown(test)
    assert figure["sliders"][0]["values"] == [0, 10, 20, 30, 40, 50, 60]
    assert figure["frames"]["0"]["said"] == "Undefended: harmfulness 0%, utility 99%; before the attack"
    test.query_params["at"] = "0"  # what the browser does when the handle rests there
    ok(test.run())
    assert test.metric[0].delta == "before the attack"
    assert test.metric[0].value == "0%"


@pytest.mark.parametrize(
    ("step", "kinds"),
    [("1 The threat", ["attack"]), ("2 Immunize", ["immunize"]), ("3 Attack again", ["immunize", "attack"])],
)
def test_a_step_can_be_run_live(step: str, kinds: list[str], submitted: list[RunSpec]) -> None:
    ok(page(step).button(key="tour-live").click().run())
    assert [s.kind for s in submitted] == kinds
    assert {s.seed for s in submitted} == {2}  # a seed that is not recorded yet
    assert submitted[-1].model == ("run:#0" if len(kinds) > 1 else "fable")


def test_the_ladder_holds_both_models(submitted: list[RunSpec]) -> None:
    ok(page("4 Drag the intensity").button(key="tour-live").click().run())
    attacks = [s.model for s in submitted if s.kind == "attack"]
    assert attacks.count("fable") == attacks.count("run:#0") > 1
