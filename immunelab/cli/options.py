"""The parser of the command line, and the options that several commands share."""

from __future__ import annotations

import argparse
import difflib
import textwrap
from collections.abc import Callable
from typing import Any, NoReturn

from immunelab.errors import UserError
from immunelab.runs import numerics
from immunelab.runs.spec import KEEP


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one sentence, and options are never guessed from a prefix."""

    def __init__(self, summary: str = "", **options: Any) -> None:
        self.summary = summary
        self.commands: dict[str, Parser] = {}  # those of a group, by name
        super().__init__(**options, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise UserError(f"{message[:1].upper()}{message[1:]}. See: {self.prog} --help")


def command(
    commands: Any, name: str, call: Callable[[argparse.Namespace], int], help: str, text: str = "", **options: Any
) -> Parser:
    """Add a command that `call` carries out; the function finds its own parser in `args.parser`."""
    added = _added(commands, name, help, textwrap.dedent(text).rstrip(), **options)
    added.set_defaults(call=call, parser=added)
    added.add_argument("--home", metavar="DIR", help="folder with the runs (default: IMMUNELAB_HOME, else ./lab)")
    return added


def group(commands: Any, name: str, help: str) -> Any:
    """Add a command that only groups others, and return the action to which those are added."""
    added = _added(commands, name, help)
    inner = added.add_subparsers(title="commands", metavar="COMMAND", required=True)
    added.commands = inner.choices
    return inner


def _added(commands: Any, name: str, help: str, text: str = "", **options: Any) -> Parser:
    description = f"{help[:1].upper()}{help[1:]}." + (f"\n{text}" if text else "")
    added: Parser = commands.add_parser(name, help=help, summary=help, description=description, **options)
    return added


def json_flag(c: Parser) -> None:
    """Add `--json`."""
    c.add_argument("--json", action="store_true", help="print JSON on standard output")


def device(c: Parser) -> None:
    """Add `--device`."""
    c.add_argument(
        "--device", default="auto", metavar="DEVICE", help="where to compute: auto, cpu or cuda:0 (default auto)"
    )


def numeric(c: Parser) -> None:
    """Add `--dtype` and `--attention`."""
    for name, usual in numerics.USUAL.items():
        help = f"{numerics.HELP[name]} (default {usual})"
        c.add_argument(f"--{name}", default=usual, metavar=name.upper(), help=help)


def keep(c: Parser, default: str | None = "last") -> None:
    """Add `--keep`; its default may be left to a grid file."""
    c.add_argument(
        "--keep",
        default=default,
        choices=tuple(KEEP),
        help="weights that stay on the disk: none (except where another run of the list starts from them), last, or "
        f"all, those of each evaluated step (default {default or 'what the file says, else last'})",
    )


def numbers(args: argparse.Namespace) -> dict[str, Any]:
    """The fields dtype and attention of a spec."""
    return {name: getattr(args, name) for name in numerics.USUAL}


def split_knobs(argv: list[str], options: set[str]) -> tuple[list[str], dict[str, str]]:
    """Separate a method's settings from a command's own options: `--name value`, `--name=value`, `--set name=value`."""
    rest: list[str] = []
    knobs: dict[str, str] = {}
    tokens = iter(argv)
    for token in tokens:
        flag, equals, value = token.partition("=")
        if not token.startswith("--") or (flag in options and flag != "--set"):
            rest.append(token)
            continue
        if not equals:
            value = next(tokens, "")
            if not value or value.startswith("--"):
                near = difflib.get_close_matches(flag, options, 1, 0.8)
                hint = f"Did you mean {near[0]!r}?" if near else f"For example: {flag} 3e-4"
                raise UserError(f"The setting {flag} needs a value. {hint}")
        if flag == "--set":
            flag, equals, value = value.partition("=")
            if not equals:
                raise UserError(f"--set takes SETTING=VALUE, such as --set beta=0.01, and got {flag!r}.")
        knobs[flag.removeprefix("--").replace("-", "_")] = value
    return rest, knobs


def seeds(first: int, count: int) -> list[int]:
    """The seeds `first`, `first` + 1, …; a UserError unless there is one and all are at least 0."""
    if first < 0 or count < 1:
        raise UserError(f"--seed is at least 0 and --seeds at least 1; got --seed {first} --seeds {count}.")
    return list(range(first, first + count))
