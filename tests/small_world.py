"""A Fable world with few rows and an untrained model: every part of a run, in seconds. For tests and benchmarks."""

from __future__ import annotations

from pathlib import Path

ITEMS = 6  # of each stream, category and split


def make(folder: Path) -> Path:
    """Write `world.jsonl` and `model/` into the folder, and return it. Nothing learned may be expected of the model."""
    from immunelab.corpus import fable, write
    from immunelab.experiment import pretrain
    from immunelab.training import models

    folder.mkdir(parents=True, exist_ok=True)
    rows = fable.world(0)
    write(fable.few(rows, ITEMS), folder / "world.jsonl")
    tokenizer = pretrain.make_tokenizer(rows)
    model = pretrain.make_model(tokenizer, 0)
    model.config.num_hidden_layers = 2  # half of the bundled model's
    models.save(type(model)(model.config), tokenizer, folder / "model")
    return folder
