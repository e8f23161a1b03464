"""Bands are over recorded runs only; statistics agree with published values."""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest

from immunelab.analysis import collapse
from immunelab.analysis.statistics import bootstrap, wilson
from immunelab.analysis.variants import BASELINE, Variant, labels, told_apart


def curves() -> pd.DataFrame:
    rows = []
    for seed, final in enumerate([0.6, 0.8, 0.7]):
        for rate in (1e-4, 1e-3):
            for step, harm in ((0, 0.0), (10, final / 2), (20, final)):
                rows.append(
                    {
                        "run_id": f"{seed}-{rate}",
                        "step": step,
                        "harmfulness": harm,
                        "utility": 0.9,
                        "seed": seed,
                        "learning_rate": rate,
                        "steps": 20,
                        "defense": "undefended",
                    }
                )
    return pd.DataFrame(rows)


def test_bands_over_seeds() -> None:
    bands = collapse.by_step(collapse.select(curves(), {"learning_rate": 1e-3}))
    last = bands[(bands["step"] == 20) & (bands["metric"] == "harmfulness")].iloc[0]
    assert (last["low"], last["high"], last["n"]) == (0.6, 0.8, 3)
    assert last["mean"] == pytest.approx(0.7)


def test_a_missing_score_is_no_zero() -> None:
    frame = curves()
    frame.loc[frame["step"] == 10, "harmfulness"] = math.nan
    bands = collapse.by_step(frame)
    assert 10 not in set(bands.loc[bands["metric"] == "harmfulness", "step"])


def test_intensity_takes_the_final_scores_and_the_cells_outcomes() -> None:
    bands = collapse.by_intensity(curves())
    row = bands[(bands["learning_rate"] == 1e-4) & (bands["metric"] == "harmfulness")].iloc[0]
    assert row["mean"] == pytest.approx(0.7)
    assert row["outcome"] == "broken"
    assert row["outcomes"] == "3 broken"
    assert collapse.by_intensity(curves().iloc[:0]).empty


def test_choices_are_recorded_ones() -> None:
    assert collapse.recorded(curves(), "learning_rate") == [1e-4, 1e-3]
    assert collapse.nearest([1e-4, 1e-3], 9e-4) == 1e-3
    assert collapse.missing(curves(), {"learning_rate": 1e-3}, [BASELINE, Variant("seam")]) == [Variant("seam")]
    assert collapse.missing(curves(), {"learning_rate": 5.0}, [BASELINE]) == [BASELINE]


def test_a_repeated_run_counts_once() -> None:
    frame = curves().assign(status="done")
    again = frame[frame["seed"] == 0].assign(run_id=lambda f: "9" + f["run_id"])
    unfinished = frame[frame["seed"] == 1].assign(run_id=lambda f: "9" + f["run_id"], status="running")
    kept = collapse.without_repeats(pd.concat([frame, again, unfinished]))
    assert kept["run_id"].nunique() == 6
    assert "90-0.001" in set(kept["run_id"])
    assert "91-0.001" not in set(kept["run_id"])


def test_of_repeats_the_one_asked_for_counts_and_this_labs_before_a_shipped_one() -> None:
    shipped = curves().assign(status="done", showcase=True, run_id=lambda f: "showcase-" + f["run_id"])
    own = curves().assign(status="done", showcase=False)
    both = pd.concat([shipped, own])
    assert set(collapse.without_repeats(both)["run_id"]) == set(own["run_id"])
    assert set(collapse.without_repeats(both, ["showcase-0-0.001"])["run_id"]) == {
        *(set(own["run_id"]) - {"0-0.001"}),
        "showcase-0-0.001",
    }


def test_wilson_against_published_values() -> None:
    # Newcombe (1998), table I, method 3: 81/263, 15/148, 0/20, 1/29.
    for hits, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(hits / n, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(0.5, 0) == (0, 1)
    assert wilson(math.nan, 5) == (0, 1)
    assert wilson(1.0, 10)[1] == 1.0


def test_bootstrap() -> None:
    assert bootstrap([0.4]) == pytest.approx((0.4, 0.4))
    low, high = bootstrap([0.1, 0.2, 0.3, 0.4])
    assert 0.1 <= low < 0.25 < high <= 0.4
    assert bootstrap([0.1, 0.2, 0.3, 0.4]) == (low, high)
    assert all(math.isnan(v) for v in bootstrap([]))


def test_defenses_are_told_apart_by_their_settings_in_few_words() -> None:
    def labelled(*knobs: dict[str, float]) -> list[str]:
        made = [{"defense": "seam", "settings": json.dumps(own)} for own in knobs]
        return labels(told_apart(pd.DataFrame([*made, {"defense": "undefended", "settings": None}]))).tolist()

    few = labelled({"beta": 0.01, "eps": 1.0}, {"beta": 0.02, "eps": 1.0})
    assert few == ["seam (beta 0.01)", "seam (beta 0.02)", "undefended"]
    many = labelled(dict.fromkeys("abcd", 1.0), dict.fromkeys("abcd", 2.0))
    assert many == ["seam (settings 1 of 2)", "seam (settings 2 of 2)", "undefended"]
    assert labelled({"beta": 0.01}, {"beta": 0.01}) == ["seam", "seam", "undefended"]


def test_one_attack_is_the_most_frequent_one() -> None:
    rows = [
        ("a", "sft", 1e-4, 60),
        ("b", "sft", 1e-3, 60),
        ("c", "sft", 3e-3, 60),
        ("d", "sft", 1e-3, 20),
        ("e", "lora", 1e-3, 60),
    ]
    curves = pd.DataFrame(rows, columns=["run_id", "method", "learning_rate", "steps"])
    assert collapse.one_attack(curves, "step")["run_id"].tolist() == ["b"]
    assert collapse.one_attack(curves, "learning_rate")["run_id"].tolist() == ["a", "b", "c"]
    assert collapse.one_attack(curves[curves["steps"] == 20], "step", ["steps"])["run_id"].tolist() == ["d"]
