"""The command line: the commands by group, the help of `immunelab` itself, and what is done with a wrong word."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from immunelab.cli import (
    about,
    app,
    assess,
    data,
    demo,
    export,
    fable,
    grids,
    models,
    pairs,
    recorded,
    scorecard,
    search,
    start,
    tune,
)
from immunelab.cli.options import Parser, split_knobs
from immunelab.errors import UserError, unknown

WHAT = "Immunize a language model, attack it by harmful fine-tuning, and see what becomes of it."
EPILOG = """
a first session:
  immunelab app                                     the app in the browser, with recorded runs
  immunelab demo                                    immunize, attack at every rung, write a report
  immunelab immunize seam --seed 1                  immunize the bundled model
  immunelab attack --model run:last --rung 0.001    attack the result
  immunelab runs                                    list the runs and how they ended
  immunelab COMMAND --help                          options and examples of one command

Runs are kept in ./lab, or in the folder that --home or IMMUNELAB_HOME names.
"""
GROUPS: dict[str, tuple[Callable[[Any], None], ...]] = {
    "the app": (app.add,),
    "one run": (demo.add, start.add),
    "many runs": (grids.add, search.add, tune.add, assess.add),
    "results": (recorded.add, scorecard.add, export.add),
    "manage runs": (recorded.add_control,),
    "models and data": (models.add, data.add, fable.add, pairs.add),
    "this installation": (about.add, demo.add_showcase, recorded.add_store),
}


class Version(argparse.Action):
    """`--version`, which is looked up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print the version and end."""
        print(f"immunelab {about.version('immunelab') or '(not installed)'}")
        parser.exit()


def tree() -> tuple[Parser, Any, dict[str, list[str]]]:
    """The root parser, the action that holds the commands by name, and the names in each group."""
    root = Parser(prog="immunelab", usage="immunelab COMMAND [options]", description=WHAT)
    root.add_argument("--version", action=Version, nargs=0, help="show the version and exit")
    commands = root.add_subparsers(prog="immunelab", required=True, metavar="COMMAND", help=argparse.SUPPRESS)
    groups: dict[str, list[str]] = {}
    for title, adds in GROUPS.items():
        before = set(commands.choices)
        for add in adds:
            add(commands)
        groups[title] = [name for name in commands.choices if name not in before]
    lines = []
    for title, names in groups.items():
        lines += [f"{title}:", *(f"  {name:<10} {commands.choices[name].summary}" for name in names), ""]
    root.epilog = "\n".join(lines) + EPILOG
    return root, commands, groups


def overview(groups: dict[str, list[str]]) -> str:
    """What `immunelab` alone prints: the commands by group, and where to begin."""
    lines = [f"  {title:<18} {'  '.join(names)}" for title, names in groups.items()]
    hint = "Begin with: immunelab demo\nMore: immunelab --help, immunelab COMMAND --help"
    return "\n".join([WHAT, "", *lines, "", hint])


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line, read; `call` is the function to carry out. A wrong word is a UserError with near matches.

    A command that takes settings of a method has a default for `knobs`; options that it lacks go there, as texts.
    """
    root, commands, groups = tree()
    if not argv:
        print(overview(groups))
        root.exit()
    if argv[0] == "models" and argv[1:2] in ([], ["--json"], ["--home"]):  # what most people mean by it
        argv = ["models", "list", *argv[1:]]
    known, path = commands.choices, "immunelab"
    for word in argv[:2]:
        if not known or word.startswith("-"):
            break
        if word not in known:
            raise unknown("command" if path == "immunelab" else f"command of {path}", word, known)
        known, path = known[word].commands, f"{path} {word}"
    chosen, knobs = commands.choices.get(argv[0]), None
    if chosen and chosen.get_default("knobs") is not None:
        argv, knobs = split_knobs(argv, set(chosen._option_string_actions))
    args, extra = root.parse_known_args(argv)
    if knobs is not None:
        args.knobs = knobs
    if extra:
        prog, word = args.parser.prog, extra[0].partition("=")[0]
        if word.startswith("-"):
            raise unknown(f"option of {prog}", word, args.parser._option_string_actions)
        raise UserError(f"{prog} does not take {word[:200]!r} there. See: {prog} --help")
    return args
