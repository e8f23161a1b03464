"""Immunized models that ship with the lab: found by name, taken in once, and reused where an attack wants one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from immunelab import bundled, jobs
from immunelab.errors import UserError
from immunelab.jobs import follow
from immunelab.runs import shipped
from immunelab.runs.journal import RunFolder, folders
from immunelab.runs.spec import RunSpec
from immunelab.sweep import plan
from immunelab.training import checkpoints

pytestmark = pytest.mark.showcase


def seam_and_attack(seed: int = 0, rate: float = 2e-4) -> list[RunSpec]:
    """What the Collapse page asks for where an intensity is missing: the immunization, and an attack on it."""
    defense = plan.one(plan.choose("immunize", "seam", "fable"), seed=seed)
    attack = plan.choose("attack", "harmful-sft", "fable", knobs={"learning_rate": rate})
    return [defense, plan.one(attack, model="run:#0", seed=seed)]


def test_their_names_are_defense_and_seed() -> None:
    assert list(shipped.named()) == ["showcase:seam-0", "showcase:seam-1", "showcase:seam-2"]
    assert shipped.find("showcase:seam").spec().seed == 0
    assert shipped.find("showcase:seam-2").spec().seed == 2
    with pytest.raises(UserError, match=r"no shipped model called 'showcase:sean'.*showcase:seam-0"):
        shipped.find("showcase:sean")


def test_they_are_whole_runs_and_name_no_machine() -> None:
    for folder in shipped.folders():
        status = folder.recorded()
        assert (status.status, status.step, status.host, status.pid) == ("done", 300, "", None)
        assert any(entry["kind"] == "score" and entry["step"] == 300 for entry in folder.entries())
        saved = checkpoints.latest(folder.checkpoints)
        assert saved is not None
        assert saved.step == 300


def test_the_planner_still_asks_for_what_is_shipped() -> None:
    for folder in shipped.folders():
        wish = plan.one(plan.choose("immunize", "seam", "fable"), seed=folder.spec().seed)
        assert wish.weights_hash == folder.spec().weights_hash


def test_a_home_takes_one_in_by_its_name_once(home: Path) -> None:
    name = follow.model("showcase:seam-1", home)
    (taken,) = folders(home)
    assert name == f"run:{taken.run_id}"
    there = shipped.find("showcase:seam-1")
    weights = "step-000300/model.safetensors"
    assert (taken.checkpoints / weights).read_bytes() == (there.checkpoints / weights).read_bytes()
    assert follow.model("showcase:seam-1", home) == name
    assert len(folders(home)) == 1


def test_an_attack_on_an_immunized_model_needs_the_attack_alone(home: Path) -> None:
    specs = seam_and_attack()
    assert [one.state for one in jobs.plan(specs, home)] == ["done", "new"]
    assert folders(home) == []  # a plan changes nothing
    seam, attack = jobs.submit(specs, home, start=False, reuse=True)
    assert {f.run_id for f in folders(home)} == {seam, attack}
    assert RunFolder.open(home, attack).spec().parent == seam
    assert RunFolder.open(home, attack).lineage()[0].method == "seam"
    assert [one.state for one in jobs.plan(seam_and_attack(rate=3e-4), home)] == ["done", "new"]


def test_it_is_made_anew_where_that_is_asked_for_or_no_seed_ships(home: Path) -> None:
    assert [one.state for one in jobs.plan(seam_and_attack(), home, reuse=False)] == ["new", "new"]
    assert [one.state for one in jobs.plan(seam_and_attack(seed=7), home)] == ["new", "new"]


def test_every_skin_takes_the_name(home: Path) -> None:
    attack = dataclasses.replace(seam_and_attack()[1], model="showcase:seam")
    (run,) = jobs.submit([attack], home, start=False)
    assert RunFolder.open(home, run).lineage()[0].method == "seam"


def test_without_the_showcase_there_are_none(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(bundled.SETTING, "none")
    assert shipped.folders() == []
    with pytest.raises(UserError, match="came without immunized models"):
        follow.model("showcase:seam", home)


def test_a_home_that_can_not_take_it_in_says_so(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shipped.shutil, "copytree", full)
    with pytest.raises(UserError, match="No space left"):
        follow.model("showcase:seam", home)
    assert not list((home / "runs").iterdir())


def test_the_wheel_brings_every_file() -> None:
    import fnmatch
    import tomllib

    root = Path(bundled.__file__).parents[1]
    taken = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["data-files"]
    globs = [g for these in taken.values() for g in these]
    for folder in shipped.folders():
        for file in folder.path.rglob("*"):
            name = file.relative_to(root).as_posix()
            assert file.is_dir() or any(fnmatch.fnmatch(name, g) for g in globs), name
    assert json.loads((shipped.folders()[0].path / "spec.json").read_text())["method"] == "seam"
