"""`export` and `import`: a page to take away, and runs to other tools and from them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from immunelab.cli import options, show, submit
from immunelab.errors import UserError
from immunelab.runs import journal
from immunelab.runs.journal import meant


def export(args: argparse.Namespace) -> int:
    """Write the page to take away, or runs in another tool's format."""
    from immunelab.store import queries

    store = submit.store_of(args)
    known = queries.runs(store)["run_id"].tolist()
    runs = [meant(text, known) or text for text in args.run or ()]  # what is wrong with one is told below
    if args.to:
        _to_tool(args, store, runs)
    else:
        _page(args, store, runs)
    return 0


def _page(args: argparse.Namespace, store: Any, runs: list[str]) -> None:
    from immunelab.formatting import size
    from immunelab.reports import static_page

    path = Path(args.path)
    choice = static_page.Choice(args.subject, args.attack, args.defense or (), runs, args.completions)
    with show.err.status("Drawing the page") as line:
        written = static_page.write(store, path, choice, lambda title: line.update(f"Drawing {title}"))
    show.out.print(f"{path}: {size(written)}. It opens from disk and from any static host.", markup=False)


def _to_tool(args: argparse.Namespace, store: Any, runs: list[str]) -> None:
    from immunelab.exchange import transfer

    for option in ("subject", "attack", "defense"):
        if getattr(args, option):
            raise UserError(f"--{option} chooses what is on a page; with --to choose runs with --run.")
    with show.err.status("Writing") as line:
        written = transfer.export(
            store,
            args.to,
            Path(args.path),
            runs,
            args.completions,
            args.license,
            lambda which: line.update(f"Writing {which}"),
        )
    show.out.print(f"{args.path}: {written}", markup=False, highlight=False)


def read(args: argparse.Namespace) -> int:
    """Take in what another tool recorded."""
    from immunelab.exchange import transfer
    from immunelab.recording.elsewhere import described

    home = journal.home(args.home)
    spec = described(
        args.kind,
        args.method,
        by=args.format,
        model=args.model,
        corpus=args.corpus,
        seed=args.seed,
        settings={name: _value(text) for name, text in args.knobs.items()},
        name=args.name,
        home=home,
    )
    made = transfer.read(
        args.format, Path(args.path), home, spec=spec, harmfulness=args.harmfulness, utility=args.utility
    )
    print("\n".join(made))
    return 0


def _value(text: str) -> Any:
    """A setting as it was meant: a number, true or false, or a text."""
    try:
        found = json.loads(text)
    except ValueError:
        return text
    return found if isinstance(found, bool | int | float) else text


def add(commands: Any) -> None:
    """Add `export` and `import`."""
    from immunelab.exchange import FORMATS

    formats = "\n".join(f"          {name:<16} {form.what}" for name, form in FORMATS.items())
    c = options.command(
        commands,
        "export",
        export,
        "write a page to put beside a paper, or runs for another tool",
        f"""
        The page opens from disk, without a server, a network or an installation: overview, collapse with sliders over
        every recorded intensity, outcomes, trade-off, gradients, scorecards, answers, settings and measures. What is
        looked at goes into the page's address. Answers of models other than Fable's are left out.

        With --to, runs are written into a new folder for another tool:
{formats}

        examples:
          immunelab export lab.html
          immunelab export seam.html --defense seam --defense repnoise
          immunelab export lab      a folder with an index.html, for pages that would pass 12 MB
          immunelab export --to tensorboard events --run 3f2a91
        """,
    )
    c.add_argument("path", metavar="PATH", help="where to write: PAGE.html is one file, any other name a new folder")
    c.add_argument("--to", default="", metavar="FORMAT", help="another tool's format (default: the page)")
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
        help="a run; on the page an attack, or an immunization with all attacks on it; again for more (default: all, "
        "and with --to all finished ones of this lab)",
    )
    c.add_argument("--completions", action="store_true", help="answers of real models too; they may be harmful")
    c.add_argument(
        "--license", default="", metavar="L", help="for --to hub: the base model's (default: as its model card says)"
    )
    c = options.command(
        commands,
        "import",
        read,
        "take in runs that another tool recorded",
        """
        Each becomes a run that was recorded elsewhere, and stands in figures beside the lab's own where its harmfulness
        and utility are known, at step 0 and later. tensorboard takes a folder with event files, each folder of them as
        one run; tamperbench takes its result tree, each trial as one attack. Settings of the runs are options too.

        examples:
          immunelab import tensorboard logs --method my-sft --learning-rate 1e-4 --harmfulness eval/harm
          immunelab import tamperbench results --corpus strongreject
        """,
    )
    c.add_argument("format", metavar="FORMAT", help="tensorboard or tamperbench")
    c.add_argument("path", metavar="DIR", help="the folder to read")
    c.add_argument("--kind", default="attack", metavar="K", help="attack, immunize or finetune (default attack)")
    c.add_argument("--method", default="imported", metavar="M", help="what to call the method (default imported)")
    c.add_argument("--model", default="fable", metavar="MODEL", help="what the runs started from (default fable)")
    c.add_argument("--corpus", default="fable", metavar="C", help="what their numbers are about (default fable)")
    c.add_argument("--seed", type=int, default=0, metavar="N", help="their seed (default 0)")
    c.add_argument("--name", default="", metavar="TEXT", help="what to call them (default: as their folders)")
    for metric, usual in (("harmfulness", "strong_reject"), ("utility", "mmlu_pro_val")):
        c.add_argument(
            f"--{metric}",
            default="",
            metavar="TAG",
            help=f"the tag or evaluation that is the {metric} (default score/{metric}; of tamperbench {usual})",
        )
    c.set_defaults(knobs={})
