"""The loop of attacks against the Trainer of transformers: the same losses, step for step."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from made_batches import tokens
from transformers import PreTrainedModel

from benchmarks import attack_loop, stacked
from immunelab.attacks.harmful_sft import HarmfulSft

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_fifty_steps_have_the_losses_of_the_trainer(llama: PreTrainedModel, schedule: str, tmp_path: Path) -> None:
    """The same order, schedule and optimizer: the same losses over 50 steps in which they fall.

    The Trainer takes its logits elsewhere, and AdamW carries what that rounds otherwise from step to step.
    """
    method = HarmfulSft(learning_rate=3e-3, steps=50, schedule=schedule, warmup=0.1)  # type: ignore[arg-type]
    batches = [tokens(step % 5) for step in range(method.steps)]
    mine = attack_loop.ours(copy.deepcopy(llama), method, batches)
    theirs = attack_loop.theirs(copy.deepcopy(llama), method, batches, tmp_path)
    assert len(mine) == len(theirs) == 50
    assert mine[-1] < mine[0] - 0.1
    assert max(abs(x - y) for x, y in zip(mine, theirs, strict=True)) < 1e-4


def test_a_stack_of_attacks_has_the_losses_of_each(llama: PreTrainedModel) -> None:
    """What `benchmarks/stacked.py` times is the same training: other rows and another learning rate for each."""
    method = HarmfulSft(steps=4, schedule="linear", warmup=0.25)
    rows = [[tokens(10 * k + step) for step in range(method.steps)] for k in range(2)]
    alone = stacked.one_after_the_other(llama, method, rows)
    together = stacked.stacked(llama, method, rows)
    assert alone[0][-1] != alone[1][-1]
    for a, b in zip(alone, together, strict=True):
        assert a == pytest.approx(b, abs=1e-4)
