"""Weights & Biases, offline: a run for each run, for `wandb sync`. Nothing is sent from here."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from immunelab.exchange.chosen import Chosen

PROJECT = "immunelab"
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when the package is imported: it would report crashes


def write(chosen: Chosen, folder: Path) -> str:
    """`DIR/wandb/offline-run-*`, one a run."""
    import wandb

    count = 0
    for run in chosen.each():
        count += 1
        settings = wandb.Settings(
            mode="offline",
            console="off",
            silent=True,
            x_disable_stats=True,
            x_disable_meta=True,
            disable_git=True,
            disable_code=True,
            save_code=False,
        )
        with wandb.init(
            project=PROJECT,
            id=run.run_id,
            name=str(run.row["name"] or run.run_id),
            group=str(run.row["grp"] or "") or None,
            job_type=str(run.row["kind"]),
            config=run.about(),
            dir=folder,
            settings=settings,
        ) as written:
            for step, _, values in run.traced():
                written.log(values, step=step)
    for path in [*(folder / "wandb").iterdir(), *folder.glob("wandb/offline-run-*/logs")]:
        if path.name == "logs":
            shutil.rmtree(path, ignore_errors=True)
        elif path.is_symlink() or path.is_file():  # logs of this writing, and links to them
            path.unlink(missing_ok=True)
    return f"{count} offline runs. Upload them with: wandb sync DIR/wandb/offline-run-*"
