"""trackio: one project with a run for each run, in a folder of its own.

Where trackio keeps its data it reads from the environment when it is imported, so a process of its own writes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from immunelab.errors import UserError
from immunelab.exchange.chosen import Chosen

PROJECT = "immunelab"


def write(chosen: Chosen, folder: Path) -> str:
    """The project's database."""
    told: list[dict[str, Any]] = []
    for run in chosen.each():
        rows = list(run.traced())
        told.append(
            {
                "project": PROJECT,
                "run": str(run.row["name"] or run.run_id),
                "run_id": run.run_id,
                "config": run.about(),
                "metrics_list": [values for _, _, values in rows],
                "steps": [step for step, _, _ in rows],
                "timestamps": [datetime.fromtimestamp(at, UTC).isoformat() for _, at, _ in rows],
            }
        )
    line = [sys.executable, "-P", "-m", "immunelab.exchange.trackio"]
    environment = os.environ | {"TRACKIO_DIR": str(folder)}
    done = subprocess.run(line, input=json.dumps(told), env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(
            f"trackio could not write: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]:.300}"
        )
    return f"{len(told)} runs of the project {PROJECT}. Look at them with TRACKIO_DIR set to the folder: trackio show"


def _fill() -> None:
    """What standard input tells, into the folder that TRACKIO_DIR names."""
    from trackio.sqlite_storage import SQLiteStorage

    for run in json.load(sys.stdin):
        SQLiteStorage.bulk_log(**run)


if __name__ == "__main__":
    _fill()
