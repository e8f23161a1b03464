"""The table of all defenses: every number is a recorded run's, and a cell claims no more than its worst seed."""

from __future__ import annotations

from pathlib import Path

import made_up
import pandas as pd
import pytest

from immunelab.analysis import collapse, outcome_table
from immunelab.analysis.outcomes import Thresholds
from immunelab.store import Store, queries

# final harmfulness and utility of the seeds of one cell: defense, method, rate, [(harm, utility), …]
CELLS = [
    ("booster", "harmful-sft", 1e-4, [(0.0, 0.9), (0.0, 0.9)]),
    ("booster", "harmful-sft", 1e-3, [(0.5, 0.9), (0.0, 0.9)]),
    ("seam", "harmful-sft", 1e-4, [(0.0, 0.8), (0.0, 0.9)]),
    ("seam", "harmful-sft", 1e-3, [(0.0, 0.1), (0.4, 0.2)]),
    ("undefended", "harmful-sft", 1e-4, [(0.0, 1.0), (0.0, 1.0)]),
    ("undefended", "harmful-sft", 1e-3, [(0.9, 0.9), (0.8, 1.0)]),
    ("undefended", "lora-sft", 1e-2, [(0.7, 0.9)]),
]


def curves() -> pd.DataFrame:
    rows = []
    for defense, method, rate, seeds in CELLS:
        for seed, (harm, utility) in enumerate(seeds):
            fixed = {
                "defense": defense,
                "method": method,
                "learning_rate": rate,
                "steps": 20,
                "seed": seed,
                "base_utility": 1.0,
                "run_id": f"{defense}-{method}-{rate}-{seed}",
                "status": "done",
                "base_model": "fable",
                "corpus": "fable",
            }
            rows += [
                fixed | {"step": s, "harmfulness": h, "utility": u} for s, h, u in ((0, 0, 1), (20, harm, utility))
            ]
    return pd.DataFrame(rows)


def row(table: pd.DataFrame, defense: str, rate: float) -> pd.Series:
    return table[(table["defense"] == defense) & (table["learning_rate"] == rate)].iloc[0]


def test_a_cell_has_the_mean_the_range_and_the_worst_outcome_of_its_seeds() -> None:
    found = row(outcome_table.outcome_table(curves()), "seam", 1e-3)
    assert found["harmfulness"] == pytest.approx(0.2)
    assert (found["harmfulness_low"], found["harmfulness_high"], found["n"]) == (0.0, 0.4, 2)
    assert found["utility"] == pytest.approx(0.15)
    assert (found["outcome"], found["agreeing"]) == ("broken-and-degraded", 1)
    assert found["outcomes"] == "1 broken-and-degraded, 1 self-destructed"


def test_a_cell_whose_attack_breaks_nothing_says_so() -> None:
    table = outcome_table.outcome_table(curves())
    assert row(table, "seam", 1e-4)["vacuous"] is True
    assert row(table, "seam", 1e-3)["vacuous"] is False
    alone = outcome_table.outcome_table(curves().query("defense != 'undefended'"))
    assert set(alone["vacuous"]) == {None}


def test_an_outcome_of_an_earlier_checkpoint_is_marked() -> None:
    late = pd.DataFrame(curves().query("defense == 'undefended' and learning_rate == 0.001"))
    late.loc[late["step"] == 20, "utility"] = 0.1
    early = late[late["step"] == 20].assign(step=10, utility=0.9)
    table = outcome_table.outcome_table(pd.concat([late, early]))
    assert (table["outcome"].tolist(), table["early"].tolist()) == (["broken"], [True])
    assert "**broken‡**<br>" in outcome_table.markdown(table)
    assert not outcome_table.outcome_table(curves())["early"].any()


def test_an_attack_without_a_learning_rate_has_one_column() -> None:
    prompts = curves().query("learning_rate == 0.001").assign(method="prefill", learning_rate=float("nan"))
    text = outcome_table.markdown(outcome_table.outcome_table(prompts))
    assert "| defense | as it is |" in text
    assert "| undefended | **broken**<br>harm 85 %" in text


def test_labels_follow_the_thresholds() -> None:
    lax = outcome_table.outcome_table(curves(), Thresholds(harm=0.95))
    assert row(lax, "undefended", 1e-3)["outcome"] == "resisted"


def test_undefended_and_seam_stand_first() -> None:
    assert list(dict.fromkeys(outcome_table.outcome_table(curves())["defense"])) == ["undefended", "seam", "booster"]


def test_unfinished_runs_do_not_count() -> None:
    going = curves()
    going.loc[(going["seed"] == 1) & (going["defense"] == "seam"), "status"] = "running"
    assert row(outcome_table.outcome_table(going), "seam", 1e-3)["n"] == 1
    assert outcome_table.outcome_table(curves().iloc[:0]).empty


def test_the_ladder_leaves_out_other_variations() -> None:
    varied = curves()
    odd = varied[varied["defense"] == "undefended"].query("method == 'harmful-sft'").iloc[:2]
    both = pd.concat([varied, odd.assign(steps=5, run_id="odd")])
    table = outcome_table.outcome_table(both)
    assert 5 in set(table["steps"])
    assert set(outcome_table.ladder(table)["steps"]) == {20}
    assert set(outcome_table.ladder(table)["method"]) == {"harmful-sft", "lora-sft"}  # each attack has its own ladder


def test_the_summary_counts_only_telling_attacks() -> None:
    found = outcome_table.summary(outcome_table.outcome_table(curves())).set_index("defense")
    assert found.loc["seam", "attacks"] == 1  # the weak rung breaks nothing, so withstanding it is no merit
    assert found.loc["booster", "outcome"] == "broken"
    assert found.loc["undefended", "broken"] == 2
    assert found.loc["undefended", "most_harm"] == pytest.approx(0.85)
    assert found.loc["undefended", "learning_rate"] == 1e-3


def test_markdown_is_one_table_an_attack() -> None:
    text = outcome_table.markdown(outcome_table.outcome_table(curves()))
    lines = text.splitlines()
    assert lines[0] == "Attack `harmful-sft`, 20 steps, 2 seeds; columns: learning rate."
    assert lines[2] == "| defense | 0.0001 | 0.001 |"
    assert lines[4].startswith("| undefended | resisted†<br>harm 0 %, utility 100 % | **broken**<br>harm 85 % (80–90)")
    assert "| seam | resisted†<br>harm 0 %, utility 85 % (80–90) | broken-and-degraded (1 of 2)<br>" in text
    assert "| **broken** (1 of 2)<br>" not in text  # the count belongs to the bold words
    assert "**broken (1 of 2)**<br>harm 25 % (0–50), utility 90 % |" in text
    assert "Attack `lora-sft`" in text
    assert outcome_table.markdown(outcome_table.outcome_table(curves().iloc[:0])) == ""


def test_the_wide_view_has_a_row_a_defense() -> None:
    along = outcome_table.ladder(outcome_table.outcome_table(curves())).query("method == 'harmful-sft'")
    view = outcome_table.wide(along)
    assert view.index.tolist() == [("undefended", ""), ("seam", ""), ("booster", "")]
    assert view.loc[("booster", ""), 1e-3] == "broken (1 of 2): harm 25 %, utility 90 %"


def test_on_recorded_runs_it_agrees_with_the_collapse_curve(home: Path) -> None:
    made_up.lab(home)
    store = Store(home)
    store.sync()
    every = queries.attack_curves(store)
    mine = collapse.comparable(every[~every["showcase"].astype(bool)])
    table = outcome_table.outcome_table(mine)
    bands = collapse.by_intensity(mine)
    assert len(table) == 2 * len(made_up.RATES)
    for cell in bands.to_dict("records"):
        same = row(table, cell["defense"], cell["learning_rate"])
        assert same[cell["metric"]] == pytest.approx(cell["mean"])
        assert same["outcomes"] == cell["outcomes"]
