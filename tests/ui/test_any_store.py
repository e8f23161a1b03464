"""Every page on whatever a store may hold: it draws, or says what is missing, and never fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import apptest
import made_up
import pytest
from apptest import ok, page, text
from recorded import record, score, spec

from immunelab.recording.elsewhere import Recording
from immunelab.runs.journal import Journal, RunFolder
from immunelab.runs.spec import RunSpec

PAGES = sorted(path.stem for path in (Path(__file__).resolve().parents[2] / "pages").glob("*.py"))


def training_free(home: Path) -> None:
    """A defense, and attacks that have no steps, rates or optimizer."""
    guard = record(home, spec("immunize"))
    for parent in (guard, None):
        more = {"model": f"run:{parent.run_id}", "parent": parent.run_id} if parent else {}
        folder = RunFolder.create(
            home, RunSpec(kind="attack", method="prefill", knobs={"words": 8}, device="cpu", **more)
        )
        with Journal(folder) as journal:
            for step in (0, 1):
                score(journal, "attack", step, "harmfulness", 0.8 * step)
                score(journal, "attack", step, "utility", 1.0)
        folder.write_status(status="done", seconds=1.0)


def failed(home: Path) -> None:
    """Runs that never recorded anything."""
    for kind in ("immunize", "attack", "finetune", "evaluate", "sweep"):
        method = {"evaluate": "fable-recall", "sweep": "search", "finetune": "benign-sft"}.get(kind)
        folder = RunFolder.create(home, spec(kind, **({"method": method} if method else {})))
        folder.write_status(status="failed", error="the disk is full", ended_at=1.8e9)


def searched(home: Path) -> None:
    """A search without a trial."""
    knobs = {"trials": 3, "max_utility_loss": 0.2}
    folder = RunFolder.create(home, RunSpec(kind="sweep", method="search", knobs=knobs, device="cpu"))
    folder.write_status(status="done", seconds=1.0)


def not_numbers(home: Path) -> None:
    """Scores that could not be computed."""
    for parent in (record(home, spec("immunize")), None):
        folder = RunFolder.create(home, spec(parent=parent))
        with Journal(folder) as journal:
            for step in (0, 10, 20):
                score(journal, "attack", step, "harmfulness", float("nan"))
                score(journal, "attack", step, "utility", float("nan"))
                journal.points("attack", step, {"loss/total": float("nan")})
        folder.write_status(status="done", seconds=1.0)


def one_seed(home: Path) -> None:
    made_up.lab(home, seeds=1, rates=(3e-4,))


def one_of_each(home: Path) -> None:
    """One run of each kind, none of which belongs to another."""
    for kind, method in {"immunize": "seam", "attack": "lora-sft", "finetune": "benign-sft"}.items():
        record(home, spec(kind, method=method))
    record(home, RunSpec(kind="evaluate", method="fable-recall", device="cpu"), steps=1)


def elsewhere(home: Path) -> None:
    """A defense and attacks that nobody registered, recorded by somebody's own code."""
    guard = RunSpec(kind="immunize", method="my-defense", recorded_by="own code")
    with Recording(guard, home) as made:
        made.points(1, {"loss/total": 1.0, "cosine/harmful-benign": -0.5})
        made.score(0, "utility", 0.9, n=50)
        made.score(0, "harmfulness", 0.0, n=50)
    for model in ("fable", f"run:{made.run_id}"):
        with Recording(
            RunSpec(kind="attack", method="my-sft", model=model, knobs={"steps": 2}, recorded_by="own code"), home
        ) as run:
            for step in (0, 1, 2):
                run.points(step, {"loss/total": 1.0 - 0.1 * step, "own": 2.0})
                run.score(step, "harmfulness", 0.4 * step, n=50)
                run.score(step, "utility", 0.9, n=50)
                run.examples(step, "own code", [{"id": "a", "prompt": "How?", "answer": "So.", "score": 1.0}])


def nothing(home: Path) -> None:
    """Not even a folder."""


STORES = [nothing, training_free, failed, searched, not_numbers, one_seed, one_of_each, elsewhere]


@pytest.mark.slow
@pytest.mark.parametrize("made", STORES)
def test_every_page_on_this_store(made: Callable[[Path], None], home: Path) -> None:
    made(home)
    failures = {}
    for name in PAGES:
        try:
            test = ok(page(name))
        except AssertionError as error:
            failures[name] = str(error)[:400]
            continue
        if test.error:
            failures[name] = test.error[0].value[:300]
    assert not failures


@pytest.mark.slow
def test_the_tour_of_attacks_without_a_rate(home: Path) -> None:
    training_free(home)
    assert "which does not train" in text(page("overview"))
    for step in ("1 The threat", "3 Attack again", "4 Drag the intensity"):
        ok(page("tour", step=step))


@pytest.mark.slow
def test_runs_recorded_elsewhere_are_marked(home: Path) -> None:
    elsewhere(home)
    assert "2 attacks, by own code" in text(page("collapse"))
    run_id = next(p.name for p in sorted((home / "runs").iterdir()) if "my-sft" in p.name)
    test = page("runs", run=run_id)
    assert "recorded elsewhere, by own code" in text(test)
    assert {b.label for b in test.button}.isdisjoint({"Resume", "Duplicate to Launch"})
    assert "recorded elsewhere" in ok(page("launch", **{"from": run_id})).warning[0].value
    # Nobody can run them here at another intensity.
    test = page("collapse")
    assert not any(slider["free"] for drawn in apptest.shown(test) for slider in drawn.get("sliders") or ())
    assert "Another intensity" not in str(test)
