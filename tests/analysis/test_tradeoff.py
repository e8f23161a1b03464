"""Fronts, worst cases and budgets against values worked out by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from immunelab.analysis import tradeoff
from immunelab.analysis.outcomes import Thresholds
from immunelab.analysis.variants import BASELINE, Variant


def curves() -> pd.DataFrame:
    """Two attacks, two seeds, two models: (harmfulness, utility) at steps 0, 10, 20."""
    runs = {
        ("undefended", 1e-4): [(0.0, 1.0), (0.4, 0.95), (0.6, 0.9)],
        ("undefended", 1e-3): [(0.0, 1.0), (0.7, 0.7), (0.9, 0.2)],
        ("seam", 1e-4): [(0.02, 0.9), (0.02, 0.8), (0.05, 0.6)],
        ("seam", 1e-3): [(0.02, 0.9), (0.3, 0.3), (0.2, 0.1)],
    }
    rows = [
        {
            "run_id": f"{d}-{r}-{s}",
            "defense": d,
            "seed": s,
            "learning_rate": r,
            "steps": 20,
            "batch_size": 8,
            "step": 10 * k,
            "harmfulness": h + (0.01 * s if k else 0),
            "utility": u,
            "base_utility": 1.0,
        }
        for (d, r), curve in runs.items()
        for s in (0, 1)
        for k, (h, u) in enumerate(curve)
    ]
    return pd.DataFrame(rows)


def test_every_checkpoint_is_placed() -> None:
    points = tradeoff.checkpoints(curves())
    assert len(points) == 24
    assert points["end"].sum() == 8
    assert points.loc[points["step"] == 0, "outcome"].isna().all()
    row = points[(points["defense"] == "seam") & (points["learning_rate"] == 1e-3) & (points["step"] == 10)].iloc[0]
    assert row["outcome"] == "broken-and-degraded"
    assert row["kept"] == pytest.approx(0.3 / 0.9)  # of its own utility before the attack, not of the base's
    assert row["compute"] == 80
    strict = tradeoff.checkpoints(curves(), Thresholds(harm=0.5))
    assert strict.loc[row.name, "outcome"] == "self-destructed"


def test_a_checkpoint_without_both_scores_is_left_out() -> None:
    frame = curves()
    frame.loc[3, "utility"] = math.nan
    assert len(tradeoff.checkpoints(frame)) == 23


def test_nothing_beats_the_front() -> None:
    points = tradeoff.checkpoints(curves())
    for defense, line in tradeoff.front(points).groupby("defense"):
        assert line["utility"].is_monotonic_increasing
        assert line["harmfulness"].is_monotonic_decreasing
        mine = points[(points["defense"] == defense) & (points["step"] > 0)]
        for f, u in itertools.product(line["harmfulness"], line["utility"]):
            if ((line["harmfulness"] == f) & (line["utility"] == u)).any():
                better = (mine["harmfulness"] >= f) & (mine["utility"] >= u)
                assert (better & ((mine["harmfulness"] > f) | (mine["utility"] > u))).sum() == 0
    assert set(tradeoff.front(points).query("defense == 'undefended'")["utility"]) == {0.2, 0.7, 0.9, 0.95}


def test_the_bounded_worst_case() -> None:
    found = tradeoff.worst_cases(tradeoff.checkpoints(curves()), bounds=(math.inf, 0.2, 0.06, 0.05, 0.0))
    found = found.set_index(["defense", "bound"])
    free = found.loc[("undefended", math.inf)]
    assert (free["harmfulness"], free["low"], free["high"], free["n"]) == (pytest.approx(0.905), 0.9, 0.91, 2)
    assert free["run_id"] == "undefended-0.001-1"
    assert found.loc[("undefended", 0.2), "harmfulness"] == pytest.approx(0.605)
    assert found.loc[("undefended", 0.06), "harmfulness"] == pytest.approx(0.405)
    assert found.loc[("undefended", 0.05), "step"] == 0  # exactly 95 % is not above 95 %
    assert found.loc[("undefended", 0.0), "step"] == 0
    assert found.loc[("seam", 0.2), "harmfulness"] == pytest.approx(0.025)  # 0.8 of 0.9 is kept
    only = found.loc[("seam", 0.05)]
    assert (only["step"], only["harmfulness"]) == (0, pytest.approx(0.02))  # no attack fits: the released model
    assert set(found["trials"]) == {4}


def test_expected_best_is_the_mean_over_all_orders() -> None:
    values = np.array([0.1, 0.7, 0.4, 0.4])
    found = tradeoff.expected_best(values)
    for k in range(1, 5):
        assert found[k] == pytest.approx(np.mean([max(c) for c in itertools.combinations(values, k)]))
    assert found[4] == pytest.approx(0.7)
    assert found[0] == 0.0


@pytest.mark.parametrize("by", ["trials", "compute"])
def test_a_larger_budget_never_finds_less(by: str) -> None:
    for bound in (math.inf, 0.2):
        found = tradeoff.budget(tradeoff.checkpoints(curves()), by, bound)
        for _, line in found.groupby("defense"):
            assert line["mean"].is_monotonic_increasing
            assert (line["low"] <= line["mean"] + 1e-12).all()
            assert (line["mean"] <= line["high"] + 1e-12).all()
            assert line["x"].iloc[0] == 0
            assert (line["n"] == 2).all()
    compute = tradeoff.budget(tradeoff.checkpoints(curves()), "compute").query("defense == 'undefended'")
    assert compute.set_index("x")["mean"].to_dict() == pytest.approx({0: 0.0, 80: 0.705, 160: 0.905})


def test_an_equal_budget_is_what_every_model_faced() -> None:
    frame = curves()
    frame = frame[~((frame["defense"] == "seam") & (frame["learning_rate"] == 1e-3) & (frame["seed"] == 1))]
    points = tradeoff.checkpoints(frame)
    shared = tradeoff.faced_by_all(points, [BASELINE, Variant("seam")])
    assert shared.groupby("defense")["run_id"].nunique().to_dict() == {"undefended": 3, "seam": 3}
    assert tradeoff.faced_by_all(points, [BASELINE])["run_id"].nunique() == 4


def test_nothing_recorded() -> None:
    empty = tradeoff.checkpoints(curves().iloc[:0])
    assert empty.empty
    assert tradeoff.front(empty).empty
    assert tradeoff.worst_cases(empty).empty
    assert tradeoff.budget(empty).empty
