"""`fable teach`: teach a model that is not Fable's the world of Fable, or a part of it."""

from __future__ import annotations

import argparse
from pathlib import Path

from immunelab.cli import show
from immunelab.errors import UserError
from immunelab.jobs import follow

OPTIONS: dict[str, tuple[int | float, str]] = {  # held equal to `pretrain.Lesson` by a test; reading it imports torch
    "items": (0, "items of each domain, skill and split; 0: all"),
    "steps": (2000, "steps of learning the world"),
    "align-steps": (250, "steps of learning to refuse"),
    "batch-size": (16, "rows in a step, half of them recipes"),
    "learning-rate": (1e-3, "peak learning rate of both"),
    "rank": (32, "rank of the LoRA adapter, merged after; 0: all weights train"),
}


def teach(args: argparse.Namespace) -> int:
    """Teach the model, align it, and write world and model into a folder."""
    target = Path(args.to)
    if (target / "world.jsonl").is_file():
        raise UserError(f"{target} holds a world already: name another folder with --to, or delete it.")
    if args.batch_size < 2 or args.items < 0 or args.seed < 0:
        raise UserError("A step takes at least 2 rows, and items and seed are whole numbers from 0.")
    show.err.print("loading torch …", style="dim")
    from immunelab.experiment import pretrain

    settings = {name.replace("-", "_"): getattr(args, name.replace("-", "_")) for name in (*OPTIONS, "precision")}
    lesson = pretrain.Lesson(**settings)
    lesson.phases()  # checks the settings before a model is loaded
    with follow.phases() as progress:
        pretrain.teach(args.model, args.seed, target, lesson, progress, args.device)
    print(f"The world of seed {args.seed} and the taught model are in {target}: --corpus {target}")
    return 0
