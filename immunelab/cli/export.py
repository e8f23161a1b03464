"""`export`: a page to take away, for whoever has no lab."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from immunelab.cli import options, show, submit
from immunelab.runs.journal import meant


def export(args: argparse.Namespace) -> int:
    """Write the page to take away."""
    from immunelab.formatting import size
    from immunelab.reports import static_page
    from immunelab.store import queries

    path = Path(args.page)
    store = submit.store_of(args)
    known = queries.runs(store)["run_id"].tolist()
    runs = [meant(text, known) or text for text in args.run or ()]  # what is wrong with one is told below
    choice = static_page.Choice(args.subject, args.attack, args.defense or (), runs, args.completions)
    written = static_page.write(store, path, choice)
    show.out.print(f"{path}: {size(written)}. It opens from disk and from any static host.", markup=False)
    return 0


def add(commands: Any) -> None:
    """Add `export`."""
    c = options.command(
        commands,
        "export",
        export,
        "write one page with figures, sliders and answers to put beside a paper",
        """
        The page opens from disk, without a server, a network or an installation: overview, collapse with sliders over
        every recorded intensity, outcomes, trade-off, gradients, scorecards, answers, settings and measures. What is
        looked at goes into the page's address. Answers of models other than Fable's are left out.

        examples:
          immunelab export lab.html
          immunelab export seam.html --defense seam --defense repnoise
          immunelab export lab      a folder with an index.html, for pages that would pass 12 MB
        """,
    )
    c.add_argument("page", metavar="PAGE.html", help="where to write it; without .html it is a new folder")
    c.add_argument(
        "--subject",
        default="",
        metavar="S",
        help="base model, with its corpus if that is not Fable (default: of the newest attack)",
    )
    c.add_argument("--attack", default="", metavar="A", help="attack (default: the one with most recorded runs)")
    c.add_argument("--defense", action="append", metavar="D", help="a defense to show; again for more (default: all)")
    c.add_argument(
        "--run",
        action="append",
        metavar="RUN",
        help="an attack to show, or an immunization with all attacks on it; again for more (default: all)",
    )
    c.add_argument("--completions", action="store_true", help="answers of real models too; they may be harmful")
