"""Defenses that draw or remember: a run that was stopped and resumed ends with the very bits of one that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from immunelab import experiment
from immunelab.defenses.repnoise import RepNoise
from immunelab.defenses.t_vaccine import TVaccine
from immunelab.defenses.tar import Tar
from immunelab.defenses.vaccine import Vaccine
from immunelab.journal import RunFolder
from immunelab.method import Defense
from immunelab.spec import RunSpec
from immunelab.training import checkpoints

TINY: dict[str, Any] = {"learning_rate": 1e-3, "steps": 5, "batch_size": 4, "samples": 12}
METHODS = [
    RepNoise(**TINY, beta=1.0),
    Vaccine(**TINY, perturbation="random", rank=2),
    Tar(**TINY, inner_steps=4, every=2, inner_rates="1e-4,1e-3"),
    TVaccine(**TINY, layers=2, draw_every=2, rank_every=4),
]


def ended(folder: RunFolder) -> dict[str, Tensor]:
    saved = checkpoints.latest(folder.checkpoints)
    assert saved
    return load_file(saved.path / "model.safetensors")


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_resumed_run_ends_with_the_same_bits(
    method: Defense, home: Path, tiny_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = RunSpec(kind="immunize", method=method.name, knobs=method.settings(), corpus=str(tiny_world), device="cpu")
    whole, parted = (RunFolder.create(home, spec) for _ in range(2))
    assert experiment.execute(whole) == "done"
    trace = experiment.Run.trace

    def stop_at_three(self: experiment.Run, step: int, scalars: dict[str, float]) -> None:
        trace(self, step, scalars)
        if step == 3:  # inside a block of draws and inside one of rankings
            parted.request_stop()

    with monkeypatch.context() as patched:
        patched.setattr(experiment.Run, "trace", stop_at_three)
        assert experiment.execute(parted) == "stopped"
    parted.clear_stop()
    assert experiment.execute(parted, attempt=2, resume=True) == "done"
    wanted = ended(whole)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in ended(parted).items())
    assert any(
        not torch.equal(tensor, ended_at) for tensor, ended_at in zip(wanted.values(), start(tiny_world), strict=True)
    )


def start(world: Path) -> list[Tensor]:
    return list(load_file(world / "model" / "model.safetensors").values())
