"""Which weights stay on the disk when a run is done: none, the last ones, or those of each evaluated step."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from immunelab import jobs
from immunelab.attacks.harmful_sft import HarmfulSft
from immunelab.attacks.lora_sft import LoraSft
from immunelab.errors import UserError
from immunelab.experiment import execute
from immunelab.jobs import demand
from immunelab.method import Trained
from immunelab.runs import numerics
from immunelab.runs.journal import RunFolder
from immunelab.runs.spec import RunSpec
from immunelab.training import checkpoints

SFT = HarmfulSft(learning_rate=1e-3, steps=6, batch_size=4, samples=12, schedule="constant", warmup=0.0)
LORA = LoraSft(
    learning_rate=1e-3, steps=6, batch_size=4, samples=12, targets="all-linear", schedule="constant", warmup=0.0
)


def specified(world: Path, method: Trained = SFT, keep: str = "last", every: int = 2, saved: int = 0) -> RunSpec:
    return RunSpec(
        kind="attack",
        method=method.name,
        knobs=method.settings(),
        device="cpu",
        evaluate_every=every,
        checkpoint_every=saved,
        corpus=str(world),
        keep=keep,
    )


def steps(folder: RunFolder) -> list[int]:
    found = [checkpoints.verified(path) for path in sorted(folder.checkpoints.glob("step-*"))]
    assert all(found)
    return [saved.step for saved in found if saved]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "model.safetensors")


def test_none_leaves_no_weights_and_changes_no_number(home: Path, tiny_world: Path) -> None:
    last, none = (RunFolder.create(home, specified(tiny_world, keep=keep, saved=3)) for keep in ("last", "none"))
    assert [execute(last), execute(none)] == ["done", "done"]
    assert steps(last) == [6]
    assert steps(none) == []
    assert last.spec().hash == none.spec().hash
    scores = [
        [line for line in (folder.path / "journal.jsonl").read_text().splitlines() if '"score"' in line]
        for folder in (last, none)
    ]
    assert len(scores[0]) == len(scores[1]) > 10


@pytest.mark.parametrize("method", [SFT, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("saved", [0, 1, 4])
def test_all_leaves_the_weights_of_each_evaluated_step(
    home: Path, tiny_world: Path, method: Trained, saved: int
) -> None:
    """Each is the model that a run of that many steps leaves, whatever was written to go on from in between."""
    folder = RunFolder.create(home, specified(tiny_world, method, "all", saved=saved))
    assert execute(folder) == "done"
    assert set(steps(folder)) == ({1, 2, 3, 4, 5, 6} if saved == 1 else {2, 4, 6})
    assert not list(folder.checkpoints.glob(f"*/{checkpoints.STATE}"))
    shorter = RunFolder.create(home, specified(tiny_world, dataclasses.replace(method, steps=4)))
    assert execute(shorter) == "done"
    reached, wanted = weights(folder.checkpoints / "step-000004"), weights(shorter.checkpoints / "step-000004")
    assert all(torch.equal(reached[name], tensor) for name, tensor in wanted.items())
    assert demand.kept(folder.spec()) == len(steps(folder))


def test_a_run_that_others_of_the_list_start_from_keeps_its_last_weights(home: Path, tiny_world: Path) -> None:
    first = specified(tiny_world, keep="none")
    ids = jobs.submit([first, dataclasses.replace(first, model="run:#0")], home, start=False)
    assert [RunFolder.open(home, run_id).spec().keep for run_id in ids] == ["last", "none"]


def test_from_a_run_that_kept_none_nothing_starts(home: Path, tiny_world: Path) -> None:
    folder = RunFolder.create(home, specified(tiny_world, keep="none"))
    execute(folder)
    folder.write_status(status="done")
    with pytest.raises(UserError, match="left no weights to start from: run it again, with keep last"):
        jobs.submit([dataclasses.replace(specified(tiny_world), model=f"run:{folder.run_id}")], home, start=False)


def test_what_runs_leave_is_known_before(home: Path, tiny_world: Path) -> None:
    size = (tiny_world / "model" / "model.safetensors").stat().st_size
    one = specified(tiny_world)
    specs = [one, dataclasses.replace(one, model="run:#0", keep="all"), dataclasses.replace(one, keep="none")]
    assert demand.left(specs, range(3), home) == (4 * size, 2)
    assert demand.left(specs, [2], home) == (0, 0)
    assert demand.told(specs[2:], home) == ""
    assert "of 2 runs" in demand.told(specs, home)


def test_an_unknown_choice_is_a_sentence(tiny_world: Path) -> None:
    with pytest.raises(UserError, match="Did you mean 'none'"):
        specified(tiny_world, keep="nine")


def test_arithmetic_that_this_processor_lacks_is_told_before(
    home: Path, tiny_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numerics, "computes_bf16", lambda: False)
    plain = specified(tiny_world, keep="none")
    rounded = dataclasses.replace(plain, knobs={**plain.knobs, "precision": "bf16-autocast"})
    assert demand.told([plain], home) == ""
    assert "no bf16 arithmetic" in demand.told([plain, rounded], home)
    assert demand.told([dataclasses.replace(rounded, device="cuda:0")], home) == ""


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("flags\t\t: fpu sse4_2 avx avx2\n", False),
        ("flags\t\t: avx2 avx512f avx512bw\n", True),
        ("Features\t: asimd bf16\n", True),
        (None, True),
    ],
)
def test_a_processor_without_bf16_is_known_by_its_flags(tmp_path: Path, text: str | None, known: bool) -> None:
    file = tmp_path / "cpuinfo"
    if text is not None:
        file.write_text(text)
    assert numerics.computes_bf16(file) == known
