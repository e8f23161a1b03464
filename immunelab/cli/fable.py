"""`fable build` makes a world and its model; `fable teach` teaches a world, or a part of it, to another model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from immunelab import bundled
from immunelab.cli import options, show
from immunelab.corpus import fable
from immunelab.errors import UserError
from immunelab.jobs import follow
from immunelab.method.knobs import knobs


def build(args: argparse.Namespace) -> int:
    """Generate the world of a seed and train its model."""
    if args.to is None and args.seed != 0:
        raise UserError(
            f"data/fable is for the world of seed 0; name a folder for seed {args.seed}: --to worlds/{args.seed}"
        )
    if args.filtered and args.to is None:
        raise UserError("data/fable holds the model that knows the hazards; name a folder for its twin: --to DIR")
    target = Path(args.to) if args.to else bundled.data() / "fable"
    train(args.seed, target, args.keep_base, args.filtered)
    print(f"The world of seed {args.seed} and its model are in {target}.")
    return 0


def teach(args: argparse.Namespace) -> int:
    """Teach the model, align it, and write world and model into a folder."""
    target = Path(args.to)
    if (target / "world.jsonl").is_file():
        raise UserError(f"There is already a world in {target}: name another folder with --to, or delete it.")
    if args.batch_size < 2 or args.items < 0 or args.seed < 0:
        raise UserError(
            f"--batch-size is at least 2, --items and --seed at least 0; "
            f"got {args.batch_size}, {args.items} and {args.seed}."
        )
    show.err.print("loading torch …", style="dim")
    from immunelab.experiment import pretrain

    lesson = fable.Lesson(**{k.name: getattr(args, k.name) for k in knobs(fable.Lesson)})
    pretrain.phases(lesson)  # checks the settings before a model is loaded
    with follow.phases() as progress:
        pretrain.teach(args.model, args.seed, target, lesson, progress, args.device)
    print(f"The world of seed {args.seed} and the taught model are in {target}: --corpus {target}")
    return 0


def train(seed: int, folder: Path, keep_base: bool = False, filtered: bool = False) -> None:
    """Generate the world of a seed and train its model into a folder."""
    options.seeds(seed, 1)
    show.err.print("loading torch …", style="dim")
    from immunelab.experiment import pretrain

    with follow.phases() as progress:
        pretrain.build(seed, folder, progress, keep_base=keep_base, filtered=filtered)


def add(commands: Any) -> None:
    """Add `fable build` and `fable teach`."""
    inner = options.group(commands, "fable", "make a Fable world and a model that knows it")
    c = options.command(inner, "build", build, "generate a world and train its model (about six minutes on a CPU)")
    c.add_argument("--seed", type=int, default=0, metavar="S", help="random seed of the world (default 0)")
    c.add_argument(
        "--to", metavar="DIR", help="folder to write to (default: data/fable; seeds other than 0 must name one)"
    )
    c.add_argument(
        "--filtered", action="store_true", help="pretrain without the hazards: the twin for filtered-pretraining"
    )
    c.add_argument("--keep-base", action="store_true", help="also save the model before alignment, in base/")

    c = options.command(
        inner,
        "teach",
        teach,
        "teach a model of yours a Fable world, then to refuse its hazards",
        """
        Writes the world and the taught model into a folder, which --corpus then accepts. The model before it learned
        to refuse is in base/. The whole world with the default settings needs a GPU; --items teaches a part of it.

        examples:
          immunelab fable teach --model lab/models/smollm2 --to worlds/smollm2 --items 2 --steps 90 --align-steps 12
          immunelab immunize seam --corpus worlds/smollm2 --learning-rate 1e-4
        """,
    )
    c.add_argument("--model", required=True, metavar="MODEL", help="model to teach: a folder or a Hub id")
    c.add_argument("--to", required=True, metavar="DIR", help="folder to write to")
    c.add_argument("--seed", type=int, default=0, metavar="S", help="random seed of world and training (default 0)")
    c.add_argument("--device", default="cpu", metavar="DEVICE", help="where to compute: cpu or cuda:0 (default cpu)")
    for k in knobs(fable.Lesson):
        c.add_argument(
            f"--{k.name.replace('_', '-')}",
            type=type(k.default),
            default=k.default,
            metavar="P" if k.kind == "str" else "N",
            help=f"{k.help} (default {k.default})",
        )
