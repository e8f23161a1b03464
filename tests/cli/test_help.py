"""Help and docs/cli.md: both name the same commands, their examples can be typed, and options say their default."""

from __future__ import annotations

import importlib.metadata
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from immunelab.cli import main
from immunelab.cli.options import Parser
from immunelab.cli.parser import parse, tree

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `([a-z ]+)` \| .+ \| `(.+)` \|$", PAGE, re.MULTILINE)


def commands(known: dict[str, Parser] | None = None, path: str = "") -> Iterator[tuple[str, Parser]]:
    """Every command that does something, with the name of its group before it."""
    for name, parser in (tree()[1].choices if known is None else known).items():
        if parser.commands:
            yield from commands(parser.commands, f"{name} ")
        else:
            yield path + name, parser


COMMANDS = dict(commands())


def test_the_docs_have_a_line_for_each_command_and_no_other() -> None:
    assert sorted(name for name, _ in ROWS) == sorted(COMMANDS)


def test_the_docs_and_the_help_have_the_same_groups() -> None:
    sections = re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    shown = {
        title.lower(): list(dict.fromkeys(row.split()[0] for row in re.findall(r"^\| `([a-z ]+)`", text, re.MULTILINE)))
        for title, text in sections
    }
    assert shown == tree()[2]


@pytest.mark.parametrize(("command", "example"), ROWS)
def test_an_example_in_the_docs_is_a_line_of_its_command(command: str, example: str) -> None:
    assert example.startswith(f"immunelab {command}")
    assert parse(shlex.split(example)[1:]).parser.prog == f"immunelab {command}"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_of_the_help_can_be_typed(command: str) -> None:
    text = COMMANDS[command].description or ""
    for line in re.findall(r"^  (immunelab .+?)(?:   .*)?$", text, re.MULTILINE):
        assert callable(parse(shlex.split(line)[1:]).call)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_option_with_a_value_says_its_default(command: str) -> None:
    for action in COMMANDS[command]._actions:
        if action.option_strings and action.metavar and not action.required and "--set" not in action.option_strings:
            assert action.help
            said = re.search(r"\(default:? ([^)]+)\)$", action.help)
            assert said, f"{command} {action.option_strings[-1]}: {action.help}"
            if isinstance(action.default, int | float):
                assert float(said[1]) == action.default
            elif action.default:
                assert said[1] == action.default


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"immunelab {importlib.metadata.version('immunelab')}\n"


def test_the_command_alone_shows_every_command_in_a_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 0
    told = capsys.readouterr().out
    assert set(tree()[1].choices) <= set(told.split())
    assert len(told.splitlines()) < 15
