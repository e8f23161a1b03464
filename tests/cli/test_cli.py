"""The command line: what it prints, what it refuses, and that a run can be started, stopped, read and deleted."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import made_up
import pytest
from waiting import PATIENCE, until

from immunelab import jobs, sweep
from immunelab.cli import demo, main, show
from immunelab.cli.options import split_knobs
from immunelab.cli.parser import tree
from immunelab.cli.start import START
from immunelab.errors import UserError
from immunelab.jobs.follow import model, remaining, run_id
from immunelab.method import get, names
from immunelab.method.knobs import knobs
from immunelab.reports import demo as report
from immunelab.runs.journal import RunFolder, Status, folders
from immunelab.runs.spec import KIND_OF_METHOD, RunSpec

pytestmark = pytest.mark.slow

Captured = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("demoo", "There is no command called 'demoo'. Did you mean 'demo'"),
        ("immunize seem", "There is no defense called 'seem'. Did you mean 'seam'?"),
        (
            "immunize seam --learnin-rate 3",
            "There is no knob of seam called 'learnin_rate'. Did you mean 'learning_rate'",
        ),
        ("immunize seam --learning-rate -3", "learning_rate takes a number from 0 to 10, and got '-3'"),
        ("immunize seam --steps 2.5", "steps takes a whole number from 1 to"),
        ("immunize seam --steps nan", "steps takes a whole number"),
        ("immunize seam --beta", "--beta needs a value. For example: --beta 3e-4"),
        ("immunize seam --set beta", "--set takes SETTING=VALUE"),
        ("immunize seam --preset papr", "There is no preset of seam called 'papr'. Did you mean 'paper'?"),
        ("immunize seam --seed -1", "seed is a whole number from 0"),
        ("immunize --corpus nowhere --detach", "There is no corpus 'nowhere'"),
        ("attack --rung 7e7", "There is no rung of harmful-sft for the corpus fable called '7e7'"),
        ("attack --rung 0.001 --preset fable", "A rung and a preset both name settings"),
        ("attack --model run:last", "No finished run"),
        ("attack --model run:nope", "There is no run"),
        ("demo --seeds 0", "--seeds at least 1"),
        ("demo --seeds x", "invalid int value"),
        ("runs --jsn", "There is no option of immunelab runs called '--jsn'. Did you mean '--json'?"),
        ("runs some", "immunelab runs does not take 'some' there"),
        ("pairs biuld", "There is no command of immunelab pairs called 'biuld'. Did you mean 'build'?"),
        ("immunize seam --detahc", "Did you mean '--detach'?"),
        ("run /no/such/file", "can't be read"),
        ("trace last", "There is no last run"),
        ("trace ../../etc", "There is no run"),
        ("methods seem", "There is no method called 'seem'. Did you mean 'seam'?"),
        ("sql select", "The query does not work"),
        ("fable build --seed 3", "name a folder"),
        ("store", "required: COMMAND"),
    ],
)
def test_a_mistake_is_one_sentence(line: str, sentence: str, home: Path, capsys: Captured) -> None:
    assert main(line.split()) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("immunelab: ")
    assert sentence in told.err
    assert "Traceback" not in told.err


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[1]",
        '{"kind": "immunise"}',
        '{"kind": "attack", "method": "harmful"}',
        '{"kind": "attack", "knob": 1}',
        '{"seed": 0}',
    ],
)
def test_a_spec_that_is_none_is_refused(text: str, home: Path, tmp_path: Path, capsys: Captured) -> None:
    file = tmp_path / "spec.json"
    file.write_text(text)
    assert main(["run", str(file)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "shown"),
    [("", "Begin with: immunelab demo"), ("--help", "a first session:"), ("sweep --help", "--executor")],
)
def test_help_needs_neither_torch_nor_the_database(line: str, shown: str) -> None:
    code = (
        "import sys; from immunelab.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit as end: assert end.code == 0\n"
        "print({'torch', 'duckdb', 'numpy', 'pandas', 'plotly', 'pyarrow', 'streamlit'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, *line.split()], capture_output=True, text=True, check=True)
    assert shown in done.stdout
    assert done.stdout.endswith("set()\n")


def test_listing_runs_loads_nothing_large(home: Path, capsys: Captured) -> None:
    code = (
        "import sys; from immunelab.cli import main; main(['runs'])\n"
        "print({'torch', 'pandas', 'plotly', 'streamlit'} & set(sys.modules))"
    )
    ids = made_up.lab(home, seeds=1, rates=(1e-3,))
    for run in folders(home):  # what changed just now would be read again
        os.utime(home / "runs" / run.run_id, (1e9, 1e9))
    assert main(["runs"]) == 0  # takes the runs into the database
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["run", *ids[::-1], "set()"]


@pytest.mark.parametrize("kind", START)
def test_no_knob_hides_behind_an_option(kind: str) -> None:
    options = set(tree()[1].choices[kind]._option_string_actions)
    of: Any = {**KIND_OF_METHOD, "evaluate": "evaluation", "search": "attack"}[kind]
    for name in names(of):
        assert not options & {"--" + knob.name.replace("_", "-") for knob in knobs(get(of, name))}


def test_the_help_of_a_method_names_every_knob(home: Path, capsys: Captured) -> None:
    assert main(["immunize", "seam", "--help"]) == 0
    told = capsys.readouterr().out
    for knob in knobs(get("defense", "seam")):
        assert "--" + knob.name.replace("_", "-") in told


def test_knobs_are_taken_out_of_a_line_in_any_order() -> None:
    line = ["--learning-rate", "3e-4", "seam", "--seed", "1", "--set", "beta=-0.1", "--alpha=2", "--json"]
    rest, found = split_knobs(line, {"--seed", "--set", "--json"})
    assert rest == ["seam", "--seed", "1", "--json"]
    assert found == {"learning_rate": "3e-4", "beta": "-0.1", "alpha": "2"}


def test_methods_as_json(home: Path, capsys: Captured) -> None:
    assert main(["methods", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told) == {"defenses", "attacks", "evaluations"}
    for group in told.values():
        for method in group:
            assert {"name", "title", "paper", "stage", "streams", "knobs"} <= set(method)
    assert [m["name"] for m in told["defenses"]] == names("defense")
    seam = next(m for m in told["defenses"] if m["name"] == "seam")
    assert {k["name"]: k["symbol"] for k in seam["knobs"]}["beta"] == "β"


def test_doctor_as_json(home: Path, capsys: Captured) -> None:
    assert main(["doctor", "--json"]) in (0, 1)
    told = {f["what"]: f for f in json.loads(capsys.readouterr().out)}
    assert {"python", "torch", "home", "disk", "fable", "device"} <= set(told)
    assert told["python"]["state"] == told["home"]["state"] == "ok"
    assert all(f["fix"] for f in told.values() if f["state"] == "missing")


def test_json_is_strict(capsys: Captured) -> None:
    show.emit({"a": float("nan"), "b": [float("inf"), 1.5]})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5]}


def test_runs_are_listed_newest_first(home: Path, capsys: Captured) -> None:
    ids = made_up.lab(home, seeds=1, rates=(1e-3,))
    assert main(["runs", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [r["run_id"] for r in told] == ids[::-1]
    assert told[0]["spec"]["kind"] == "attack"
    assert main(["runs", "--limit", "1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_run_is_found_by_its_end_and_by_last(home: Path) -> None:
    ids = made_up.lab(home, seeds=1, rates=(1e-3,))
    assert run_id("last", home) == ids[-1]
    assert run_id(ids[0][-6:], home) == ids[0]
    with pytest.raises(UserError, match="fits 3 runs"):
        run_id("2", home)
    with pytest.raises(UserError, match="There is no run"):
        run_id("", home)
    assert model("some/hub-id", home) == "some/hub-id"


def test_trace_as_json(home: Path, capsys: Captured) -> None:
    ids = made_up.lab(home, seeds=1, rates=(1e-3,))
    assert main(["trace", ids[0], "--name", "loss/total", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["run_id"] == ids[0]
    assert {p["name"] for p in told["points"]} == {"loss/total"}
    assert {"harmfulness", "utility"} <= {s["metric"] for s in told["scores"]}
    assert main(["trace", ids[0], "--name", "los/total"]) == 2
    assert "loss/total" in capsys.readouterr().err


@pytest.mark.parametrize(
    "query",
    [
        "drop table runs",
        "delete from runs",
        "copy runs to 'x.csv'",
        "select * from read_text('/etc/hostname')",
        "attach 'other.duckdb'",
        "install httpfs",
    ],
)
def test_sql_reads_this_database_and_nothing_else(query: str, home: Path, capsys: Captured) -> None:
    made_up.lab(home, seeds=1, rates=(1e-3,))
    assert main(["sql", query]) == 2
    assert main(["sql", "select count(*) as n from runs where not showcase", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"n": 3}]
    assert not Path("x.csv").exists()


def test_the_demo_s_numbers_and_report(home: Path, tmp_path: Path, capsys: Captured) -> None:
    measured = report.measure(home, made_up.lab(home, seeds=2, rates=(1e-4, 3e-3)))
    numbers = demo._numbers(measured, 12.34)
    assert set(numbers) == {"base", "defended", "attacks", "seconds", "seeds"}
    assert set(numbers["base"]) == {"harmfulness", "utility"}
    assert set(numbers["defended"]) == {"harmfulness", "utility", "cosine"}
    assert len(numbers["attacks"]) == 8
    keys = {"defended", "learning_rate", "steps", "seed", "harmfulness", "utility", "outcome"}
    assert all(set(a) == keys for a in numbers["attacks"])
    assert [s["seed"] for s in numbers["seeds"]] == [0, 1]
    mean = sum(s["defended"]["cosine"] for s in numbers["seeds"]) / 2
    assert numbers["defended"]["cosine"] == pytest.approx(mean)
    assert -1 <= mean < -0.7

    demo._print(measured, numbers)
    assert "2 broken" in capsys.readouterr().out
    page = tmp_path / "new" / "report.html"
    report.write(measured, page, command="immunelab demo --json '<script>'")
    text = page.read_text()
    assert "&lt;script&gt;" in text
    assert "Plotly.newPlot" in text
    assert "src=" not in text.replace("src=\\", "").split("</style>")[1][:2000]  # nothing is fetched
    assert "Seeds 0, 1" in text


def test_the_demo_from_end_to_end(
    home: Path, tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def small(seeds: list[int], corpus: str) -> list[RunSpec]:
        assert (seeds, corpus) == ([4], "fable")
        budget = {"steps": 1, "batch_size": 2}
        attack = RunSpec(kind="attack", method="harmful-sft", corpus=str(tiny_world), knobs=budget, seed=4)
        immunize = RunSpec(kind="immunize", method="seam", corpus=str(tiny_world), knobs=budget, seed=4)
        return [attack, immunize, dataclasses.replace(attack, model="run:#1")]

    monkeypatch.setattr(sweep, "demo_specs", small)
    numbers, page = tmp_path / "demo.json", tmp_path / "report.html"
    line = ["demo", "--seed", "4", "--json", str(numbers), "--report", str(page)]
    assert main(line) == 0
    told = json.loads(numbers.read_text())
    assert [(a["defended"], a["seed"], a["steps"]) for a in told["attacks"]] == [(False, 4, 1), (True, 4, 1)]
    assert "Plotly" in page.read_text()
    assert "After each attack" in capsys.readouterr().out
    assert main([*line, "--reuse"]) == 0
    assert "3 of 3 runs are already done" in capsys.readouterr().err
    assert len(list((home / "runs").iterdir())) == 3


def test_one_seed_has_no_list_of_seeds(home: Path) -> None:
    numbers = demo._numbers(report.measure(home, made_up.lab(home, seeds=1)), 1.0)
    assert set(numbers) == {"base", "defended", "attacks", "seconds"}


def test_time_left_is_told_only_when_it_is_known() -> None:
    def status(name: str, **rest: Any) -> Status:
        return Status(status=name, **rest)

    kinds = {"a": "immunize", "b": "attack", "c": "attack"}
    running = status("running", eta_seconds=5.0)
    assert remaining({"a": running, "b": status("queued"), "c": status("queued")}, kinds) is None
    done = status("done", seconds=4.0)
    assert remaining({"a": done, "b": done, "c": status("queued")}, kinds) == 4.0
    assert remaining({"a": running, "b": done, "c": status("queued")}, kinds) == 9.0
    # Two under way share what is left, and none of them ends before it says.
    two = {"a": running, "b": status("running", eta_seconds=1.0), "c": done, "d": status("queued")}
    assert remaining(two, kinds | {"d": "attack"}) == 5.0


def test_a_run_from_start_to_deletion(home: Path, tiny_world: Path, capsys: Captured) -> None:
    small = [
        "--corpus",
        str(tiny_world),
        "--preset",
        "fable",
        "--steps",
        "2",
        "--batch-size",
        "2",
        "--samples",
        "0",
        "--json",
    ]
    assert main(["immunize", "seam", *small]) == 0
    (immunized,) = json.loads(capsys.readouterr().out)
    assert immunized["status"] == "done"
    assert {s["step"] for s in immunized["scores"]} == {0, 1, 2}  # a quarter of the steps is at least one

    assert main(["attack", "--model", "run:last", *small, "--learning-rate", "1e-3"]) == 0
    (attacked,) = json.loads(capsys.readouterr().out)
    spec = RunFolder.open(home, attacked["run_id"]).spec()
    assert spec.parent == immunized["run_id"]
    assert spec.knobs["learning_rate"] == 1e-3
    assert spec.knobs["steps"] == 2

    again = tiny_world.parent / "spec.json"
    again.write_text(spec.to_json())
    assert main(["run", str(again), "--json"]) == 0
    (repeated,) = json.loads(capsys.readouterr().out)
    assert [s["score"] for s in repeated["scores"]] == [s["score"] for s in attacked["scores"]]  # bit for bit

    assert main(["delete", attacked["run_id"], "--yes"]) == 0
    assert "freed" in capsys.readouterr().out
    assert main(["trace", attacked["run_id"]]) == 2


def test_ctrl_c_stops_with_a_checkpoint(home: Path, tiny_world: Path) -> None:
    line = [
        "attack",
        "--corpus",
        str(tiny_world),
        "--steps",
        "100000",
        "--batch-size",
        "2",
        "--samples",
        "0",
        "--evaluate-every",
        "0",
    ]
    command = subprocess.Popen(
        [sys.executable, "-m", "immunelab", *line],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a test run in the background ignores it
    )
    until(lambda: command.poll() is not None or any((run.status().step or 0) > 0 for run in folders(home)))
    assert command.poll() is None, command.communicate()[1]
    command.send_signal(signal.SIGINT)
    told = command.communicate(timeout=PATIENCE)[1]
    assert command.returncode == 130
    assert "Traceback" not in told
    (run,) = folders(home)
    assert run.status().status == "stopped"
    assert any(run.checkpoints.glob("step-*"))
    assert main(["delete", "last", "--yes"]) == 0


def test_a_run_that_fails_says_why(
    home: Path, tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # or it asks the network, and waits for it
    file = tmp_path / "spec.json"
    file.write_text(
        RunSpec(kind="attack", method="harmful-sft", model="no/such-model", corpus=str(tiny_world)).to_json()
    )
    assert main(["run", str(file)]) == 1
    assert "no/such-model" in capsys.readouterr().err


def test_a_hazard_domain_is_held_out_by_an_option(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    asked: list[RunSpec] = []

    def submit(specs: list[RunSpec], place: Path) -> list[str]:
        jobs.check(specs, place)
        asked.extend(specs)
        return ["queued"]

    monkeypatch.setattr("immunelab.jobs.submit", submit)
    assert main(["immunize", "seam", "--hold-out", "gnawer", "--detach"]) == 0
    assert main(["attack", "--only", "gnawer", "--rung", "0.001", "--detach"]) == 0
    assert [s.corpus for s in asked] == ["fable?hold-out=gnawer", "fable?only=gnawer"]
    assert asked[0].knobs == get("defense", "seam").presets["fable"].settings()  # a part of Fable is still Fable
    for wrong, message in (
        (["--hold-out", "gnawr"], "Did you mean 'gnawer'"),
        (["--hold-out", "bane", "--only", "gnawer"], "not allowed with argument"),
        (["--corpus", "fable?only=bane", "--hold-out", "gnawer"], "already names its hazard domains"),
    ):
        assert main(["immunize", "seam", *wrong]) == 2
        assert message in capsys.readouterr().err
    assert len(asked) == 2
