"""The way of `make gpu` itself, tried on a CPU: pieces in processes of their own, time limits, going on, the table."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu

pytestmark = pytest.mark.slow
ABOUT = {
    "date": "2026-01-01",
    "small": True,
    "device": "cpu",
    "memory_gb": None,
    "cuda": None,
    "versions": {"torch": "2"},
}


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(gpu, "described", lambda device, small: dict(ABOUT))
    return ABOUT


@pytest.mark.parametrize("name", ["numbers", "seam", "defenses", "large", "fsdp"])
def test_a_piece_of_small_shapes_measures_what_it_says(name: str) -> None:
    found = gpu.PIECES[name][0]("cpu", True)
    if name == "numbers":
        assert found["fp32, sdpa"]["apart from fp32 eager"] < 1e-5
        assert found["bf16, eager"]["apart from fp32 eager"] < 1e-3
        assert "needs an NVIDIA GPU" in found["bf16, flash_attention_2"]["refused"]
    elif name == "seam":
        assert found["SEAM"]["in plain steps"] > 2
        assert found["six passes with clones"]["bytes a parameter"] > found["SEAM"]["bytes a parameter"]
    elif name == "defenses":
        assert found["seam"]["step"] > 2
        assert {"lisa", "sdd", "sdd, bf16-autocast"} <= set(found)
        assert not [each for each in found.values() if "error" in each]
    elif name == "large":
        plain = {
            optimizer: each["steps"]["plain fine-tuning"]["bytes a parameter"] for optimizer, each in found.items()
        }
        assert plain["adafactor"] < plain["adamw"] - 6  # two numbers of state less for each weight
    else:
        assert found["apart from whole weights"] < 1e-3
        assert found["parameters"] == 21696


def test_a_piece_runs_in_a_process_of_its_own_and_is_ended_in_time(known: Any, tmp_path: Path) -> None:
    began = time.monotonic()
    found = gpu.conduct("cpu", True, [], 10, tmp_path, {"fsdp": 60, "trainer": 6})
    assert found["pieces"]["fsdp"]["state"] == "done"
    assert found["pieces"]["trainer"]["state"] == "cut off after 6 s"
    assert time.monotonic() - began < 60
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "--piece trainer" not in listed


def test_it_goes_on_where_it_stopped(known: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    ends = {
        "numbers": {"state": "done", "seconds": 1, "found": {"a": {"b": 1}}},
        "seam": {"state": "failed", "error": "x"},
    }

    def piece(name: str, device: str, small: bool, seconds: float) -> Any:
        asked.append(name)
        return ends[name]

    monkeypatch.setattr(gpu, "piece", piece)
    limits = {"numbers": 60.0, "seam": 60.0}
    for only in ([], [], ["numbers"]):
        gpu.conduct("cpu", True, only, 10, tmp_path, limits)
    assert asked == ["numbers", "seam", "seam", "numbers"]
    assert gpu.conduct("cpu", True, ["seam"], 0, tmp_path, limits)["pieces"]["seam"]["state"] == "not begun: time is up"
    written = json.loads((tmp_path / "cpu-small.json").read_text())
    assert list(written["pieces"]) == ["numbers", "seam"]
    ABOUT_OTHER = {**ABOUT, "versions": {"torch": "3"}}
    monkeypatch.setattr(gpu, "described", lambda device, small: ABOUT_OTHER)
    gpu.conduct("cpu", True, [], 10, tmp_path, {"numbers": 60.0})
    assert asked[-1] == "numbers"  # of another version, so measured anew


def test_the_table_tells_goals_and_failures() -> None:
    pieces = {
        "seam": {"state": "done", "found": {"SEAM": {"milliseconds": 3.0, "in plain steps": 5.1}, "rows": [2, 16]}},
        "demo": {"state": "failed", "error": "a | b"},
        "large": {"state": "done", "found": {"adamw": {"does not fit": "CUDA out of memory"}}},
    }
    told = gpu.table({"about": ABOUT, "pieces": pieces})
    assert "- SEAM: 5.1 in plain steps (goal: at most 5.5)" in told
    assert "with adamw: does not fit: CUDA out of memory" in told
    assert "| seam | SEAM | milliseconds 3.0, in plain steps 5.1 |" in told
    assert "| seam |  | rows 2 to 16 |" in told
    assert "| demo | | failed. a / b |" in told


def test_without_a_gpu_it_says_so() -> None:
    done = subprocess.run([sys.executable, gpu.__file__], capture_output=True, text=True, check=False)
    import torch

    if not torch.cuda.is_available():
        assert done.returncode == 1
        assert "torch sees no NVIDIA GPU here" in done.stderr
