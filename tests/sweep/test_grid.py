"""Grid files: what they stand for, the dry run, continuing, and what is wrong with a wrong one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from immunelab import cli, jobs
from immunelab.errors import UserError
from immunelab.runs.journal import RunFolder, folders
from immunelab.sweep import grid

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "grid.toml"
SMALL = """
seeds = [0, 1]
[[defense]]
method = "seam"
steps = 8
beta = [0.01, 0.1]
[[attack]]
method = "harmful-sft"
rung = ["0.0003", "0.001"]
[[attack]]
method = "harmful-sft"
learning_rate = [1e-3, 5e-4]
"""


def test_the_example_is_every_model_by_every_attack_by_every_seed() -> None:
    specs = grid.expand(EXAMPLE.read_text(encoding="utf-8"), EXAMPLE.name)
    guards = [s for s in specs if s.kind == "immunize"]
    attacks = [s for s in specs if s.kind == "attack"]
    assert [s.seed for s in guards] == [0, 1, 2]
    assert len(attacks) == 3 * 2 * 6  # seeds × (undefended, SEAM) × attacks
    assert {s.knobs["learning_rate"] for s in attacks if s.method == "lora-sft"} == {1e-3, 1e-2}
    assert {s.knobs["rank"] for s in attacks if s.method == "lora-sft"} == {8}
    assert {s.knobs["harmful_share"] for s in attacks if s.method == "harmful-sft"} == {0.1, 0.5, 1.0}
    for spec in attacks:  # an attack on a defended model has the seed of the immunization it starts from
        if spec.model.startswith("run:#"):
            parent = specs[int(spec.model.removeprefix("run:#"))]
            assert (parent.kind, parent.seed) == ("immunize", spec.seed)


def test_equal_runs_stand_once() -> None:
    specs = grid.expand(SMALL, "small.toml")
    # The rung 0.001 and the learning rate 1e-3 on the corpus's preset are the same attack.
    assert len([s for s in specs if s.kind == "attack"]) == 2 * 3 * 3
    assert len({(s.hash, s.model) for s in specs}) == len(specs)
    alone = grid.expand("control = false\n" + SMALL, "small.toml")
    assert {s.model[:5] for s in alone if s.kind == "attack"} == {"run:#"}


def test_what_is_planned_is_what_is_submitted(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = home / "small.toml"
    file.write_text(SMALL, encoding="utf-8")
    specs = grid.expand(SMALL, "small.toml")
    half = jobs.submit(specs[:6], home, start=False)
    for run_id, status in zip(half, ("done", "done", "failed", "stopped", "done", "queued"), strict=True):
        folder = RunFolder.open(home, run_id)
        (folder.checkpoints / "step-000001").mkdir()
        folder.write_status(status=status, started_at=1.0, seconds=30.0)
    assert cli.main(["sweep", str(file), "--dry-run", "--json", "--home", str(home)]) == 0
    said = json.loads(capsys.readouterr().out)
    states = ["done", "done", "unfinished", "unfinished", "done", "unfinished"]
    assert [run["state"] for run in said["runs"]] == states + ["new"] * (len(specs) - 6)
    assert said["to_run"] == len(specs) - 3
    assert len(folders(home)) == 6  # a dry run writes nothing
    ids = jobs.submit(specs, home, start=False, reuse=True, go_on=True)
    assert ids[:6] == half
    assert [RunFolder.open(home, i).spec().hash for i in ids] == [run["spec_hash"] for run in said["runs"]]
    assert [run["run_id"] for run in said["runs"]][:6] == half
    again = [RunFolder.open(home, half[k]).recorded() for k in (2, 3)]
    assert [(s.status, s.attempt) for s in again] == [("queued", 2)] * 2
    assert len({RunFolder.open(home, i).spec().model for i in ids if RunFolder.open(home, i).spec().parent}) == 4


def test_the_dry_run_says_how_it_judges_the_time(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = home / "mine.toml"
    file.write_text('[[attack]]\nmethod = "reverse-dpo"\n', encoding="utf-8")
    command = ["sweep", str(file), "--dry-run", "--home", str(home)]
    assert cli.main(command) == 0
    assert "No estimate yet" in capsys.readouterr().out
    (run,) = jobs.submit(grid.expand(file.read_text(), file.name), home, start=False)
    RunFolder.open(home, run).write_status(status="done", seconds=30.0, device="cpu")
    file.write_text('seeds = [5, 6]\n[[attack]]\nmethod = "reverse-dpo"\n', encoding="utf-8")
    assert cli.main(command) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "2 of 2 runs to carry out. About 60 s" in text
    assert "median step time of 1 finished runs (cpu)" in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seeds = [0", "mine.toml is not TOML: Unclosed array"),
        ("", "mine.toml describes no runs"),
        ("seed = [0]", "key of a grid .in mine.toml. called 'seed'. Did you mean 'seeds'"),
        ("seeds = 3", "mine.toml: seeds is a list, and got 3"),
        ("seeds = [-1]", "number 1 is -1"),
        ("attack = [1]", "mine.toml, attack 1 needs a method"),
        ("[[attack]]\nmethod = 'harmful-stf'", "mine.toml, attack 1: .*Did you mean 'harmful-sft'"),
        ("[[defense]]\nmethod = 'seam'\nbeat = 1", "mine.toml, defense 1: .*knob of seam called 'beat'.*'beta'"),
        ("[[attack]]\nmethod = 'harmful-sft'\nsteps = []", "attack 1: steps is an empty list"),
        ("[[attack]]\nmethod = 'harmful-sft'\nsteps = [0]", "attack 1: steps takes a whole number from 1"),
        ("[[attack]]\nmethod = 'harmful-sft'\nrung = '7'", "attack 1: There is no rung"),
        ("[[attack]]\nmethod = 'harmful-sft'\nrung = 1", "attack 1: rung is one text or several"),
        (f"seeds = {list(range(20_000))}\n[[attack]]\nmethod = 'prefill'", "describes 20,000 runs"),
    ],
)
def test_errors_name_file_and_key(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        grid.expand(text, "mine.toml")
