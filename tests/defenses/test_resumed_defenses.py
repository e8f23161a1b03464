"""Defenses that draw or remember: a run that was stopped and resumed ends with the very bits of one that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hosted import points, released, run, stopped_and_resumed, weights

from immunelab.defenses.repnoise import RepNoise
from immunelab.defenses.t_vaccine import TVaccine
from immunelab.defenses.tar import Tar
from immunelab.defenses.vaccine import Vaccine
from immunelab.method import Defense

TINY: dict[str, Any] = {"learning_rate": 1e-3, "steps": 5, "batch_size": 4, "samples": 12}
METHODS = [
    RepNoise(**TINY, beta=1.0),
    Vaccine(**TINY, perturbation="random", rank=2),
    Tar(**TINY, inner_steps=4, every=2, inner_rates="1e-4,1e-3"),
    TVaccine(**TINY, layers=2, draw_every=2, rank_every=4),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_resumed_run_ends_with_the_same_bits(method: Defense, home: Path, tiny_world: Path) -> None:
    """Stopped after step 3: inside a block of draws and inside one of rankings."""
    whole = run(home, tiny_world, "immunize", method)
    parted = stopped_and_resumed(home, whole.spec(), 3)
    wanted, first = weights(whole), released(tiny_world)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in weights(parted).items())
    assert any(not torch.equal(tensor, first[name]) for name, tensor in wanted.items())
    assert points(parted) == points(whole)
