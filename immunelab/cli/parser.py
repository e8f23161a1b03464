"""The whole command line, collected from the files whose commands it has; each command names its function."""

from __future__ import annotations

import argparse
from typing import Any

from immunelab.cli import about, demo, fable, grids, models, pairs, recorded, scorecard, search, start
from immunelab.cli.options import Parser, split_knobs
from immunelab.errors import unknown

EPILOG = """
a first session:
  immunelab demo                                    immunize, attack at every rung, write a report
  immunelab immunize seam --seed 1                  immunize the bundled model
  immunelab attack --model run:last --rung 0.001    attack what came out
  immunelab runs                                    what was run, and how it ended
  immunelab COMMAND --help                          options and examples of one command

Runs are kept in ./lab, or in the folder that --home or IMMUNELAB_HOME names.
"""
ADDED = (
    demo.add,
    start.add,
    grids.add,
    search.add,
    recorded.add,
    scorecard.add,
    pairs.add,
    fable.add,
    demo.add_showcase,
    recorded.add_store,
    models.add,
    about.add,
)


def tree() -> tuple[Parser, Any]:
    """The whole command line: the root parser, and the action that holds the commands by name."""
    root = Parser(
        prog="immunelab",
        description="Immunize a language model, attack it by harmful fine-tuning, and see what becomes of it.",
        epilog=EPILOG,
    )
    root.add_argument("--version", action="version", version=f"immunelab {about.version('immunelab')}")
    commands = root.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in ADDED:
        add(commands)
    return root, commands


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line, read; `call` is the function to carry out.

    A command that takes settings of a method has a default for `knobs`; options that it lacks go there, as texts.
    """
    root, commands = tree()
    if argv and not argv[0].startswith("-") and argv[0] not in commands.choices:
        raise unknown("command", argv[0], commands.choices)
    if not argv:
        argv = ["--help"]
    if argv[0] == "models" and argv[1:2] in ([], ["--json"], ["--home"]):  # what most people mean by it
        argv = ["models", "list", *argv[1:]]
    chosen = commands.choices.get(argv[0])
    if chosen is None or chosen.get_default("knobs") is None:
        return root.parse_args(argv)
    argv, knobs = split_knobs(argv, set(chosen._option_string_actions))
    args = root.parse_args(argv)
    args.knobs = knobs
    return args
