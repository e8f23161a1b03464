"""A Fable world with few rows and an untrained model: every part of a run, in seconds. For tests and benchmarks."""

from __future__ import annotations

import random
from pathlib import Path

ITEMS = 6  # of each stream, category and split


def make(folder: Path) -> Path:
    """Write `world.jsonl` and `model/` into the folder, and return it. Nothing learned may be expected of the model."""
    from immunelab import pretrain
    from immunelab.corpus import fable, write
    from immunelab.training import models

    folder.mkdir(parents=True, exist_ok=True)
    rows = fable.world(0)
    groups: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        items = groups.setdefault((row.stream, row.categories[0], row.split), [])
        if row.pair_id not in items:
            items.append(row.pair_id)
    few = {item for items in groups.values() for item in random.Random(0).sample(items, min(ITEMS, len(items)))}
    write([row for row in rows if row.pair_id in few], folder / "world.jsonl")
    tokenizer = pretrain.make_tokenizer(rows)
    models.save(pretrain.make_model(tokenizer, 0), tokenizer, folder / "model")
    return folder
