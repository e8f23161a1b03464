"""Defenses that draw or remember: a run that was stopped and resumed ends with the very bits of one that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hosted import points, released, run, stopped_and_resumed, weights
from made_batches import batch
from transformers import PreTrainedModel

from immunelab.defenses.repnoise import RepNoise
from immunelab.defenses.t_vaccine import TVaccine
from immunelab.defenses.tar import Tar
from immunelab.defenses.vaccine import Vaccine
from immunelab.method import Defense, Memory
from immunelab.training import checkpoints
from immunelab.training import gradients as g

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


def test_what_an_older_checkpoint_has_in_buffers_is_remembered(llama: PreTrainedModel, tmp_path: Path) -> None:
    """Before there was a memory, T-Vaccine's was in buffers of the model, by the method's name."""
    model = TVaccine().prepare(llama, batch)
    weights = g.trainable(model)
    optimizer = torch.optim.SGD(weights, lr=0.1)
    then = {"step": torch.tensor(7), "shares": torch.tensor([0.25, 0.75]), "drawn": torch.tensor([0.0, 1.0])}
    state = {
        "rng": checkpoints.rng_state(),
        "optimizer": optimizer.state_dict(),
        "weights": {name: p.detach() + 1 for name, p in model.named_parameters() if p.requires_grad},
        "buffers": {**dict(model.named_buffers()), **{f"t_vaccine_{name}": tensor for name, tensor in then.items()}},
    }
    torch.save(state, tmp_path / checkpoints.STATE)
    before = [w.detach().clone() for w in weights]
    checkpoints.resume(checkpoints.Saved(tmp_path, 7, "", 0), model, optimizer, Memory.of(model), None)
    assert all(torch.equal(w, b + 1) for w, b in zip(weights, before, strict=True))
    assert set(Memory.of(model).tensors) == set(then)
    assert all(torch.equal(Memory.of(model).tensors[name], tensor) for name, tensor in then.items())
