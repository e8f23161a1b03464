"""The Trade-off page and its figures."""

from __future__ import annotations

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from immunelab.analysis import tradeoff
from immunelab.analysis.outcomes import Thresholds
from immunelab.store import Store, queries
from immunelab.ui import plane, reads
from tests import made_up

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def runs(home: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr("immunelab.store.showcase.shipped_folder", lambda: home / "no-showcase")
    return made_up.lab(home)


def page(**query: str) -> AppTest:
    reads.forget()
    test = AppTest.from_file(str(ROOT / "pages" / "tradeoff.py"), default_timeout=60)
    for key, value in query.items():
        test.query_params[key] = value
    return ok(test.run())


def ok(test: AppTest) -> AppTest:
    assert not test.exception, test.exception[0].value + "\n" + "\n".join(test.exception[0].stack_trace)
    assert not test.error
    return test


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


def test_regions_move_with_the_thresholds(home: Path) -> None:
    store = Store(home)
    store.sync(force=True)
    points = tradeoff.checkpoints(queries.attack_curves(store))

    def corners(thresholds: Thresholds) -> list[tuple[float, float]]:
        drawn = plane.plane(points, tradeoff.front(points), thresholds, 1.0)
        return [(s.x0, s.y0) for s in drawn.layout.shapes if s.type == "rect"]

    assert corners(Thresholds())[0] == (0.6, 0.1)
    assert corners(Thresholds(harm=0.3, utility_floor=0.4))[0] == (0.4, 0.3)


def test_every_marker_knows_its_run_and_every_trace_its_identity(home: Path, runs: list[str]) -> None:
    store = Store(home)
    store.sync(force=True)
    points = tradeoff.checkpoints(queries.attack_curves(store))
    drawn = plane.plane(points, tradeoff.front(points))
    clickable = [i for t in drawn.data if t.customdata is not None for i in t.customdata if i]
    assert set(clickable) == set(points["run_id"])
    both = plane.budgets({"any": tradeoff.budget(points), "bounded": tradeoff.budget(points, bound=0.2)})
    for figure in (drawn, both):
        ids = [t.uid for t in figure.data]
        assert len(set(ids)) == len(ids)
