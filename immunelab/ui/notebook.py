"""A figure of the app as a Jupyter notebook: cells that open the same lab and draw the same figure."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from immunelab.analysis.outcomes import DEFAULT, Thresholds
from immunelab.runs import access

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def notebook(title: str, sentence: str, cells: Sequence[str]) -> bytes:
    """A notebook (format 4.5) without outputs: a title, a sentence, and code cells."""
    found: list[dict[str, Any]] = [_cell("markdown", f"# {title}\n\n{sentence}", "title")]
    found += [_cell("code", code, f"code-{i}") for i, code in enumerate(cells)]
    metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    return json.dumps({"cells": found, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}, indent=1).encode()


def drawing(title: str, home: Path, call: str, options: dict[str, Any], runs: Sequence[str]) -> bytes:
    """The notebook of one figure: open the lab, name the runs, draw. `call` is a method of `Lab`."""
    needs = ["import immunelab"]
    if any(isinstance(v, Thresholds) for v in options.values()):
        needs.append("from immunelab.analysis.outcomes import Thresholds")
    listed = "\n".join(f"    {run!r}," for run in runs)
    given = "".join(f",\n    {key}={_code(value)}" for key, value in options.items())
    cells = [
        "\n".join([*needs, "", f"lab = immunelab.open({'' if access.read_only() else repr(str(home))})"]),
        f"runs = [\n{listed}\n]",
        f"figure = lab.{call}(\n    runs{given},\n)\nfigure",
    ]
    return notebook(title, "Drawn from the same recorded runs, by the same functions as in the app.", cells)


def _code(value: Any) -> str:
    """A setting as Python source."""
    if isinstance(value, Thresholds):
        changed = {k: v for k, v in dataclasses.asdict(value).items() if v != getattr(DEFAULT, k)}
        return f"Thresholds({', '.join(f'{k}={v!r}' for k, v in changed.items())})"
    return repr(value.item() if hasattr(value, "item") else value)


def _cell(kind: str, source: str, name: str) -> dict[str, Any]:
    cell: dict[str, Any] = {"cell_type": kind, "id": name, "metadata": {}, "source": source}
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {})
