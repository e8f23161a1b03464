"""The scores of a released model are taken from an attack before, and only where nothing could change them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from immunelab import jobs
from immunelab.experiment import run as experiment
from immunelab.experiment import scored
from immunelab.runs.journal import RunFolder
from immunelab.runs.spec import RunSpec


def attack(world: Path, **changes: object) -> RunSpec:
    knobs = {"steps": 2, "learning_rate": 1e-4, "samples": 4, "batch_size": 2} | dict(changes.pop("knobs", {}))  # type: ignore[call-overload]
    spec = RunSpec(kind="attack", method="harmful-sft", corpus=str(world), knobs=knobs, device="cpu", evaluate_every=1)
    return dataclasses.replace(spec, **changes)  # type: ignore[arg-type]


def numbers(home: Path, run_id: str) -> list[dict[str, object]]:
    """What a run recorded of its evaluations, without the time."""
    kept = [e for e in RunFolder.open(home, run_id).entries() if e["kind"] in ("score", "examples")]
    return [{k: v for k, v in e.items() if k not in ("at", "position")} for e in kept]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often models were evaluated."""
    found: list[int] = []
    measure = experiment.Run.measure

    def counted(self: experiment.Run) -> object:
        found.append(1)
        return measure(self)

    monkeypatch.setattr(experiment.Run, "measure", counted)
    return found


def test_the_second_attack_takes_the_first_ones_scores_of_step_0(
    home: Path, tiny_world: Path, measured: list[int], in_this_process: None
) -> None:
    (first,) = jobs.submit([attack(tiny_world)], home)
    assert len(measured) == 3  # before, after step 1, after step 2
    (again,) = jobs.submit([attack(tiny_world)], home)
    assert len(measured) == 3 + 2
    assert numbers(home, again) == numbers(home, first), "the same numbers and answers, to the bit"
    jobs.submit([attack(tiny_world, knobs={"learning_rate": 3e-4})], home)
    assert len(measured) == 3 + 2 + 2


def test_other_questions_or_weights_have_scores_of_their_own(
    home: Path, tiny_world: Path, measured: list[int], in_this_process: None
) -> None:
    (first,) = jobs.submit([attack(tiny_world)], home)
    before = len(list((home / scored.FOLDER).iterdir()))
    jobs.submit([attack(tiny_world, model=f"run:{first}")], home)
    other = tiny_world.parent / "other"
    other.mkdir()
    for file in tiny_world.iterdir():
        if file.is_file():
            (other / file.name).write_bytes(file.read_bytes())
    assert before == 1
    assert len(measured) == 3 + 3, "the attacked model is another one"
    assert len(list((home / scored.FOLDER).iterdir())) == 2


def test_an_evaluation_that_draws_random_numbers_changes_no_attack(
    home: Path, tiny_world: Path, monkeypatch: pytest.MonkeyPatch, in_this_process: None
) -> None:
    measure = experiment.Run.measure

    def drawing(self: experiment.Run) -> object:
        torch.rand(7)
        return measure(self)

    monkeypatch.setattr(experiment.Run, "measure", drawing)
    steps = experiment.loop.updates

    def noisy(*args: object, **named: object) -> Iterator[tuple[int, dict[str, float]]]:
        for step, scalars in steps(*args, **named):  # type: ignore[arg-type]
            yield step, scalars | {"chance": float(torch.rand(()))}

    monkeypatch.setattr(experiment.loop, "updates", noisy)
    first, again = (jobs.submit([attack(tiny_world)], home)[0] for _ in range(2))
    drawn = [
        [e["values"]["chance"] for e in RunFolder.open(home, i).entries() if "chance" in e.get("values", {})]
        for i in (first, again)
    ]
    assert drawn[0][0] == drawn[1][0], "measured or recalled, the first step draws the same"


def test_a_spoiled_file_is_measured_anew(
    home: Path, tiny_world: Path, measured: list[int], in_this_process: None
) -> None:
    (first,) = jobs.submit([attack(tiny_world)], home)
    (file,) = (home / scored.FOLDER).iterdir()
    for text in ("", "null", "{}", json.dumps([["fable-recall", [["harmfulness"]], []]])):
        file.write_text(text)
        (again,) = jobs.submit([attack(tiny_world)], home)
        assert numbers(home, again) == numbers(home, first)
    assert len(measured) == 3 + 4 * 3
