"""Runs on a tiny world through `execute`, also stopped and resumed, for tests of a provider's defenses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from immunelab import corpus
from immunelab.experiment import Run, execute
from immunelab.runs.journal import RunFolder
from immunelab.runs.spec import RunSpec
from immunelab.training import checkpoints


def specified(world: Path, kind: str, method: Any, model: str = "fable", **fields: Any) -> RunSpec:
    parent = model.removeprefix("run:") if model.startswith("run:") else ""
    knobs = method.settings() if method else {}
    return RunSpec(
        kind=kind,
        method=method.name if method else "",
        knobs=knobs,
        corpus=str(world),
        device="cpu",
        model=model,
        parent=parent,
        **fields,
    )


def run(home: Path, world: Path, kind: str, method: Any, model: str = "fable", **fields: Any) -> RunFolder:
    folder = RunFolder.create(home, specified(world, kind, method, model, **fields))
    assert execute(folder) == "done"
    return folder


def stopped_and_resumed(home: Path, spec: RunSpec, at: int) -> RunFolder:
    """The run of a spec, stopped after a step and resumed."""
    folder = RunFolder.create(home, spec)
    trace = Run.trace

    def stop(self: Run, step: int, scalars: dict[str, float]) -> None:
        trace(self, step, scalars)
        if step == at:
            folder.request_stop()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Run, "trace", stop)
        assert execute(folder) == "stopped"
    folder.clear_stop()
    assert execute(folder, attempt=2, resume=True) == "done"
    return folder


def saved(folder: RunFolder) -> checkpoints.Saved:
    found = checkpoints.latest(folder.checkpoints)
    assert found
    return found


def weights(folder: RunFolder) -> dict[str, Tensor]:
    return load_file(saved(folder).path / "model.safetensors")


def released(world: Path) -> dict[str, Tensor]:
    """The weights of the world's own model."""
    return load_file(Path(corpus.load(str(world)).model) / "model.safetensors")


def lines(folder: RunFolder, kind: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder.path / "journal.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["kind"] == kind]


def points(folder: RunFolder) -> list[tuple[int, dict[str, float]]]:
    """Every traced scalar but the times, in order."""
    found = [(r["step"], {k: v for k, v in r["values"].items() if k[:5] != "time/"}) for r in lines(folder, "points")]
    return [(step, values) for step, values in found if values]


def scores(folder: RunFolder) -> list[tuple[int, str, str, float]]:
    return [(r["step"], r["metric"], r["split"], r["score"]) for r in lines(folder, "score")]
