"""`data check`: what a corpus or a data file would give, what is left out and why, and rows as the model sees them."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from immunelab import corpus
from immunelab.cli import options, show
from immunelab.corpus import described, suggest, tables
from immunelab.corpus.rows import Corpus, Row, described_in
from immunelab.errors import UserError

LONGEST = 160  # characters of a question or an answer that a line shows


def check(args: argparse.Namespace) -> int:
    """Read a corpus, or a data file that has no description yet, and print what came of it. Nothing is written."""
    if args.rows < 0:
        raise UserError(f"--rows is at least 0; got {args.rows}.")
    place = Path(args.path)
    folder = place if place.is_dir() else place.parent
    is_corpus = args.path == "fable" or place.suffix == ".toml" or (folder == place and _holds_corpus(place))
    found = corpus.load(args.path) if is_corpus else None
    rows, notes, toml = ([], [], "") if found else _alone(place)
    if found:
        tokenizer = _tokenizer(found, args.model) if args.model or found.model else None
        if tokenizer is not None:
            from immunelab.corpus.tokens import fitting

            found = fitting(found, tokenizer)
        rows, notes = list(found.rows), list(found.notes)
    else:
        tokenizer = _tokenizer(None, args.model) if args.model else None
    shown = _spread(rows, args.rows)
    texts = [_as_seen(row, tokenizer) for row in shown]
    counts = Counter((row.stream, row.split if found else "") for row in rows)
    if args.json:
        tally = [{"stream": s, "split": p, "rows": n} for (s, p), n in sorted(counts.items())]
        seen = [{"stream": r.stream, "prompt": p, "answer": a} for r, (p, a) in zip(shown, texts, strict=True)]
        show.emit({"rows": tally, "notes": notes, "shown": seen, "source": toml})
        return 0
    show.table(["stream", "split", "rows"], [[s, p or "not yet", str(n)] for (s, p), n in sorted(counts.items())])
    for note in notes or ["Nothing is left out."]:
        show.out.print(f"- {note}", markup=False)
    _print(shown, texts, tokenizer is not None)
    if toml:
        show.out.print(
            f"\nA corpus.toml for it; look at the stream, and add the other kind of rows:\n\n{toml}", markup=False
        )
    return 0


def _holds_corpus(folder: Path) -> bool:
    return (folder / "world.jsonl").is_file() or described_in(str(folder), folder).is_file()


def _alone(place: Path) -> tuple[list[Row], list[str], str]:
    """The rows of a file by its columns' usual names, what was left out, and the source table that reads them so."""
    records, _ = tables.read(place)
    toml = suggest.source(place.name, records)
    found = described.rows_of(toml, place.parent)
    rows = [Row(id=str(i), prompt=d.prompt, response=d.response, stream=d.stream) for i, d in enumerate(found.drafts)]
    return rows, found.notes, toml


def _tokenizer(found: Corpus | None, model: str) -> Any:
    show.err.print("loading the tokenizer …", style="dim")
    from immunelab.training import models

    return models.tokenizer(model or str(found.own_model() if found else ""))


def _spread(rows: list[Row], count: int) -> list[Row]:
    """Rows from the whole file, the same ones each time."""
    return rows if len(rows) <= count else [rows[i * len(rows) // count] for i in range(count)]


def _as_seen(row: Row, tokenizer: Any) -> tuple[str, str]:
    """What the model reads and what it learns to write, in its template if there is a model."""
    if tokenizer is None:
        return row.prompt, row.response
    from immunelab.corpus.tokens import as_answer, as_prompt

    return as_prompt(tokenizer, row.prompt), as_answer(tokenizer, row.prompt, row.response)


def _print(rows: list[Row], texts: list[tuple[str, str]], templated: bool) -> None:
    what = "as the model sees them" if templated else "without a template; --model shows them as a model sees them"
    show.out.print(f"\n{len(rows)} rows, {what}:", markup=False)
    for row, (prompt, answer) in zip(rows, texts, strict=True):
        show.out.print(f"\n[{row.stream}]", style="bold", markup=False)
        for name, text in (("reads", prompt), ("writes", answer)):
            cut = text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text):,} characters)"
            show.out.print(f"  {name:<7}{cut!r}", markup=False)


def add(commands: Any) -> None:
    """Add `data check` to the command line."""
    inner = options.group(commands, "data", "check data before anything runs")
    c = options.command(
        inner,
        "check",
        check,
        "show what would be read from a corpus or a file, what is left out and why, and rows as the model sees them",
        """
        examples:
          immunelab data check mine/corpus.toml --model models/mine
          immunelab data check forbidden.jsonl        suggests a corpus.toml for the file
        """,
    )
    c.add_argument("path", metavar="PATH", help="a corpus.toml, its folder, a Fable world, or a data file")
    c.add_argument(
        "--model",
        default="",
        metavar="MODEL",
        help="whose template and tokens (default: the corpus's own model, if any)",
    )
    c.add_argument("--rows", type=int, default=10, metavar="N", help="how many rows to show (default 10)")
    options.json_flag(c)
