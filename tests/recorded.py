"""Runs with known numbers, for the tests of journal, store and jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from immunelab.runs.journal import Journal, RunFolder
from immunelab.runs.spec import RunSpec


def spec(kind: str = "attack", parent: RunFolder | None = None, **fields: Any) -> RunSpec:
    knobs = {"learning_rate": 3e-4, "steps": 60, "batch_size": 8, "samples": 120}
    knobs |= {"harmful_share": 1.0} if kind == "attack" else {}
    knobs |= fields.pop("knobs", {})
    if parent:
        fields |= {"model": f"run:{parent.run_id}", "parent": parent.run_id, "parent_hash": parent.spec().hash}
    fields.setdefault("method", "seam" if kind == "immunize" else "harmful-sft")
    return RunSpec(kind=kind, knobs=knobs, device="cpu", **fields)


def score(journal: Journal, phase: str, step: int, metric: str, value: float, **fields: Any) -> None:
    where = {"evaluation": f"of-{metric}", "split": "all", "n": 50, "stderr": 0.01} | fields
    journal.score(phase, step, metric=metric, score=value, **where)


def record(
    home: Path, run: RunSpec, steps: int = 20, utility: tuple[float, float] = (1.0, 0.5), status: str = "done"
) -> RunFolder:
    """A run whose `loss` at step s is s, with harmfulness 0 → 1 and utility from one value to another."""
    folder = RunFolder.create(home, run)
    with Journal(folder) as journal:
        journal.event("started", from_step=0)
        for step in range(steps + 1):
            if step:
                journal.points(run.kind, step, {"loss/total": float(step), "norm/update": 1.0})
            if step % 10 == 0:
                share = step / steps
                score(journal, run.kind, step, "harmfulness", share)
                score(journal, run.kind, step, "utility", utility[0] + (utility[1] - utility[0]) * share)
        rows = [{"id": f"h{i}", "prompt": "how?", "answer": "no", "expected": "so", "score": 0.0} for i in range(3)]
        journal.examples(run.kind, steps, evaluation="of-harmfulness", split="test", rows=rows)
        journal.layers(run.kind, 1, {"cosine": [0.1, 0.2, 0.3]})
        journal.checkpoint(run.kind, steps, path=f"checkpoints/step-{steps:06d}", sha256="ab", bytes=7)
    folder.write_status(status=status, seconds=1.0)
    return folder
