"""What tells two models of one defense apart: the store keeps it, old databases and shipped runs included."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pandas as pd
import pytest
from recorded import record, spec

from immunelab.analysis import collapse
from immunelab.analysis.variants import Variant, labels, present
from immunelab.runs.journal import RunFolder
from immunelab.store import Store, migrations, queries


def attacked(home: Path, *knobs: dict[str, float], method: str = "seam") -> list[RunFolder]:
    """An attack on the undefended model, and one on each model immunized with such knobs."""
    made = [record(home, spec("immunize", method=method, knobs=own)) for own in knobs]
    return [record(home, spec(parent=parent)) for parent in (None, *made)]


def test_two_settings_of_a_defense_are_two_variants(tmp_path: Path) -> None:
    plain, small, large = attacked(tmp_path, {"beta": 0.01}, {"beta": 0.02})
    store = Store(tmp_path, tmp_path / "none")
    store.sync(force=True)
    curves = collapse.comparable(queries.attack_curves(store))
    of = dict(zip(curves["run_id"], labels(curves), strict=True))
    assert of == {plain.run_id: "undefended", small.run_id: "seam (beta 0.01)", large.run_id: "seam (beta 0.02)"}
    assert present(curves) == [Variant("undefended"), Variant("seam", "beta 0.01"), Variant("seam", "beta 0.02")]
    assert set(curves["defense"]) == {"undefended", "seam"}
    stored = store.frame("SELECT run_id, defense, variant FROM variants").set_index("run_id")
    assert json.loads(stored.loc[large.run_id, "variant"])["beta"] == 0.02
    assert stored.loc[plain.run_id, "defense"] == "undefended"
    assert pd.isna(stored.loc[plain.run_id, "variant"])


def test_a_model_in_other_numbers_is_another_variant_than_one_of_a_spec_before_there_were_any(tmp_path: Path) -> None:
    old = spec("immunize", method="vaccine")
    before, after = (record(tmp_path, s) for s in (old, dataclasses.replace(old, dtype="bf16")))
    fields = json.loads(before.spec().to_json())
    del fields["dtype"], fields["attention"]
    (before.path / "spec.json").write_text(json.dumps(fields), encoding="utf-8")
    for parent in (before, after):
        record(tmp_path, spec(parent=parent))
    store = Store(tmp_path, tmp_path / "none")
    store.sync(force=True)
    found = present(collapse.comparable(queries.attack_curves(store)))
    assert [v.label for v in found] == ["vaccine (dtype bf16)", "vaccine (dtype fp32)"]


@pytest.mark.slow
def test_a_database_of_the_schema_before_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attacked(tmp_path, {"beta": 0.01}, {"beta": 0.02})
    store = Store(tmp_path, tmp_path / "none")
    everything = ("runs", "points", "layer_points", "scores", "examples", "checkpoints", "events")

    def content() -> dict[str, pd.DataFrame]:
        return {table: store.frame(f"SELECT * FROM {table} ORDER BY ALL") for table in everything}

    with monkeypatch.context() as patched:
        patched.setattr(migrations, "MIGRATIONS", [migrations.first])
        store.sync(force=True)
        before = content()
    store._home.checked = 0  # as another process opens it
    after = content()
    assert store.frame("SELECT max(number) AS number FROM schema_versions")["number"].tolist() == [2]
    for table in everything:
        pd.testing.assert_frame_equal(after[table], before[table])
    migrated = queries.attack_curves(store), queries.runs(store)
    store.rebuild()
    for frame, fresh in zip(migrated, (queries.attack_curves(store), queries.runs(store)), strict=True):
        pd.testing.assert_frame_equal(frame, fresh)


@pytest.mark.slow
@pytest.mark.showcase
def test_shipped_runs_keep_their_labels(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.sync(force=True)
    curves = queries.attack_curves(store)
    for subject in collapse.subjects(curves):
        alike = collapse.comparable(curves, subject)
        assert labels(alike).tolist() == alike["defense"].tolist()  # each was recorded with one setting a subject
    whole = collapse.told_apart(curves).drop_duplicates("run_id")
    counted = labels(whole).value_counts().to_dict()
    assert counted["undefended"] == 84
    assert {name: n for name, n in counted.items() if "(" in name} == {
        "seam (batch size 16, learning rate 0.0003, steps 300)": 69,
        "seam (batch size 2, learning rate 0.0001, steps 12)": 15,
        "security-vectors (settings 1 of 2)": 57,
        "security-vectors (settings 2 of 2)": 15,
    }
