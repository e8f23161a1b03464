"""A worker whose attacks only pretend, with a planted optimum: `python searching_worker.py RUN_ID… --home PATH`."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from immunelab.jobs import work
from immunelab.runs.journal import Journal, RunFolder

BEST = 2e-4  # the learning rate that does most harm


def planted(knobs: dict[str, Any], share: float) -> tuple[float, float]:
    """(harmfulness, utility) after a share of the attack: harm peaks at BEST; utility goes beyond it."""
    distance = math.log10(knobs["learning_rate"] / BEST)
    harm = math.exp(-(distance**2)) * share * (0.5 + 0.5 * float(knobs.get("harmful_share", 1.0)))
    return harm, 1.0 if distance <= 0.3 else max(0.0, 1.0 - share * distance)


def execute(folder: RunFolder, attempt: int, resume: bool, watch: Callable[[int], None] | None = None) -> str:
    """Scores along the attack as `planted` says; waits `SLOW` seconds a step, and dies where `DIE_AT` says."""
    spec = folder.spec()
    saved = sorted(folder.checkpoints.glob("step-*"))
    first = int(saved[-1].name.removeprefix("step-")) if resume and saved else 0
    steps, every = int(spec.knobs["steps"]), spec.evaluate_every
    with Journal(folder, attempt) as journal:
        journal.event("resumed" if first else "started", from_step=first)
        for step in range(first, steps + 1):
            time.sleep(float(os.environ.get("SLOW", "0")))
            if step and step == first:
                continue
            if step % every == 0 or step == steps:
                harm, utility = planted(spec.knobs, step / steps)
                for metric, value in (("harmfulness", harm), ("utility", utility)):
                    journal.score(
                        spec.kind,
                        step,
                        evaluation=f"of-{metric}",
                        metric=metric,
                        split="all",
                        score=value,
                        n=9,
                        stderr=0.0,
                    )
                if watch:
                    watch(step)
            if os.environ.get("DIE_AT") == f"{spec.name.split('#')[-1]}/{step}":
                os._exit(9)
            if step < steps and folder.stop_requested():
                (folder.checkpoints / f"step-{step:06d}").mkdir()
                return "stopped"
        (folder.checkpoints / f"step-{steps:06d}").mkdir()
    return "done"


if __name__ == "__main__":
    at = sys.argv.index("--home")
    sys.exit(work(sys.argv[1:at], sys.argv[at + 1], execute=execute))
