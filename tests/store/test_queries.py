from __future__ import annotations

import math
import shutil
from pathlib import Path

import pandas as pd
import pytest
from recorded import record, score, spec

from immunelab.errors import UserError
from immunelab.runs.journal import Journal, RunFolder
from immunelab.store import Store, queries


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home", tmp_path / "no-showcase")


def synced(store: Store) -> Store:
    store.sync(force=True)
    return store


def test_runs_have_their_settings_labels_and_times(store: Store) -> None:
    first = record(store.home, spec("immunize", name="guard", group="demo"))
    second = record(store.home, spec(parent=first, seed=3))
    second.write_labels(name="mine", tags=("x",), note="n", archived=True)
    rows = queries.runs(synced(store)).set_index("run_id")
    assert rows.index.tolist() == [first.run_id, second.run_id]
    assert rows["name"].tolist() == ["guard", "mine"]
    assert rows["tags"].tolist() == [[], ["x"]]
    assert rows["grp"].tolist() == ["demo", ""]
    assert rows["spec_hash"].tolist() == [first.spec().hash, second.spec().hash]
    assert rows["harmful_share"].isna().tolist() == [True, False]  # an immunization has no such setting
    assert rows["harmful_share"].iloc[1] == 1.0
    assert str(rows["queued_at"].dt.tz) == "UTC"
    assert abs((rows["queued_at"].iloc[0] - pd.Timestamp.now(tz="UTC")).total_seconds()) < 60
    assert queries.runs(store, showcase=True).empty
    assert len(queries.runs(store, showcase=False)) == 2


def test_lineage_names_the_nearest_immunization(store: Store) -> None:
    guard = record(store.home, spec("immunize", method="seam"))
    tuned = record(store.home, spec("finetune", parent=guard))
    again = record(store.home, spec("immunize", method="booster", parent=tuned))
    attack = record(store.home, spec(parent=again))
    through = record(store.home, spec(parent=tuned))
    plain = record(store.home, spec(model="some/model"))
    rows = queries.runs(synced(store)).set_index("run_id")
    runs = [guard, tuned, again, attack, through, plain]
    assert [rows["defense"][r.run_id] for r in runs] == ["seam", "seam", "booster", "booster", "seam", "undefended"]
    assert [rows["root"][r.run_id] for r in runs] == [*[guard.run_id] * 5, plain.run_id]
    assert [rows["base_model"][r.run_id] for r in runs] == [*["fable"] * 5, "some/model"]
    assert rows["immunized_by"][attack.run_id] == again.run_id
    assert rows["ancestors"][attack.run_id] == [again.run_id, tuned.run_id, guard.run_id]


def test_lineage_outlives_a_deleted_parent(store: Store) -> None:
    guard = record(store.home, spec("immunize"))
    attack = record(store.home, spec(parent=guard))
    shutil.rmtree(guard.path)
    store.rebuild()
    curves = queries.attack_curves(store)
    assert set(curves["defense"]) == {"seam"}
    assert curves["base_utility"].isna().all()  # unknown, not the attack's own
    assert queries.runs(store)["root"].tolist() == [guard.run_id]
    (attack.path / "lineage.json").unlink()
    store.rebuild()
    assert queries.runs(store)["defense"].tolist() == ["unknown"]


def test_names(store: Store) -> None:
    run = record(store.home, spec())
    found = queries.names(synced(store), [run.run_id])
    assert found.to_dict("list") == {"name": ["loss/total", "norm/update"], "phase": ["attack"] * 2, "n": [20, 20]}
    assert queries.layer_names(store, [run.run_id])["n"].tolist() == [3]
    assert queries.names(store, []).empty


def test_points_are_all_there_when_they_fit(store: Store) -> None:
    run = record(store.home, spec())
    found = queries.points(synced(store), [run.run_id], ["loss/total"])
    assert found.columns.tolist() == ["run_id", "phase", "step", "name", "value", "low", "high", "at"]
    assert found["step"].tolist() == list(range(1, 21))
    for column in ("value", "low", "high"):
        assert found[column].tolist() == [float(s) for s in range(1, 21)]
    after = queries.points(store, [run.run_id], ["loss/total"], phase="attack", after_step=18)
    assert after["step"].tolist() == [19, 20]
    assert queries.points(store, [run.run_id], ["loss/total"], phase="immunize").empty


def test_thinned_points_are_recorded_ones_and_keep_every_extreme(store: Store) -> None:
    run = RunFolder.create(store.home, spec())
    values = [math.sin(s) for s in range(10_000)]
    values[1234], values[7777], values[5001] = 99.0, -99.0, math.nan
    with Journal(run) as j:
        for step, value in enumerate(values):
            j.points("attack", step, {"x": value})
    found = queries.points(synced(store), [run.run_id], ["x"], bins=100)
    assert 100 <= len(found) <= 101
    assert (found["step"].iloc[0], found["step"].iloc[-1]) == (0, 9999)
    assert found["step"].is_monotonic_increasing
    assert [values[s] for s in found["step"]] == found["value"].tolist()
    assert (found["low"].min(), found["high"].max()) == (-99.0, 99.0)
    assert not found[["low", "high"]].isna().any().any()
    with pytest.raises(UserError, match="bin"):
        queries.points(store, [run.run_id], ["x"], bins=0)


def test_non_finite_points_come_back(store: Store) -> None:
    run = RunFolder.create(store.home, spec())
    with Journal(run) as j:
        for step, value in enumerate([1.0, math.nan, math.inf, -math.inf]):
            j.points("attack", step, {"x": value})
    found = queries.points(synced(store), [run.run_id], ["x"])["value"].tolist()
    assert found[0] == 1.0
    assert math.isnan(found[1])
    assert found[2:] == [math.inf, -math.inf]


def test_huge_steps_do_not_overflow(store: Store) -> None:
    run = RunFolder.create(store.home, spec())
    with Journal(run) as j:
        for step in (0, 5, 2**52):
            j.points("attack", step, {"x": 1.0})
    for bins in (1, 2, 10**9):
        assert queries.points(synced(store), [run.run_id], ["x"], bins=bins)["step"].iloc[-1] == 2**52


def resumed(store: Store, event: str = "resumed", from_step: int = 10) -> RunFolder:
    """Attempt 1 recorded steps 0 to 20; attempt 2 goes on from step 10 and has come to 13."""
    run = record(store.home, spec())
    with Journal(run, attempt=2) as j:
        j.event(event, from_step=from_step)
        for step in range(from_step + 1, 14):
            j.points("attack", step, {"loss/total": -float(step)})
            j.layers("attack", step, {"cosine": [float(step)]})
    return run


def test_the_last_attempt_counts_without_gaps_or_repeats(store: Store) -> None:
    run = resumed(store)
    synced(store)
    found = queries.points(store, [run.run_id], ["loss/total"])
    assert found["step"].tolist() == list(range(1, 14))
    assert found["value"].tolist() == [float(s) if s <= 10 else -float(s) for s in range(1, 14)]
    assert queries.scores(store, [run.run_id])["step"].unique().tolist() == [0, 10]
    assert queries.examples(store, run.run_id).empty  # of step 20, which is still to come
    assert queries.checkpoints(store, run.run_id).empty
    assert queries.layers(store, [run.run_id], "cosine")["step"].unique().tolist() == [1, 11, 12, 13]
    assert len(store.frame("SELECT * FROM points WHERE attempt = 1 AND name = 'loss/total'")) == 20  # nothing is lost
    with Journal(run, attempt=3) as j:
        j.event("resumed", from_step=12)
        j.points("attack", 13, {"loss/total": 0.5})
    found = queries.points(synced(store), [run.run_id], ["loss/total"])
    assert found["value"].tolist()[-3:] == [-11.0, -12.0, 0.5]
    assert queries.events(store, run.run_id)["event"].tolist() == ["started", "resumed", "resumed"]


def test_an_attempt_from_the_beginning_replaces_all(store: Store) -> None:
    run = resumed(store, "started", 0)
    found = queries.points(synced(store), [run.run_id], ["loss/total"])
    assert found["value"].tolist() == [-float(s) for s in range(1, 14)]
    assert queries.scores(store, [run.run_id]).empty


def test_a_resume_that_was_killed_before_it_said_so(store: Store) -> None:
    run = record(store.home, spec())
    with Journal(run, attempt=2) as j:
        j.points("attack", 15, {"loss/total": -15.0})
    found = queries.points(synced(store), [run.run_id], ["loss/total"])
    assert found["value"].tolist() == [*map(float, range(1, 15)), -15.0]


def test_a_step_written_twice_is_shown_once(store: Store) -> None:
    run = record(store.home, spec())
    with Journal(run) as j:
        j.points("attack", 5, {"loss/total": 55.0})
        score(j, "attack", 10, "utility", 0.123)
    found = queries.points(synced(store), [run.run_id], ["loss/total"])
    assert (len(found), found["value"][4]) == (20, 55.0)
    assert queries.scores(store, [run.run_id], ["utility"])["score"].tolist() == [1.0, 0.123, 0.5]


def test_scores_by_metric_and_split(store: Store) -> None:
    run = record(store.home, spec())
    with Journal(run) as j:
        score(j, "attack", 0, "utility", 0.9, split="skill:sums")
    synced(store)
    assert set(queries.scores(store, [run.run_id])["split"]) == {"all"}
    parts = queries.scores(store, [run.run_id], metrics=["utility"], splits=["skill:sums"])
    assert parts["score"].tolist() == [0.9]
    assert len(queries.scores(store, [run.run_id], splits=None)) == 7


def test_attack_curves_know_the_base(store: Store) -> None:
    guard = record(store.home, spec("immunize"), utility=(0.99, 0.95))
    attack = record(store.home, spec(parent=guard, seed=1, knobs={"learning_rate": 1e-3}), utility=(0.94, 0.2))
    plain = record(store.home, spec(), utility=(0.98, 0.9))
    curves = queries.attack_curves(synced(store)).set_index("run_id")
    defended, undefended = curves.loc[attack.run_id], curves.loc[plain.run_id]
    assert defended["step"].tolist() == [0, 10, 20]
    assert defended["harmfulness"].tolist() == [0.0, 0.5, 1.0]
    assert defended["utility"].tolist() == pytest.approx([0.94, 0.57, 0.2])
    assert set(defended["base_utility"]) == {0.99}
    assert set(undefended["base_utility"]) == {0.98}
    assert (set(defended["defense"]), set(undefended["defense"])) == ({"seam"}, {"undefended"})
    assert set(defended["harmfulness_n"]) == {50}
    assert set(defended["harmfulness_by"]) == {"of-harmfulness"}
    assert defended["refusal_rate"].isna().all()
    assert defended["base_chance"].isna().all()
    assert set(defended["learning_rate"]) == {1e-3}
    assert not curves["showcase"].any()
    assert guard.run_id not in curves.index
    assert set(queries.attack_curves(store, [plain.run_id])["run_id"]) == {plain.run_id}
    assert queries.attack_curves(store, []).empty


def test_attack_curves_do_not_mix_evaluations(store: Store) -> None:
    run = record(store.home, spec())
    with Journal(run) as j:
        for step in (0, 10):
            score(j, "attack", step, "harmfulness", 0.77, evaluation="a-judge")
    curves = queries.attack_curves(synced(store))
    assert curves["harmfulness"].tolist()[:2] == [0.77, 0.77]
    assert math.isnan(curves["harmfulness"][2])  # the judge did not see step 20; another's number is not its number
    assert set(curves["harmfulness_by"].dropna()) == {"a-judge"}


def test_the_base_is_the_state_before_the_root_was_changed(store: Store) -> None:
    """Not the utility after immunization, and not that of a middle generation."""
    guard = record(store.home, spec("immunize"), utility=(0.9, 0.8))
    tuned = record(store.home, spec("finetune", parent=guard), utility=(0.8, 0.7))
    record(store.home, spec(parent=tuned), utility=(0.7, 0.1))
    assert set(queries.attack_curves(synced(store))["base_utility"]) == {0.9}


def test_examples_checkpoints_layers_disk_events(store: Store) -> None:
    run = record(store.home, spec())
    (run.checkpoints / "step-000020").mkdir()
    (run.checkpoints / "step-000020" / "weights").write_bytes(b"x" * 1000)
    with Journal(run) as j:
        j.checkpoint("attack", 5, path="../../../etc/passwd", sha256="", bytes=1)
        j.checkpoint("attack", 6, path="/etc/passwd", sha256="", bytes=1)
    synced(store)
    assert queries.examples(store, run.run_id)["id"].tolist() == ["h0", "h1", "h2"]
    assert queries.examples(store, run.run_id, step=0).empty
    assert len(queries.examples(store, run.run_id, evaluation="of-harmfulness")) == 3
    assert queries.layers(store, [run.run_id], "cosine")["value"].tolist() == [0.1, 0.2, 0.3]
    found = queries.checkpoints(store, run.run_id).set_index("step")["on_disk"]
    assert found.to_dict() == {5: False, 6: False, 20: True}
    sizes = queries.disk(store).iloc[0]
    assert (sizes["run_id"], sizes["checkpoints"]) == (run.run_id, 1000)
    assert sizes["total"] == sizes["checkpoints"] + sizes["records"]
