"""What every command's options are made of: the parser, the options that several commands share, and how they read."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable
from typing import Any, NoReturn

from immunelab.errors import UserError
from immunelab.runs import numerics


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one sentence, and options are never guessed from a prefix."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise UserError(f"{message[:1].upper()}{message[1:]}. See: {self.prog} --help")


def command(
    commands: Any, name: str, call: Callable[[argparse.Namespace], int], help: str, text: str = "", **options: Any
) -> Parser:
    """Add a command that `call` carries out; the function finds its own parser in `args.parser`."""
    description = f"{help[:1].upper()}{help[1:]}."
    if text:
        description += "\n" + textwrap.dedent(text).rstrip()
    added: Parser = commands.add_parser(name, help=help, description=description, **options)
    added.set_defaults(call=call, parser=added)
    added.add_argument("--home", metavar="DIR", help="folder of the runs (default: IMMUNELAB_HOME, or ./lab)")
    return added


def group(commands: Any, name: str, help: str) -> Any:
    """Add a command that has commands below it, and return what those are added to."""
    added = commands.add_parser(name, help=help, description=f"{help[:1].upper()}{help[1:]}.")
    return added.add_subparsers(title="commands", metavar="COMMAND", required=True)


def json_flag(c: Parser) -> None:
    """Add `--json`."""
    c.add_argument("--json", action="store_true", help="print JSON on standard output")


def device(c: Parser) -> None:
    """Add `--device`."""
    c.add_argument("--device", default="auto", metavar="DEVICE", help="auto, cpu or cuda:0 (default auto)")


def numeric(c: Parser) -> None:
    """Add `--dtype` and `--attention`."""
    for name, usual in numerics.USUAL.items():
        help = f"{numerics.HELP[name]} (default {usual})"
        c.add_argument(f"--{name}", default=usual, metavar=name.upper(), help=help)


def numbers(args: argparse.Namespace) -> dict[str, Any]:
    """What the command line says of dtype and attention, as fields of a spec."""
    return {name: getattr(args, name) for name in numerics.USUAL}


def split_knobs(argv: list[str], options: set[str]) -> tuple[list[str], dict[str, str]]:
    """Take `--knob value`, `--knob=value` and `--set knob=value` out of a command line that has other options too."""
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
                raise UserError(f"{flag} needs a value, such as {flag} 3e-4.")
        if flag == "--set":
            flag, equals, value = value.partition("=")
            if not equals:
                raise UserError(f"--set takes knob=value, and got {flag!r}.")
        knobs[flag.removeprefix("--").replace("-", "_")] = value
    return rest, knobs


def seeds(first: int, count: int) -> list[int]:
    """The seeds that `--seed` and `--seeds` name; a UserError where there are none."""
    if first < 0 or count < 1:
        raise UserError(f"Seeds start at 0 and there is at least one; got --seed {first} --seeds {count}.")
    return list(range(first, first + count))
