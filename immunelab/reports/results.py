"""The tables that README.md and docs/results.md show, made from the recorded runs that ship."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from immunelab import bundled
from immunelab.analysis import collapse, outcome_table, tradeoff
from immunelab.errors import UserError
from immunelab.store import Store, queries

DEFENSES = ("undefended", "seam", "sdd", "security-vectors")  # of the README's table
RATES = (1e-4, 3e-4, 1e-3)
FILES = {"headline": "README.md", "outcomes": "docs/results.md"}  # where each table stands


def tables() -> dict[str, str]:
    """Markdown by the name of its place: `headline` (four defenses, three rungs) and `outcomes` (everything)."""
    with tempfile.TemporaryDirectory() as home:  # the shipped runs, and none of this lab's
        store = Store(Path(home))
        store.sync(force=True)
        curves = queries.attack_curves(store)
        trials = queries.searches(store)
    if curves.empty:
        raise UserError("No recorded runs ship with this installation: `immunelab showcase build` records them.")
    headline, parts = "", []
    for subject in collapse.subjects(curves):
        table = outcome_table.outcome_table(collapse.comparable(curves, subject))
        if subject == "fable":
            full = table[(table["method"] == "harmful-sft") & table["defense"].isin(DEFENSES)]
            headline = outcome_table.markdown(outcome_table.ladder(full).query("learning_rate in @RATES"))
        part = f"## `{subject}`\n\n{outcome_table.markdown(table)}"
        mine = trials[trials["subject"] == subject]
        if len(mine):
            done = curves[(curves["subject"] == subject) & (curves["status"] == "done")]
            part += f"\n{tradeoff.markdown(mine, tradeoff.checkpoints(done))}"
        parts.append(part)
    return {"headline": headline, "outcomes": "\n".join(parts)}


def fill(text: str, name: str, table: str) -> str:
    """`text` with `table` between the lines `<!-- name -->` and `<!-- /name -->`."""
    filled, places = re.subn(
        rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda found: found[1] + table + found[2], text, flags=re.DOTALL
    )
    if places != 1:
        raise UserError(f"There must be one place <!-- {name} --> … <!-- /{name} -->, and there are {places}.")
    return filled


def write() -> list[Path]:
    """Put the tables into the files of the clone, and return those files."""
    root, made = bundled.CLONE.parent, tables()
    paths = {name: root / file for name, file in FILES.items()}
    if not all(path.is_file() for path in paths.values()):
        raise UserError(f"{' and '.join(FILES.values())} are written in a clone, and {root} is none.")
    for name, path in paths.items():
        path.write_text(fill(path.read_text(encoding="utf-8"), name, made[name]), encoding="utf-8")
    return list(paths.values())
