"""What `RunSpec.weights_hash` leaves out leaves the weights alone, bit for bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hosted import run, weights

from immunelab.method import configure

OTHERWISE: dict[str, Any] = {
    "evaluate_every": 1,
    "layers_every": 1,
    "probe_every": 1,
    "checkpoint_every": 1,
    "evaluations": ("benign-accuracy",),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["seam", "security-vectors", "vaccine"])
def test_measuring_does_not_change_the_weights(method: str, home: Path, tiny_world: Path) -> None:
    settings = {"steps": 3, "batch_size": 2, "samples": 0, "learning_rate": 1e-3}
    guard = configure("defense", method, settings, "fable")
    plain = run(home, tiny_world, "immunize", guard, evaluate_every=0, layers_every=0, probe_every=0)
    measured = run(home, tiny_world, "immunize", guard, **OTHERWISE)
    specs = plain.spec(), measured.spec()
    assert specs[0].weights_hash == specs[1].weights_hash
    assert specs[0].hash != specs[1].hash
    assert dataclasses.replace(specs[0], seed=1).weights_hash != specs[0].weights_hash
    one, other = weights(plain), weights(measured)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
