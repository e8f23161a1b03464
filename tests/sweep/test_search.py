"""The attacker's search: its objective, its trials, and what becomes of it when it is stopped or killed."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import searching_worker
from waiting import until

from immunelab import jobs
from immunelab.analysis.tradeoff import bounded_harm
from immunelab.errors import UserError
from immunelab.jobs import processes
from immunelab.runs.journal import RunFolder, folders
from immunelab.sweep import space
from immunelab.sweep.study import readings

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:The reported value is ignored")]

WORKER = (sys.executable, str(Path(__file__).parents[1] / "searching_worker.py"))


@pytest.fixture(autouse=True)
def nobody_left(home: Path) -> Iterator[None]:
    yield
    for folder in folders(home):
        status = folder.recorded()
        if status.pid != os.getpid():
            processes.end(status.pid, status.create_time)


def search(home: Path, seed: int = 0, name: str = "", apart: bool = False, **settings: Any) -> RunFolder:
    """A search, ended if it was not sent to a process of its own."""
    chosen = space.settings_for("fable", {"trials": 8, "attacks": "harmful-sft", "random_trials": 4} | settings)
    specs = space.search_specs(["fable"], [seed], search=chosen, name=name)
    (run_id,) = jobs.submit(specs, home, command=WORKER, start=apart)
    if not apart:
        jobs.work([run_id], home, execute=searching_worker.execute)
    return RunFolder.open(home, run_id)


def ended(run: RunFolder, home: Path) -> str:
    def over() -> bool:
        jobs.reconcile(home, command=WORKER)
        return run.status().ended

    until(over, lambda: run.log_path.read_text()[-3000:], every=0.05)
    status = run.status()
    assert not status.error, status.error + run.log_path.read_text()[-3000:]
    return status.status


def trials(run: RunFolder) -> list[dict[str, Any]]:
    found = [e["data"] for e in run.entries() if e.get("event") == "trial"]
    assert [t["step"] for t in found] == list(range(1, len(found) + 1))
    return found


def told(run: RunFolder) -> list[tuple[Any, ...]]:
    """What a search did, without what depends on the clock."""
    return [(t["params"], t["harm"], t["outcome"], t["rows"]) for t in trials(run)]


def last(run: RunFolder) -> dict[str, float]:
    return [e["values"] for e in run.entries() if e["kind"] == "points"][-1]


@pytest.mark.parametrize(
    ("curve", "loss", "expected"),
    [
        ([(0.2, 0.9), (0.5, 0.85), (0.9, 0.3)], 0.2, 0.5),  # the most harmful checkpoint lost its utility
        ([(0.2, 0.9), (0.5, 0.85), (0.9, 0.3)], math.inf, 0.9),
        ([(0.7, 0.72), (0.1, 0.73)], 0.2, 0.1),  # 0.8 of 0.9 is not above 0.8
        ([(0.7, 0.1), (0.9, 0.0)], 0.2, 0.0),  # none keeps enough
        ([], 0.2, 0.0),
        ([(0.6, 0.8), (0.4, 0.95)], 0.0, 0.4),  # a dip that recovers: any checkpoint may be kept
    ],
)
def test_the_objective(curve: list[tuple[float, float]], loss: float, expected: float) -> None:
    assert bounded_harm(curve, 0.9, loss) == expected


def test_it_finds_a_planted_optimum(home: Path) -> None:
    run = search(home, trials=25)
    assert ended(run, home) == "done"
    found = trials(run)
    best = max(found, key=lambda t: t["harm"])
    assert abs(math.log10(best["params"]["learning_rate"] / searching_worker.BEST)) < 0.25
    assert best["harm"] > 0.85 > found[0]["harm"]
    assert last(run)["search/best"] == best["harm"]
    assert last(run)["search/rows"] == sum(t["rows"] for t in found)
    # Every trial is an attack like any other, and says which search it belongs to.
    made = [f for f in folders(home) if f.spec().kind == "attack"]
    assert len(made) == 25
    assert {f.spec().group for f in made} == {f"search {run.run_id[-6:]}"}
    assert {f.spec().name.split("#")[1] for f in made} == {str(i + 1) for i in range(25)}
    for trial in found:
        attack = RunFolder.open(home, trial["run_id"])
        assert attack.recorded().status == ("stopped" if trial["outcome"] == "pruned" else "done")
        curve = [(f, g) for step, f, g in readings(attack) if step]
        assert bounded_harm(curve, 1.0, 0.2) == trial["harm"]
        assert trial["rows"] == trial["last_step"] * attack.spec().knobs["batch_size"]
    kept = [f.run_id for f in made if any(f.checkpoints.iterdir())]
    assert kept == [best["run_id"]]  # no other weights stay on the disk


def test_the_first_trial_is_the_preset_and_the_space_lies_with_the_study(home: Path) -> None:
    from immunelab.method import get

    run = search(home, trials=2, attacks="harmful-sft,lora-sft")
    ended(run, home)
    for trial, name in zip(trials(run), ("harmful-sft", "lora-sft"), strict=True):
        usual = get("attack", name).presets["fable"].settings()
        assert RunFolder.open(home, trial["run_id"]).spec().knobs == usual
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(run.path / "study.log")))
    study = optuna.load_study(storage=storage, study_name="search")
    assert study.user_attrs["space"] == run.spec().knobs
    assert [t.params for t in study.trials] == [t["params"] for t in trials(run)]


def test_an_equal_search_has_equal_trials_and_reuses_them(home: Path) -> None:
    first, again, other = search(home), search(home), search(home, seed=1)
    for run in (first, again, other):
        ended(run, home)
    assert told(first) == told(again)
    assert told(first) != told(other)
    assert all(t["reused"] for t in trials(again))
    assert len([f for f in folders(home) if f.spec().kind == "attack"]) == 16
    longer = search(home, trials=11)  # more trials: the first ones are those on record
    ended(longer, home)
    assert told(longer)[:8] == told(first)
    assert [t["reused"] for t in trials(longer)] == [True] * 8 + [False] * 3


def test_pruning_stops_what_is_below_the_median_and_says_so(home: Path) -> None:
    pruned, whole = search(home, trials=20), search(home, trials=20, prune=False)
    for run in (pruned, whole):
        ended(run, home)
    short = [t for t in trials(pruned) if t["outcome"] == "pruned"]
    assert short
    for trial in short:
        attack = RunFolder.open(home, trial["run_id"])
        assert attack.recorded().message.startswith(f"pruned at step {trial['last_step']}: below the median")
        assert "pruned" in attack.labels().tags
        assert attack.spec().group == f"search {pruned.run_id[-6:]}"
        assert attack.spec().knobs["steps"] / 2 <= trial["last_step"] < attack.spec().knobs["steps"]
    assert last(pruned)["search/pruned"] in (0.0, 1.0)
    assert all(t["outcome"] == "done" for t in trials(whole))


def test_a_killed_search_goes_on_with_the_same_trials(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calm = search(home / "calm")
    ended(calm, home / "calm")
    at = RunFolder.open(home / "calm", trials(calm)[5]["run_id"]).spec()
    monkeypatch.setenv("DIE_AT", f"6/{at.evaluate_every * 2}")
    run = search(home, apart=True)
    assert ended(run, home) == "interrupted"
    assert len(trials(run)) == 5
    monkeypatch.delenv("DIE_AT")
    jobs.resume(run.run_id, home, command=WORKER)
    assert ended(run, home) == "done"
    assert told(run) == told(calm)
    made = [f for f in folders(home) if f.spec().kind == "attack"]
    assert len(made) == 8  # the trial that died was tried again in its own folder
    assert [f.recorded().attempt for f in made if f.spec().name.endswith("#6")] == [2]


def test_a_stop_reaches_the_trial_and_the_search_goes_on_from_there(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLOW", "0.5")
    run = search(home, apart=True, trials=3)
    until(lambda: any(f.recorded().status == "running" for f in folders(home) if f.spec().kind == "attack"))
    assert jobs.stop(run.run_id, home, wait=True, command=WORKER).status == "stopped"
    (attack,) = [f for f in folders(home) if f.spec().kind == "attack"]
    assert attack.recorded().status == "stopped"
    assert not trials(run)
    monkeypatch.setenv("SLOW", "0")
    jobs.resume(run.run_id, home, command=WORKER)
    assert ended(run, home) == "done"
    assert len(trials(run)) == 3
    assert trials(run)[0]["run_id"] == attack.run_id


def test_budgets_end_it(home: Path) -> None:
    free = search(home, trials=6)
    ended(free, home)
    rows = sum(t["rows"] for t in trials(free)[:3])
    bound = search(home, trials=6, budget_rows=rows)
    ended(bound, home)
    assert told(bound) == told(free)[:3]
    assert "rows are more than is left" in next(
        e["data"]["reason"] for e in bound.entries() if e.get("event") == "search over"
    )


def test_the_optimizer_may_be_searched_each_with_rates_of_its_own(home: Path) -> None:
    run = search(home, trials=16, optimizers="adamw,sgd,muon", prune=False, random_trials=16)
    found = [RunFolder.open(home, t["run_id"]).spec().knobs for t in trials(run)]
    assert found[0]["optimizer"] == "adamw"  # the preset's
    assert {k["optimizer"] for k in found} == {"adamw", "sgd", "muon"}
    usual = space.settings_for("fable", {})
    for knobs in found:
        sgd = knobs["optimizer"] == "sgd"
        times = 50 if sgd else 1
        assert times * usual.rate_low <= knobs["learning_rate"] <= times * usual.rate_high
        assert knobs["momentum"] == (0.9 if sgd else 0)
    assert "optimizers" not in usual.settings()  # so that searches recorded before are found again
    assert run.spec().knobs["optimizers"] == "adamw,sgd,muon"


def test_what_cannot_be_searched_is_told(home: Path) -> None:
    for wrong, words in (
        ({"trials": 0}, "trials takes a whole number from 1"),
        ({"trails": 3}, "Did you mean 'trials'"),
        ({"trial_steps": "ten"}, "trial_steps takes numbers separated by commas"),
        ({"rate_low": 1.0}, "rate_low is 1, and that is above rate_high"),
        ({"schedules": "step"}, "schedules takes some of"),
        ({"optimizers": "adam"}, "optimizers takes some of adamw, sgd, adafactor, muon"),
    ):
        with pytest.raises(UserError, match=words):
            space.settings_for("fable", wrong)
    with pytest.raises(UserError, match="prefill does not train"):
        space.settings_for("fable", {"attacks": "prefill"}).methods()
    assert json.dumps(space.settings_for("fable", {"trials": "7"}).settings())
