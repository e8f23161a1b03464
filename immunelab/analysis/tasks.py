"""ZS and FS: accuracy on labelled tasks before and after a fine-tuning. Frames in, frames out."""

from __future__ import annotations

import pandas as pd

EVALUATION = "task-accuracy"
COLUMNS = ["run_id", "task", "ZS", "FS", "ZS_strict", "FS_strict", "chance", "n"]
METRICS = {"utility": "", "strict_accuracy": "_strict"}
MEAN = "mean"


def before_and_after(runs: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """One row a run and task, then the mean over tasks if there are several; shares in 0–1.

    `scores` is what `store.queries.scores` returns with all splits. ZS is the score at step 0. FS is the score at the
    last step of a fine-tuning that read benign rows: a `finetune` run, or an attack with a share of them; others have
    none. `_strict` columns follow the rule of released codes; `chance` is the share of the most common label.
    """
    mine = scores[scores["evaluation"] == EVALUATION]
    kinds = runs.set_index("run_id")[["kind", "harmful_share"]]
    rows = []
    for run_id, run in mine.groupby("run_id", sort=False):
        kind, share = kinds.loc[run_id]
        tuned = kind == "finetune" or (kind == "attack" and pd.notna(share) and share < 1)
        last = int(run["step"].max())
        tasks = [split for split in run["split"].unique() if split != "all"]
        for split in [*tasks, *(["all"] if len(tasks) > 1 else [])]:
            part = run[run["split"] == split]
            row = {"run_id": run_id, "task": split.removeprefix("task:") if split != "all" else MEAN}
            for metric, ending in METRICS.items():
                at = part[part["metric"] == metric].set_index("step")["score"]
                row |= {f"ZS{ending}": at.get(0), f"FS{ending}": at.get(last) if tuned and last else None}
            chance = part[part["metric"] == "chance"]["score"]
            rows.append(row | {"chance": chance.iloc[0] if len(chance) else None, "n": int(part["n"].max())})
    return pd.DataFrame(rows, columns=COLUMNS)
