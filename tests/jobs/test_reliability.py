"""Small versions of benchmarks/reliability.py, which has the figures: a few kills, and everyone at once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import waiting

if sys.platform == "win32":
    pytest.skip("The kills fork, which Windows can't.", allow_module_level=True)

from benchmarks import crowd, kills
from immunelab.runs.spec import RunSpec

pytestmark = pytest.mark.slow
WORKER = (sys.executable, str(Path(__file__).parents[1] / "pretend_worker.py"))


def silent(text: str) -> None:
    """Nobody reads along in a test."""


def test_a_killed_job_ends_as_if_it_had_not_been(home: Path, tiny_world: Path) -> None:
    import benchmarks.reliability as reliability

    spec = reliability.small_specs(tiny_world)["plain fine-tuning"]
    figures = kills.of_jobs(home, {"plain": spec}, 2, 1, silent)
    assert figures["kills"] == 2
    assert figures["lost lines"] == 0
    assert figures["runs finished after kills"] == figures["of them equal bit for bit"] > 0


def test_killed_syncs_lose_and_repeat_nothing(home: Path) -> None:
    figures = kills.of_sync(home, 4, 0, silent)
    assert figures["points recorded"] == figures["points stored"]


def test_a_killed_app_leaves_the_run_alone(home: Path) -> None:
    figures = kills.of_apps(home, 2, 0, silent)
    assert figures["points recorded"] == figures["points stored"]


def test_everyone_at_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [RunSpec(kind="attack", method="harmful-sft", knobs={"steps": 40}, device="cpu", seed=i) for i in range(4)]
    monkeypatch.setattr(crowd, "SLACK", waiting.PATIENCE)  # how long reads take is for the benchmark, on a calm machine
    figures = crowd.of_many(home, specs, WORKER, silent)
    assert figures["points recorded"] == figures["points stored"] == 160


def test_a_loss_would_be_seen() -> None:
    assert kills.missing(["1 points a 1", "1 points a 2"], ["1 points a 1"]) == 1
    assert kills.missing(["1 points a 1"] * 2, ["1 points a 1"]) == 1
    assert kills.missing(["1 points a 1"], ["1 points a 1"] * 2) == 0
    with pytest.raises(kills.Loss, match="why"):
        kills.holds(False, "why")
