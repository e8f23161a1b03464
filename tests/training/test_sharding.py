"""SEAM and SFT on sharded weights: two processes make the update of one, and trace the same scalars."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from nearness import relative
from sharded_steps import CASES, STEPS, tiny, trained
from transformers import PreTrainedModel

from immunelab.errors import UserError
from immunelab.training import sharding

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[1] / "sharded_steps.py"
Found = dict[str, Any]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, Found]:
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("This build of torch has no gloo, so two processes cannot talk on a CPU.")
    file = tmp_path_factory.mktemp("sharded") / "two.pt"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, str(SCRIPT), str(file)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    one = {f"{case} {tied}": trained(case, tied) for case in CASES for tied in (False, True)}
    return one, torch.load(file, weights_only=True)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_two_processes_make_the_update_of_one(both: tuple[Found, Found], case: str, tied: bool) -> None:
    one, two = (found[f"{case} {tied}"] for found in both)
    assert set(one["weights"]) == set(two["weights"])
    start = tiny(tied).state_dict()
    mine, other = ([found["weights"][name] - start[name] for name in one["weights"]] for found in (one, two))
    assert relative(other, mine) < 1e-3  # SEAM's finite difference makes rounding 1/ε times larger


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_and_trace_the_same_scalars(both: tuple[Found, Found], case: str, tied: bool) -> None:
    one, two = (found[f"{case} {tied}"]["traced"] for found in both)
    assert len(one) == len(two) == STEPS
    for mine, other in zip(one, two, strict=True):
        assert set(mine) == set(other)
        assert case == "sft" or "cosine/harmful-benign/layer/1" in mine
        for name in set(mine) - {"time/step_seconds"}:
            # Differences of gradients make rounding 1/ε times larger, and a cosine near zero shows it.
            assert other[name] == pytest.approx(mine[name], rel=1e-4, abs=1e-5), name


def test_perturbations_of_shards_restore_bit_for_bit(both: tuple[Found, Found]) -> None:
    laws = both[1]["laws"]
    assert laws
    assert [name for name, holds in laws.items() if not holds] == []


def test_without_a_process_group_there_is_a_sentence(llama: PreTrainedModel) -> None:
    with pytest.raises(UserError, match="torchrun"):
        sharding.shard(llama)
