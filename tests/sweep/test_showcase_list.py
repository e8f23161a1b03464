"""The list behind the showcase: every defense meets the same attacks, and no run is made twice."""

from __future__ import annotations

import argparse
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from immunelab.cli import demo
from immunelab.errors import UserError
from immunelab.method import names
from immunelab.runs.spec import RunSpec
from immunelab.sweep import BASELINES, LATER, SHOWN, joined, showcase_specs
from immunelab.sweep.plan import learning
from immunelab.sweep.scorecards import by_provider
from immunelab.sweep.showcase import TAUGHT

ROOT = Path(__file__).resolve().parents[2]


def test_every_defense_meets_the_attacks_of_the_undefended() -> None:
    specs = showcase_specs([0, 1])
    for seed in (0, 1):
        made = {
            i: s.method for i, s in enumerate(specs) if s.kind == "immunize" and s.seed == seed and s.corpus == "fable"
        }
        assert sorted(made.values()) == sorted((*SHOWN, *BASELINES))
        ladders = {
            model: {
                s.name
                for s in specs
                if s.model == model
                and s.seed == seed
                and s.kind == "attack"
                and s.method in ("harmful-sft", "lora-sft")
                and s.corpus == "fable"
            }
            for model in ("fable", *(f"run:#{i}" for i in made))
        }
        plain = {"3e-05", "0.0001", "0.0003", "0.0006", "0.001", "0.003", "harmful_share 0.5"}
        assert all(plain <= met for met in ladders.values())
        for i, method in made.items():
            if method in BASELINES:
                assert ladders[f"run:#{i}"] == plain
            else:
                assert "LoRA 0.01" in ladders[f"run:#{i}"]
        assert ladders["fable"] == ladders[f"run:#{next(i for i, m in made.items() if m == 'seam')}"]


def test_every_defense_is_shown_or_recorded_by_itself() -> None:
    assert sorted((*SHOWN, *BASELINES, *LATER)) == names("defense")
    alone = tomllib.loads((ROOT / "benchmarks" / "newer_baselines.toml").read_text(encoding="utf-8"))
    assert sorted(table["method"] for table in alone["defense"]) == sorted(LATER)


def test_a_recording_says_at_once_what_lox_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "_run", lambda *given: pytest.fail("the recording was started"))
    with pytest.raises(UserError, match=r"immunelab fable build --keep-base --to lab/fable"):
        demo.showcase_build(argparse.Namespace(home=None, to=None, seeds=1))


def test_the_searches_are_of_models_that_are_attacked_anyway() -> None:
    specs = showcase_specs([0, 1])
    searches = [s for s in specs if s.kind == "sweep"]
    assert {s.seed for s in searches} == {0}
    models = [s.model for s in searches]
    assert models[0] == "fable"
    parents = [specs[int(m.removeprefix("run:#"))] for m in models[1:]]
    assert [p.method for p in parents] == [*SHOWN, *BASELINES]
    for parent, search in zip(parents, searches[1:], strict=True):  # past a provider anybody would find the undefended
        provided = by_provider(parent.method)
        assert ("adaptive-sft" in search.knobs["attacks"]) is not provided
    assert all(p.corpus == "fable" for p in parents)
    assert sum(s.kind == "immunize" and s.method == "seam" and s.seed == 0 for s in specs) == 2  # one held out


def test_baselines_change_no_run_of_the_others() -> None:
    alone, everything = (
        [s for s in specs if s.kind != "sweep"]  # searches come last
        for specs in (showcase_specs([0], defenses=SHOWN), showcase_specs([0]))
    )
    assert everything[: len(alone)] == alone
    more = everything[len(alone) :]
    assert len(more) == 8 * len(BASELINES) + len(TAUGHT) * len(learning())
    taught = {everything[int(s.model.removeprefix("run:#"))].method for s in more if s.kind == "finetune"}
    assert taught == set(TAUGHT)


def test_no_run_stands_twice_and_models_come_before_what_starts_from_them() -> None:
    specs = showcase_specs([0])
    assert max(Counter(s.hash for s in specs).values()) == 1
    for i, spec in enumerate(specs):
        if spec.model.startswith("run:#"):
            parent = int(spec.model.removeprefix("run:#"))
            assert parent < i
            assert specs[parent].kind == "immunize"


def test_joining_moves_the_places_that_models_name() -> None:
    first = [RunSpec(kind="attack", method="harmful-sft"), RunSpec(kind="immunize", method="seam")]
    second = [first[1], RunSpec(kind="attack", method="harmful-sft", model="run:#0")]
    assert joined([first, second]) == [*first, RunSpec(kind="attack", method="harmful-sft", model="run:#1")]
