"""The tuning of a defense: its objective, what its trials face, and what becomes of it when it is stopped or killed."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import until

sys.path.insert(0, str(Path(__file__).parent))

import immunelab
from immunelab import jobs
from immunelab.analysis import estimate
from immunelab.analysis import tuning as tables
from immunelab.analysis.tradeoff import bounded_harm
from immunelab.cli import assess, main
from immunelab.errors import UserError
from immunelab.jobs import processes
from immunelab.runs.journal import Journal, RunFolder, folders
from immunelab.store import Store, queries
from immunelab.sweep import tuner as tuner_file
from immunelab.sweep import tuning
from immunelab.sweep.study import readings

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:PartialFixedSampler")]

PANEL = "harmful-sft@0.001,harmful-sft@0.0003,lora-sft@0.003"
STRENGTH = {
    0.001: 0.9,
    0.0003: 0.6,
    0.003: 0.8,
}  # harm that an attack does at its learning rate to the undefended model
COST = 0.1  # utility that the defense costs for each unit of α: at 0.3 what is left is just enough


def pretend(folder: RunFolder, attempt: int, resume: bool, watch: Callable[[int], None] | None = None) -> str:
    """A defense whose α costs utility and takes harm away: the best α that is allowed is 0.3."""
    spec, home = folder.spec(), folder.path.parents[1]
    of = (
        spec.knobs if spec.kind == "immunize" else RunFolder.open(home, spec.parent).spec().knobs if spec.parent else {}
    )
    alpha = float(of.get("alpha", 0.0))
    cost = COST * (2 if spec.corpus != "fable" else 1)
    with Journal(folder, attempt) as journal:
        journal.event("started", from_step=0)
        steps = int(spec.knobs["steps"])
        for step in range(0, steps + 1, spec.evaluate_every):
            part = step / steps
            if spec.kind == "immunize":
                harm, utility = 0.0, 1.0 - cost * alpha * part
                if alpha > 0.45 and part > 0.5:
                    raise FloatingPointError("the loss is not finite")
            else:
                harm = STRENGTH[spec.knobs["learning_rate"]] * max(0.0, 1 - 2 * alpha) * part + 0.001 * spec.seed
                utility = (1.0 - cost * alpha) * (1 - 0.5 * (part if spec.knobs["learning_rate"] == 0.001 else 0))
            for metric, value in (("harmfulness", harm), ("utility", utility)):
                told = {"evaluation": f"of-{metric}", "metric": metric, "split": "all", "n": 9, "stderr": 0.0}
                journal.score(spec.kind, step, score=value, **told)
            if watch:
                watch(step)
            if os.environ.get("DIE") == f"{spec.kind} {alpha:.3g} {step}":
                os._exit(9)
            if folder.stop_requested():
                return "stopped"
        (folder.checkpoints / f"step-{steps:06d}").mkdir(exist_ok=True)
    return "done"


WORKER = (
    sys.executable,
    "-c",
    "import sys; sys.path[:0] = [%r, %r]; import test_tuning; sys.exit(test_tuning.worker())",
)
WORKER = (*WORKER[:2], WORKER[2] % (str(Path(__file__).parents[1]), str(Path(__file__).parent)))


def worker() -> int:
    at = sys.argv.index("--home")
    return jobs.work(sys.argv[1:at], sys.argv[at + 1], execute=pretend)


@pytest.fixture(autouse=True)
def nobody_left(home: Path) -> Iterator[None]:
    yield
    for folder in folders(home):
        status = folder.recorded()
        if status.pid != os.getpid():
            processes.end(status.pid, status.create_time)


def tune(home: Path, seed: int = 0, apart: bool = False, **values: Any) -> RunFolder:
    """A tuning of α, ended if it was not sent to a process of its own."""
    usual = {"trials": 20, "random_trials": 5, "vary": "alpha=0.02..0.5", "panel": PANEL, "confirm_seeds": 2}
    specs = tuning.tune_specs(["adversarial-loss"], seed=seed, values=usual | values)
    (run_id,) = jobs.submit(specs, home, command=WORKER, start=apart)
    if not apart:
        jobs.work([run_id], home, execute=pretend)
    return RunFolder.open(home, run_id)


def ended(run: RunFolder, home: Path) -> str:
    def over() -> bool:
        jobs.reconcile(home, command=WORKER)
        return run.status().ended

    until(over, lambda: run.log_path.read_text()[-3000:], every=0.05)
    return run.status().status


def events(run: RunFolder, name: str = "setting") -> list[dict[str, Any]]:
    return [e["data"] for e in run.entries() if e.get("event") == name]


def told(run: RunFolder) -> list[tuple[Any, ...]]:
    return [(e["settings"], e["value"], e["outcome"]) for e in events(run)]


def test_it_finds_the_planted_setting_and_confirms_it(home: Path) -> None:
    run = tune(home)
    assert run.recorded().status == "done", run.recorded().error
    found = events(run)
    assert len(found) == 20
    assert found[0]["settings"] == {"alpha": 0.1}  # the preset's
    outcomes = {e["outcome"] for e in found}
    assert {"tried", "pruned", "costly"} <= outcomes
    for e in found:
        alpha = e["settings"]["alpha"]
        if e["outcome"] != "failed":
            assert e["kept"] == pytest.approx(1 - COST * alpha)
        if e["outcome"] == "costly":
            assert not e["harms"]
            assert e["value"] == pytest.approx(1 + 0.97 - e["kept"])
        elif e["outcome"] != "failed":
            # At 1e-3 the last checkpoint that keeps more than 0.8 of the utility is at 0.4 of the steps: two of six.
            expected = {"harmful-sft@0.001": 0.9 / 3, "harmful-sft@0.0003": 0.6, "lora-sft@0.003": 0.8}
            for name, harm in e["harms"].items():
                assert harm == pytest.approx(expected[name] * max(0.0, 1 - 2 * alpha))
            assert e["harm"] == max(e["harms"].values())
            assert (len(e["harms"]) == 3) == (e["outcome"] == "tried")
    (won,) = events(run, "tuned")
    assert 0.22 < won["settings"]["alpha"] <= 0.3
    assert won["enough"]
    assert not won["preset"]
    assert not won["accepted"]  # at α = 0.3 a third and more still comes out
    sure = events(run, "confirmed")
    assert sorted({e["seed"] for e in sure}) == [1, 2]
    assert {e["setting"] for e in sure} >= {1, won["step"]}
    mine = [e for e in sure if e["setting"] == won["step"]]
    assert won["harm"] == pytest.approx(sum(e["harm"] for e in mine) / 2)
    assert all(len(e["harms"]) == 3 for e in sure)  # nothing is pruned there
    control = events(run, "control")
    assert [c["harm"] for c in control] == pytest.approx([0.8, 0.801, 0.802])
    # Only the winner's confirmed models stay on the disk.
    kept = {f.run_id for f in folders(home) if any(f.checkpoints.glob("*"))}
    assert kept == {e["run_id"] for e in mine}


def test_a_trial_is_worth_the_most_bounded_harm_of_its_runs(home: Path) -> None:
    run = tune(home, trials=3, prune=False, confirm=0)
    for e in events(run):
        immunized = RunFolder.open(home, e["run_id"])
        attacks = [f for f in folders(home) if f.spec().parent == immunized.run_id]
        harms = [bounded_harm([(h, u) for s, h, u in readings(f) if s], readings(f)[0][2], 0.2) for f in attacks]
        assert e["harm"] == max(harms)
        assert [f.spec().evaluate_every for f in attacks] == [10, 10, 10]
        assert {f.spec().group for f in (immunized, *attacks)} == {f"tune {run.run_id[-6:]}"}


def test_the_worse_half_ends_after_an_attack(home: Path) -> None:
    run = tune(home, trials=8, random_trials=8, vary="alpha=0.02..0.28", confirm=0)
    firsts: list[float] = []
    for e in events(run):
        first = next(iter(e["harms"].values()))
        firsts.append(first)
        better = sorted(firsts)[: max(1, len(firsts) // 2)]
        if first not in better:
            assert len(e["harms"]) == 1
            assert e["outcome"] == "pruned"


def test_an_immunization_without_hope_ends_early(home: Path) -> None:
    run = tune(home, trials=6, utility=0.999, slack=0.01, confirm=0)
    costly = [e for e in events(run) if e["outcome"] == "costly" and e["settings"]["alpha"] > 0.15]
    assert costly
    for e in costly:
        immunized = RunFolder.open(home, e["run_id"])
        last = readings(immunized)[-1]
        assert immunized.recorded().status == ("stopped" if last[2] < 0.989 else "done")
        assert last[0] < 300
        assert e["kept"] == last[2]


def test_one_that_fails_is_a_trial_like_any_other(home: Path) -> None:
    run = tune(home, trials=6, vary="alpha=0.46..0.5", confirm=0, slack=1.0)
    assert {e["outcome"] for e in events(run)[1:]} == {"failed"}
    assert {e["value"] for e in events(run)[1:]} == {2.0}
    assert "not finite" in events(run)[1]["error"]
    assert run.recorded().status == "done"


def test_another_world_is_confirmed_too(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("immunelab.jobs.preflight._corpora", lambda spec: [spec.corpus])
    run = tune(home, trials=4, confirm=1, world=str(tmp_path / "other"))
    assert run.recorded().status == "done", run.recorded().error
    away = [e for e in events(run, "confirmed") if e["corpus"] != "fable"]
    assert [e["seed"] for e in away] == [1, 1]
    table = tables.settings_table(queries.tunings(synced(home), [run.run_id]))
    sure = table[table["n"] > 0]
    assert sure["n"].tolist() == [2, 2]
    assert (sure["world_kept"] < sure["confirmed_kept"]).all()


def test_an_equal_tuning_repeats_nothing(home: Path) -> None:
    first = tune(home, trials=6, confirm=1)
    before = len(folders(home))
    again = tune(home, trials=6, confirm=1)
    assert told(first) == told(again)
    assert events(first, "tuned") == events(again, "tuned")
    # Weights that were dropped are not made again where every attack on them is on record.
    assert len(folders(home)) == before + 1
    assert told(tune(home, seed=1, trials=6, confirm=0)) != told(first)


def test_a_killed_tuning_goes_on_with_the_same_trials(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calm = tune(home / "calm", trials=6, confirm=1)
    at = events(calm)[3]["settings"]["alpha"]
    monkeypatch.setenv("DIE", f"attack {at:.3g} 20" if events(calm)[3]["harms"] else f"immunize {at:.3g} 75")
    run = tune(home, apart=True, trials=6, confirm=1)
    assert ended(run, home) == "interrupted"
    assert len(events(run)) == 3
    monkeypatch.delenv("DIE")
    jobs.resume(run.run_id, home, command=WORKER)
    assert ended(run, home) == "done"
    assert told(run) == told(calm)
    assert len(folders(home)) == len(folders(home / "calm"))


def test_what_a_tuning_found_in_a_table_and_in_words(home: Path) -> None:
    run = tune(home, trials=8)
    events_ = queries.tunings(synced(home))
    table = tables.settings_table(events_)
    assert table["setting"].tolist() == list(range(1, 9))
    assert table["harm"].isna().tolist() == [not e["harms"] for e in events(run)]
    assert tables.control(events_) == pytest.approx(0.8)
    (won,) = events(run, "tuned")
    row = table[table["winner"]].iloc[0]
    assert (row["setting"], row["confirmed_harm"]) == (won["step"], pytest.approx(won["harm"]))
    assert row["low"] < row["confirmed_harm"] < row["high"]
    words = tables.sentence(events_)
    assert words.startswith("8 of 8 settings of adversarial-loss tried")
    assert f"Setting {won['step']} wins: with 2 other seeds" in words
    assert words.endswith("Not accepted: more than 10.0% given away.")
    lenient = tune(home, trials=4, confirm=1, harm=0.9)
    assert events(lenient, "tuned")[0]["accepted"]
    said = tables.sentence(queries.tunings(synced(home), [lenient.run_id]))
    assert said.endswith("Accepted: at most 90.0% given away at 97.0% of the utility, as was asked for beforehand.")
    assert tables.sentence(events_.iloc[:0]) == ""
    assert math.isnan(tables.control(events_.iloc[:0]))


def test_a_budget_ends_the_tuning_and_leaves_time_to_confirm(home: Path) -> None:
    """The preset is tried and confirmed in any case; nothing else where there is no time for it."""
    run = tune(home, trials=20, budget_seconds=1e-3)
    assert [e["step"] for e in run.entries() if e.get("event") == "setting"] == [1]
    assert {(e["setting"], e["seed"]) for e in events(run, "confirmed")} == {(1, 1), (1, 2)}
    assert events(run, "tuned")[0]["preset"]
    words = tables.sentence(queries.tunings(synced(home), [run.run_id]))
    assert words.startswith("1 setting of adversarial-loss tried in a budget of")
    assert len(events(tune(home, trials=4, confirm=1, budget_seconds=1e6))) == 4


def test_what_a_budget_affords() -> None:
    """With 2 seeds to confirm in, 10 s for a setting (20 at most) and 5 s for the undefended model: the preset's
    confirmation takes 2·(20 + 5), that of one more setting 2·20, the next trial 10."""
    tuner: Any = object.__new__(tuner_file._Tuner)
    tuner.took, tuner.spent = [5.0, 5.0, 20.0], 100.0
    for budget, confirm, affords in ((200.0, 1, True), (199.0, 1, False), (199.0, 0, True), (0.0, 3, True)):
        tuner.tune = tuning.settings_for({"budget_seconds": budget, "confirm": confirm, "confirm_seeds": 2})
        assert tuner.affords(5.0) == affords, (budget, confirm)
    tuner.took = []
    tuner.tune = tuning.settings_for({"budget_seconds": 1.0})
    assert tuner.affords(5.0)


def test_an_assessment_ends_in_a_card_and_a_page(
    home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the tuning on record already, and too little time for anything else, it is written at once."""
    monkeypatch.setattr(estimate, "estimate", lambda wanted, runs: estimate.Estimate(1e6, 0, "a test"))
    monkeypatch.setattr(assess, "MOST", 6)
    run = tune(home, trials=6, budget_seconds=2700, confirm=1)
    (won,) = events(run, "tuned")
    options = ["--set", "random_trials=5", "--confirm", "1", "--confirm-seeds", "2", "--panel", PANEL]
    command = ["assess", "adversarial-loss", "--hours", "1", "--vary", "alpha=0.02..0.5", *options]
    assert main([*command, "--to", str(tmp_path / "card")]) == 0
    said = capsys.readouterr()
    assert f"{run.run_id}: already done, not run again" in said.err
    assert "The card lacks" in said.err
    assert f"immunelab scorecard {won['run_id']} --run-missing" in said.err
    assert "of the utility, not accepted by the limits of the run" in " ".join(said.out.split())
    assert {path.name for path in (tmp_path / "card").iterdir()} == {"card.md", "card.html", "page.html"}
    assert "resistance" in (tmp_path / "card" / "card.md").read_text()
    assert main(["assess", "seam", "--hours", "0"]) == 2
    assert "--hours is more than 0" in capsys.readouterr().err


def test_the_command_tells_what_came_of_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vary = "alpha=0.02..0.5,ascent=loss|layerwise"
    run = tune(home, trials=6, confirm=1, vary=vary)
    (won,) = events(run, "tuned")
    given = ["--trials", "6", "--random-trials", "5", "--confirm", "1", "--confirm-seeds", "2"]
    command = ["tune", "adversarial-loss", *given, "--vary", vary, "--panel", PANEL]
    assert main(command) == 0  # an equal one is on record
    said = capsys.readouterr()
    assert f"{run.run_id}: already done, not run again" in said.err
    words = " ".join(said.out.split())
    assert f"The panel ({', '.join(PANEL.split(','))}) gets 80.0% out of the undefended model." in words
    wanted = won["settings"]
    assert f"immunelab immunize adversarial-loss --alpha {wanted['alpha']} --ascent {wanted['ascent']}" in words
    assert f"--model run:{won['run_id']}" in words
    assert main([*command, "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["winner"]["settings"] == wanted
    assert told["undefended"] == pytest.approx(0.8)
    assert [r["setting"] for r in told["settings"]] == [1, 2, 3, 4, 5, 6]
    assert main(["tune", "seem"]) == 2
    lab = immunelab.open(home)
    settings = {"trials": 6, "random_trials": 5, "confirm": 1, "confirm_seeds": 2, "vary": vary, "panel": PANEL}
    assert lab.tune("adversarial-loss", **settings) == [run.run_id]
    assert lab.tunings(run.run_id)["settings"].tolist() == [e["settings"] for e in events(run)]


def synced(home: Path) -> Store:
    store = Store(home)
    store.sync(force=True)
    return store


def test_what_is_varied_and_what_it_faces() -> None:
    usual = {r.name: (r.low, r.high) for r in tuning.settings_for({"defense": "seam"}).space("fable")}
    assert usual["learning_rate"] == (0.0001, 0.0009)
    assert usual["beta"] == (0.2, 5.0)
    assert "steps" not in usual
    given = tuning.settings_for({"defense": "seam", "vary": "beta=0.1..10,ascent=layerwise|loss-free"})
    with pytest.raises(UserError, match="ascent takes one of"):
        given.space("fable")
    given = tuning.settings_for({"defense": "seam", "vary": "beta=2..10,steps=100..300,ascent=layerwise|final-logit"})
    beta, steps, ascent = given.space("fable")
    assert (beta.low, beta.high, steps.whole, ascent.choices) == (2, 10, True, ("layerwise", "final-logit"))
    assert given.given("fable") == {"beta": 2, "steps": 300, "ascent": "final-logit"}
    names = [c.name for c in tuning.settings_for({"defense": "lisa"}).attacks("fable")]
    assert names
    assert not any("break-and-repair" in name for name in names)  # no provider carries that out


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"defense": "seem"}, "Did you mean 'seam'"),
        ({"vary": "betta=1..2"}, "Did you mean 'beta'"),
        ({"vary": "beta"}, "vary takes SETTING=LOW"),
        ({"vary": "beta=3..1"}, "no range of numbers"),
        ({"vary": "ascent=1..2"}, "ascent takes one of"),
        ({"panel": "harmful-sft@11"}, "rung or preset of harmful-sft"),
        ({"panel": "harmfull-sft"}, "Did you mean 'harmful-sft'"),
        ({"panel": ","}, "names no attack"),
        ({"trials": 0}, "trials takes a whole number from 1"),
        ({"trails": 5}, "Did you mean 'trials'"),
        ({"world": "worlds/nowhere"}, "nowhere"),
        ({"defense": "ptst"}, "no number to vary"),
    ],
)
def test_what_cannot_be_tuned_is_told_before_anything_is_queued(home: Path, values: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        jobs.submit(tuning.tune_specs([values.pop("defense", "seam")], values=values), home, start=False)
    assert not folders(home)
