"""The README's table of outcomes is what the shipped runs say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from immunelab.cli import main

README = Path(__file__).resolve().parents[2] / "README.md"


@pytest.mark.showcase
def test_the_table_of_outcomes_is_made_from_the_shipped_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["showcase", "table"]) == 0
    made = capsys.readouterr().out
    found = re.search(r"<!-- outcomes -->\n(.*)<!-- /outcomes -->", README.read_text(encoding="utf-8"), re.DOTALL)
    assert found, "README.md has no marked place for the table of outcomes"
    assert made.count("**broken**") >= 4, "the undefended model alone is broken more often than that"
    assert found.group(1) == made, "put what `immunelab showcase table` prints between the marks in README.md"
