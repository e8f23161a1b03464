"""Runs on several base models or corpora in one lab: no figure, card or estimate mixes them."""

from __future__ import annotations

from pathlib import Path

import apptest
import made_up
import pytest
from streamlit.testing.v1 import AppTest

import immunelab
from immunelab import reports
from immunelab.analysis import collapse
from immunelab.analysis.estimate import estimate
from immunelab.errors import UserError
from immunelab.runs.spec import RunSpec, base_name, subject
from immunelab.store import Store, queries, record_showcase
from immunelab.ui import reads

ROOT = Path(__file__).resolve().parents[2]
OTHER = "worlds/other"


@pytest.fixture
def both(home: Path) -> Store:
    """Two seeds of a world, and afterwards one seed of another with a model of its own, attacked at one rate."""
    made_up.lab(home)
    guard = made_up.immunize(home, 0, 90, corpus=OTHER)
    for parent in (None, guard):
        made_up.attack(home, 0, 1e-3, parent, 91, corpus=OTHER)
    store = Store(home)
    store.sync(force=True)
    reads.forget()
    return store


def page(name: str, **query: str) -> AppTest:
    return apptest.without_error(apptest.page(name, **query))


@pytest.mark.parametrize(
    ("model", "corpus", "base", "told"),
    [
        ("fable", "fable", "fable", "fable"),
        ("fable", "fable?hold-out=gnawer", "fable", "fable"),
        ("fable", "worlds/7?only=bane", "worlds/7", "worlds/7"),
        ("some/model", "beavertails", "some/model", "some/model on beavertails"),
        ("some/model", "mine.toml?hold-out=a,b", "some/model", "some/model on mine.toml"),
    ],
)
def test_what_was_attacked_has_a_name(model: str, corpus: str, base: str, told: str) -> None:
    assert base_name(model, corpus) == base
    assert subject(model, corpus) == told


def test_what_may_be_drawn_together_is_of_one_subject(both: Store) -> None:
    curves = queries.attack_curves(both)
    assert collapse.subjects(curves) == [OTHER, "fable"]  # what this lab did last comes first
    assert set(collapse.comparable(curves)["subject"]) == {OTHER}
    fable = collapse.comparable(curves, "fable")
    assert set(fable["subject"]) == {"fable"}
    assert set(fable["defense"]) == {"undefended", "seam"}
    alone = collapse.by_step(fable[fable["learning_rate"] == 1e-3])
    assert alone.loc[alone["step"] == 60, "n"].tolist() == [2] * 4  # two seeds, and not the other world's run


@pytest.mark.slow
def test_shipped_runs_come_after_own_ones_the_most_recorded_first(both: Store, tmp_path: Path) -> None:
    runs = queries.runs(both)
    record_showcase.export(both, runs["run_id"].tolist(), tmp_path / "shipped")
    empty = Store(tmp_path / "empty", tmp_path / "shipped")
    empty.sync(force=True)
    assert collapse.subjects(queries.attack_curves(empty)) == ["fable", OTHER]
    assert reports.find(queries.runs(empty), "seam") == [f"showcase-{i}" for i in _guards(runs, "fable")]
    made_up.attack(empty.home, 0, 1e-3, None, corpus="worlds/third")
    empty.sync(force=True)
    assert collapse.subjects(queries.attack_curves(empty)) == ["worlds/third", "fable", OTHER]


def _guards(runs: object, of: str) -> list[str]:
    return runs.query("kind == 'immunize' and subject == @of")["run_id"].tolist()  # type: ignore[attr-defined]


@pytest.mark.slow
def test_from_python_the_subject_is_told_where_there_are_several(both: Store) -> None:
    lab = immunelab.open(both.home)
    with pytest.raises(UserError, match=f"subject=, one of 'fable', '{OTHER}'"):
        lab.curves()
    assert set(lab.curves(subject="fable")["subject"]) == {"fable"}
    mine = lab.curves(subject=OTHER)["run_id"].unique().tolist()
    assert set(lab.curves(mine)["run_id"]) == set(mine)
    fable = lab.curves(subject="fable")["run_id"].iloc[0]
    with pytest.raises(UserError, match="subject="):
        lab.curves([*mine, fable])


@pytest.mark.slow
def test_searches_of_two_models_share_no_curve(both: Store) -> None:
    made_up.search(both.home, 0, None, [0.2, 0.6])
    other = made_up.search(both.home, 0, None, [0.9], corpus=OTHER)
    both.sync(force=True)
    lab = immunelab.open(both.home)
    with pytest.raises(UserError, match="subject="):
        lab.searches()
    most = {
        s: max(max(line.y) for line in lab.searches(subject=s).data if line.y is not None) for s in ("fable", OTHER)
    }
    assert most == {"fable": pytest.approx(0.6), OTHER: pytest.approx(0.9)}
    assert lab.searches([other]).data


@pytest.mark.slow
def test_a_scorecard_has_the_controls_of_its_own_base_model(both: Store) -> None:
    runs = queries.runs(both)
    assert reports.find(runs, "seam") == _guards(runs, OTHER)  # of this lab's immunizations the newest
    for of, attacks in ((OTHER, 2), ("fable", 16)):
        gathered = reports.gather(both, _guards(runs, of), reports.Recorded.of(both))
        assert set(gathered.curves["corpus"]) == {of}
        assert gathered.curves["run_id"].nunique() == attacks
    assert reports.of(both, _guards(runs, OTHER)).base_model == OTHER


def test_an_estimate_rests_on_the_same_base_model(both: Store) -> None:
    runs = queries.runs(both)
    spec = RunSpec.from_json(runs.loc[runs["kind"] == "attack", "spec"].iloc[0])
    assert "8 finished runs" in estimate([spec], runs[runs["kind"] == "attack"].query("defense == 'undefended'")).basis
    elsewhere = RunSpec(kind="attack", method=spec.method, knobs=spec.knobs, corpus="worlds/nowhere")
    assert estimate([elsewhere], runs).basis == ""


@pytest.mark.slow
def test_pages_ask_which_and_show_one(both: Store) -> None:
    views = {"collapse": {}, "tradeoff": {}, "playground": {}, "gradients": {"view": "Along attacks"}}
    for name, query in views.items():
        test = page(name, **query)
        box = test.selectbox(key="base")
        assert box.options == [OTHER, "fable"]
        assert box.value == OTHER
        assert page(name, base="fable", **query).selectbox(key="base").value == "fable"
    assert page("collapse", base="fable", rate="0.001").dataframe[0].value["Defense"].nunique() == 2


@pytest.mark.slow
def test_the_scorecard_page_says_which_model_a_defense_is_on(both: Store) -> None:
    made_up.immunize(both.home, 0, 99, corpus="fable?hold-out=gnawer")
    both.sync(force=True)
    reads.forget()
    options = page("scorecard").selectbox(key="of-choice").options
    assert "SEAM without gnawer on fable, seed 0" in options
    assert f"SEAM on {OTHER}, seed 0" in options
    assert "SEAM on fable, all 2 seeds" in options


@pytest.mark.slow
def test_overview_tour_and_methods_stay_with_one_subject(both: Store) -> None:
    for name in ("overview", "tour", "methods"):
        page(name)
