"""The Trade-off page and its figures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import apptest
import made_up
import pytest
from apptest import without_error as ok
from streamlit.testing.v1 import AppTest

from immunelab.analysis import tradeoff
from immunelab.analysis.outcomes import Thresholds
from immunelab.analysis.tuning import control, settings_table
from immunelab.analysis.variants import BASELINE, Variant
from immunelab.figures.budget import budget_curves
from immunelab.figures.tradeoff import harm_against_utility
from immunelab.figures.tuning import tuning
from immunelab.store import Store, queries

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def runs(home: Path) -> list[str]:
    return made_up.lab(home)


def page(**query: str) -> AppTest:
    return ok(apptest.page("tradeoff", **query))


def test_the_worst_case_follows_the_bound_in_the_link(home: Path) -> None:
    tight, loose = (page(loss=share).dataframe[0].value for share in ("5%", "90%"))
    for table in (tight, loose):
        assert set(table["Defense"]) == {"SEAM", "Undefended"}
        assert set(table["Searched"]) == {8}
    seam = [t.query("Defense == 'SEAM' and `Utility lost` != 'any'")["Most harm"].item() for t in (tight, loose)]
    assert seam[0] <= seam[1]
    free = tight.query("`Utility lost` == 'any'").set_index("Defense")["Most harm"]
    points = tradeoff.checkpoints(queries.attack_curves(Store(home)))
    means = points.groupby(["defense", "learning_rate", "step"])["harmfulness"].mean()
    assert free["Undefended"] / 100 == pytest.approx(means["undefended"].max())


def test_both_views_and_budgets_draw() -> None:
    test = page(show="Attacker's budget")
    ok(test.button_group(key="by").set_value("compute").run())
    ok(test.toggle(key="equal").set_value(False).run())
    ok(page(paths="false").slider(key="harm").set_value(95).run())


def test_an_unequal_budget_is_not_compared_by_default(home: Path) -> None:
    made_up.attack(home, 0, 5e-3, None)
    test = page()
    assert set(test.dataframe[0].value["Searched"]) == {8}
    ok(test.toggle(key="equal").set_value(False).run())
    assert set(test.dataframe[0].value["Searched"]) == {8, 9}


def test_searches_are_a_step_curve_with_bands_over_seeds(home: Path) -> None:
    made_up.search(home, 0, None, [0.2, 0.1, 0.9])
    made_up.search(home, 1, None, [0.4, 0.6, 0.1])
    made_up.search(home, 1, None, [0.0])  # a shorter one of the same seed says nothing new
    defended = next(i for i in Store(home).frame("SELECT run_id FROM runs WHERE kind = 'immunize'")["run_id"])
    made_up.search(home, 0, defended, [0.0, 0.3])
    store = Store(home)
    store.sync(force=True)
    found = queries.searches(store)
    curve = tradeoff.searched(found).set_index(["defense", "x"])
    assert curve.loc["undefended", "mean"].tolist() == pytest.approx([0.0, 0.3, 0.4, 0.75])
    assert curve.loc["undefended", "low"].tolist() == [0.0, 0.2, 0.2, 0.6]
    assert curve.loc["undefended", "high"].tolist() == [0.0, 0.4, 0.6, 0.9]
    assert curve.loc["seam", "mean"].tolist() == [0.0, 0.0, 0.3]
    rows = tradeoff.searched(found, "rows").set_index(["defense", "x"])
    assert rows.loc[("undefended", 480), "mean"] == pytest.approx(0.3)  # 480 rows a trial, whoever made it
    assert rows.loc[("undefended", 480), "n"] == 2
    test = page(show="Attacker's search")
    assert "Undefended: 0.0% to 90.0%" in test.caption[1].value.replace("Undefended: 0%", "Undefended: 0.0%")
    ok(test.button_group(key="spent").set_value("rows").run())
    ok(test.button_group(key="spent").set_value("seconds").run())
    worst, trials = (frame.value for frame in test.dataframe)
    assert worst["Model"].tolist() == ["Undefended", "SEAM"]  # the most harm first
    assert worst["Most harm found by search"].tolist() == pytest.approx([0.75, 0.3])
    assert worst["Searches"].tolist() == ["2: 60%–90%", "1"]
    assert worst["Trials"].tolist() == [3, 2]
    assert trials["Harm within the bound"].tolist()[:2] == [0.9, 0.6]
    # beside it the worst of the attacks that both faced, by the function that the other views use
    points = tradeoff.faced_by_all(tradeoff.checkpoints(queries.attack_curves(store)), [BASELINE, Variant("seam")])
    cases = tradeoff.worst_cases(points, [0.2]).set_index("defense")
    assert worst["Most harm of recorded attacks"].tolist() == [
        cases.loc[d, "harmfulness"] for d in ("undefended", "seam")
    ]
    assert set(worst["Recorded attacks"]) == {8}
    assert "| undefended | 75% (60%–90%) | 2 | 3 |" in tradeoff.markdown(found, points)


def test_without_a_search_the_page_offers_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from immunelab import jobs

    wanted: list[Any] = []
    monkeypatch.setattr(jobs, "submit", lambda specs, **how: wanted.extend([specs, how]) or ["a", "b"])
    test = page(show="Attacker's search")
    assert "No search has been recorded yet" in test.info[0].value
    test.number_input(key="search-trials-wanted").set_value(7)
    ok(test.button[-1].click().run())
    specs, how = wanted
    assert how == {"reuse": True, "go_on": True, "from_warm": True}
    assert [s.model[:4] for s in specs] == ["fabl", "run:"]
    assert {(s.kind, s.knobs["trials"], s.knobs["max_utility_loss"]) for s in specs} == {("sweep", 7, 0.2)}


def test_a_tuning_is_a_point_a_setting_with_its_winner(home: Path) -> None:
    made_up.tuning(home, [(0.98, 0.7), (0.93, None), (0.975, 0.4)], winner=3)
    test = page(show="Defense tuned")
    table = test.dataframe[0].value
    assert table["Setting"].tolist() == ["preset", "2", "3"]
    assert table["Ended"].tolist() == ["tried", "costly", "tried"]
    assert table["Most harm"].tolist() == pytest.approx([0.7, math.nan, 0.4], nan_ok=True)
    assert table["Harm, other seeds"].tolist() == pytest.approx([0.7, math.nan, 0.4], nan_ok=True)
    assert table["to"].tolist() == pytest.approx([0.8, math.nan, 0.5], nan_ok=True)
    words = " ".join(c.value for c in test.caption)
    assert "Setting 3 wins: with 2 other seeds it gives 40.0% away (30.0% to 50.0%) and keeps 97.5%." in words
    assert "The preset gives 70.0% away and keeps 98.0%." in words
    events = queries.tunings(Store(home))
    drawn = tuning(settings_table(events), "seam", 0.97, control(events))
    at = {trace.name: (list(trace.x), list(trace.y)) for trace in drawn.data}
    assert at["faced the whole panel"] == ([0.98, 0.975], [0.7, 0.4])
    assert at["costs too much utility: not attacked"] == ([0.93], [0.0])
    sure = next(trace for trace in drawn.data if trace.name.startswith("confirmed"))
    assert list(sure.marker.symbol) == ["diamond", "star"]
    assert list(sure.error_y.array) == pytest.approx([0.1, 0.1])


def test_without_a_tuning_the_page_offers_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from immunelab import jobs

    wanted: list[Any] = []
    monkeypatch.setattr(jobs, "submit", lambda specs, **how: wanted.extend([specs, how]) or ["a"])
    test = page(show="Defense tuned")
    assert "No defense has been tuned" in test.info[0].value
    test.number_input(key="tune-trials").set_value(7)
    test.text_input(key="tune-vary").set_value("beta=0.2..5")
    ok(test.button[-1].click().run())
    specs, how = wanted
    assert how == {"reuse": True, "go_on": True, "from_warm": True}
    ((spec),) = specs
    assert (spec.method, spec.knobs["defense"], spec.knobs["trials"], spec.knobs["utility"]) == (
        "tune",
        "seam",
        7,
        0.97,
    )
    test.text_input(key="tune-vary").set_value("betta=1..2")
    test.button[-1].click().run()
    assert "Did you mean 'beta'" in test.error[0].value


def test_regions_move_with_the_thresholds(home: Path) -> None:
    store = Store(home)
    store.sync(force=True)
    points = tradeoff.checkpoints(queries.attack_curves(store))

    def corners(thresholds: Thresholds) -> list[tuple[float, float]]:
        drawn = harm_against_utility(points, tradeoff.front(points), thresholds, 1.0)
        return [(s.x0, s.y0) for s in drawn.layout.shapes if s.type == "rect"]

    assert corners(Thresholds())[0] == (0.6, 0.1)
    assert corners(Thresholds(harm=0.3, utility_floor=0.4))[0] == (0.4, 0.3)


def test_every_marker_knows_its_run_and_every_trace_its_identity(home: Path, runs: list[str]) -> None:
    store = Store(home)
    store.sync(force=True)
    points = tradeoff.checkpoints(queries.attack_curves(store))
    drawn = harm_against_utility(points, tradeoff.front(points))
    clickable = [i for t in drawn.data if t.customdata is not None for i in t.customdata if i]
    assert set(clickable) == set(points["run_id"])
    both = budget_curves({"any": tradeoff.budget(points), "bounded": tradeoff.budget(points, bound=0.2)})
    for figure in (drawn, both):
        ids = [t.uid for t in figure.data]
        assert len(set(ids)) == len(ids)
