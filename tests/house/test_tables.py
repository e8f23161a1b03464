"""The README, docs/results.md and docs/methods.md say what the recorded runs and the registry say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from immunelab import bundled
from immunelab.cli import main
from immunelab.errors import UserError
from immunelab.method import catalogue
from immunelab.reports import results

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.showcase
def test_the_tables_of_outcomes_are_made_from_the_recorded_runs(capsys: pytest.CaptureFixture[str]) -> None:
    made = results.tables()
    assert made["headline"].count("\n| ") == 2 + len(results.DEFENSES), "a head, a rule, and one row a defense"
    assert made["outcomes"].count("**broken**") >= 4, "the undefended model alone is broken more often than that"
    for name, file in results.FILES.items():
        text = (ROOT / file).read_text(encoding="utf-8")
        assert results.fill(text, name, made[name]) == text, "run `immunelab showcase table --write`"
    assert main(["showcase", "table"]) == 0
    assert capsys.readouterr().out == made["outcomes"]


def test_tables_are_written_between_their_marks_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bundled, "CLONE", tmp_path / "data")
    monkeypatch.setattr(results, "tables", lambda: {"headline": "| a |\n", "outcomes": "| \\1 |\n"})
    (tmp_path / "docs").mkdir()
    readme, page = tmp_path / "README.md", tmp_path / "docs" / "results.md"
    readme.write_text("before\n<!-- headline -->\nold\n<!-- /headline -->\nafter\n", encoding="utf-8")
    with pytest.raises(UserError, match="in a clone"):
        results.write()
    page.write_text("<!-- outcomes -->\n<!-- /outcomes -->\n", encoding="utf-8")
    assert results.write() == [readme, page]
    assert readme.read_text(encoding="utf-8") == "before\n<!-- headline -->\n| a |\n<!-- /headline -->\nafter\n"
    assert page.read_text(encoding="utf-8") == "<!-- outcomes -->\n| \\1 |\n<!-- /outcomes -->\n"
    with pytest.raises(UserError, match="one place <!-- outcomes -->"):
        results.fill("nothing here", "outcomes", "| a |\n")


def lines_of_methods(text: str) -> dict[str, list[tuple[str, str]]]:
    """Name and paper of each row of a table, by the kind of method and, of defenses, the stage."""
    found: dict[str, list[tuple[str, str]]] = {}
    place = ""
    for line in text.splitlines():
        if heading := re.match(r"##(#?) ([\w-]+)", line):
            place = heading[2].lower() if not heading[1] else f"defenses/{heading[2].lower()}"
        elif row := re.fullmatch(
            r"\| `([\w-]+)` \| .+ \|(?: \[(arXiv:[\d.]+)\]\(https://arxiv.org/abs/(.+)\))? \|", line
        ):
            assert (row[2] or "arXiv:").removeprefix("arXiv:") == (row[3] or ""), f"{row[1]} links another paper"
            found.setdefault(place, []).append((row[1], row[2] or ""))
    return found


def test_every_method_has_a_line_and_every_line_a_method() -> None:
    registered: dict[str, list[tuple[str, str]]] = {}
    for kind in catalogue.FOLDERS:
        for name, entry in catalogue.entries(kind).items():
            place = f"defenses/{entry.stage}" if kind == "defense" else f"{kind}s"
            registered.setdefault(place, []).append((name, entry.paper))
    shown = lines_of_methods((ROOT / "docs" / "methods.md").read_text(encoding="utf-8"))
    assert {place: sorted(rows) for place, rows in shown.items()} == {k: sorted(v) for k, v in registered.items()}
