from __future__ import annotations

import json
from pathlib import Path

import pytest
from recorded import record, spec

from immunelab import bundled
from immunelab.errors import UserError
from immunelab.store import Store, queries, record_showcase, showcase


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    """A showcase of one immunization, an attack on it, and one on the undefended model."""
    store = Store(tmp_path / "made", tmp_path / "none")
    guard = record(store.home, spec("immunize"), utility=(0.99, 0.95))
    runs = [guard, record(store.home, spec(parent=guard)), record(store.home, spec())]
    runs[1].write_labels(note="private", name="kept")
    store.sync(force=True)
    folder = tmp_path / "showcase"
    about = record_showcase.export(store, [r.run_id for r in runs], folder)
    assert about["rows"]["runs"] == 3
    return folder


def test_a_fresh_home_shows_the_shipped_runs(shipped: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "home", shipped)
    store.sync()
    runs = queries.runs(store)
    assert runs["showcase"].all()
    assert runs["run_id"].str.startswith("showcase-").all()
    assert runs["defense"].tolist() == ["seam", "seam", "undefended"]
    assert runs["status"].tolist() == ["done"] * 3
    attack, ids = runs.iloc[1], runs["run_id"].tolist()
    assert (attack["parent"], attack["root"], attack["model"]) == (ids[0], ids[0], f"run:{ids[0]}")
    assert attack["ancestors"] == [ids[0]]
    assert json.loads(attack["spec"])["parent"] == ids[0]
    assert (attack["name"], attack["note"]) == ("kept", "")
    curves = queries.attack_curves(store)
    assert curves["showcase"].all()
    assert set(curves["base_utility"]) == {0.99, 1.0}
    assert len(queries.points(store, ids, ["loss/total"])) == 60
    assert len(queries.examples(store, ids[1])) == 3


def test_shipped_and_own_runs_stand_side_by_side(shipped: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "made", shipped)  # the very home that they were recorded in
    store.sync(force=True)
    assert queries.runs(store)["showcase"].tolist() == [True] * 3 + [False] * 3
    assert len(queries.attack_curves(store)) == 12
    store.rebuild()
    assert len(queries.runs(store)) == 6
    store.sync(force=True)
    assert len(queries.runs(store)) == 6


def test_a_new_version_replaces_the_old_one(shipped: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "home", shipped)
    store.sync(force=True)
    made = Store(tmp_path / "made", tmp_path / "none")
    only = queries.runs(made)["run_id"].iloc[-1]
    record_showcase.export(made, [only], shipped)
    store.sync(force=True)
    assert queries.runs(store)["run_id"].tolist() == [f"showcase-{only}"]
    assert store.frame("SELECT count(*) AS n FROM points")["n"][0] == 40


@pytest.mark.slow
def test_a_folder_within_is_a_part_of_it(shipped: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "home", shipped)
    store.sync(force=True)
    made = Store(tmp_path / "other", tmp_path / "none")
    run = record(made.home, spec(corpus="worlds/other"))
    made.sync(force=True)
    record_showcase.export(made, [run.run_id], shipped / "other")
    store.sync(force=True)
    assert len(queries.runs(store)) == 4
    assert queries.runs(store)["subject"].value_counts().to_dict() == {"fable": 3, "worlds/other": 1}
    (shipped / "other" / "showcase.json").unlink()
    store.sync(force=True)
    assert queries.runs(store)["subject"].unique().tolist() == ["fable"]


def test_the_environment_names_another_showcase_or_none(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(bundled.SETTING, str(shipped))
    another = Store(tmp_path / "another")
    another.sync(force=True)
    assert len(queries.runs(another)) == 3
    monkeypatch.setenv(bundled.SETTING, "none")
    empty = Store(tmp_path / "empty")
    empty.sync(force=True)
    assert queries.runs(empty).empty
    monkeypatch.setenv(bundled.SETTING, str(tmp_path))
    with pytest.raises(UserError, match="neither none nor a folder with a showcase"):
        Store(tmp_path / "home")
    monkeypatch.delenv(bundled.SETTING)
    assert showcase.version(bundled.showcase()).count(" ") == len(showcase.parts(bundled.showcase())) - 1


def test_the_same_runs_give_the_same_version(shipped: Path, tmp_path: Path) -> None:
    made = Store(tmp_path / "made", tmp_path / "none")
    ids = queries.runs(made)["run_id"].tolist()
    again = record_showcase.export(made, ids, tmp_path / "again")
    assert again["version"] == showcase.version(shipped)


def test_what_cannot_be_shipped_is_a_sentence(shipped: Path, tmp_path: Path) -> None:
    made = Store(tmp_path / "made", tmp_path / "none")
    running = record(made.home, spec(), status="running")
    made.sync(force=True)
    with pytest.raises(UserError, match="running"):
        record_showcase.export(made, [running.run_id], tmp_path / "x")
    with pytest.raises(UserError, match="no run"):
        record_showcase.export(made, ["nope"], tmp_path / "x")


def test_a_spoiled_showcase_is_a_sentence(shipped: Path, tmp_path: Path) -> None:
    (shipped / "points.parquet").write_bytes(b"nothing")
    store = Store(tmp_path / "home", shipped)
    with pytest.raises(UserError, match=r"points\.parquet"):
        store.sync(force=True)
    (shipped / "showcase.json").write_text("[]")
    with pytest.raises(UserError, match=r"showcase\.json"):
        store.sync(force=True)
