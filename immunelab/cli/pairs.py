"""Commands about SDD's pairs: `pairs build` makes them before a run needs them, `pairs show` tells what was made."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from immunelab import corpus as corpora
from immunelab import jobs
from immunelab.cli import options, show
from immunelab.corpus import SPLITS
from immunelab.errors import UserError, unknown
from immunelab.formatting import duration, share
from immunelab.method import configure
from immunelab.runs import journal
from immunelab.sweep import plan

if TYPE_CHECKING:
    from immunelab.corpus import pairing

SETTINGS = ("similarity", "redraws", "pairs", "words")
SPOKEN = 2.0  # seconds between two lines of progress where there is no terminal


def build(args: argparse.Namespace) -> int:
    """Build the pairs that a run of `sdd` with these settings takes, or find them built."""
    if args.split not in SPLITS:
        raise unknown("split", args.split, SPLITS)
    if args.seed < 0:
        raise UserError(f"--seed is at least 0; got {args.seed}.")
    corpus = corpora.load(args.corpus)
    show.err.print("loading torch …", style="dim")
    from immunelab.corpus import embedding, pairing

    knobs = {name: value for name in SETTINGS if (value := getattr(args, name)) is not None}
    choice = plan.choose("immunize", "sdd", args.corpus, preset=args.preset, knobs=knobs)
    if args.preset is None:
        preset = plan.suited("immunize", "sdd", args.corpus)
        show.err.print(f"settings: the preset {preset} (choose with --preset)", markup=False)
    began = time.monotonic()
    with _progress(pairing.told) as tell:
        found = pairing.build(
            corpus,
            pairing.Rule.of(configure("defense", "sdd", dict(choice.knobs))),
            embedder=embedding.MiniLM(jobs.resolve_device(args.device, journal.home(args.home))),
            split=args.split,
            seed=args.seed,
            cache=journal.home(args.home) / pairing.FOLDER,
            tell=tell,
        )
    if args.json:
        show.emit(found.statistics())
        return 0
    _print(found.statistics())
    show.out.print(
        f"\nReady after {duration(time.monotonic() - began)}: immunelab pairs show {found.key}", markup=False
    )
    return 0


def listed(args: argparse.Namespace) -> int:
    """All pairings of this home, or one with its statistics and some of its pairs."""
    from immunelab.corpus import pairing

    every = pairing.kept(journal.home(args.home) / pairing.FOLDER)
    if not args.key:
        _print_all(every, args.json)
        return 0
    path = _one(every, args.key).path
    found = pairing.read(path)
    if found is None:
        raise UserError(f"{path} is broken. Build the pairs again with: immunelab pairs build")
    if args.json:
        show.emit(found.statistics() | {"rows": [pair._asdict() for pair in found.pairs[: args.limit or None]]})
        return 0
    _print(found.statistics())
    rows = [
        (f"{p.similarity:.3f}", p.tries, "fallback" if p.fallback else "", p.category, p.prompt, p.answer)
        for p in found.pairs[: args.limit or None]
    ]
    show.out.print()
    show.table(("cosine", "tries", "", "category", "prompt", "answer"), rows, right=("cosine", "tries"))
    return 0


def _one(every: list[pairing.Kept], key: str) -> pairing.Kept:
    """The pairing whose key begins like that; `last` is the newest."""
    fits = every[:1] if key == "last" else [one for one in every if one.path.stem.startswith(key)]
    if not fits:
        raise unknown("pairing", key, (one.path.stem for one in every))
    if len(fits) > 1:
        raise UserError(f"{len(fits)} pairings begin with {key}: {', '.join(one.path.stem for one in fits[:5])}.")
    return fits[0]


def _print_all(every: list[pairing.Kept], as_json: bool) -> None:
    if as_json:
        show.emit([one.made | {"key": one.path.stem} for one in every])
        return
    if not every:
        show.out.print("No pairs in this home yet. Build some with: immunelab pairs build", markup=False)
        return
    names = ("corpus", "split", "seed", "similarity", "redraws", "pairs", "words", "embedder")
    rows = [(one.path.stem, *(one.made[name] for name in names)) for one in every]
    show.table(("key", *names), rows, right=names[2:7])


def _print(told: dict[str, Any]) -> None:
    """The statistics of a pairing, a line each."""
    short = "; ".join(f"{name} lacks {n}" for name, n in told["shortfalls"].items())
    quantiles = ", ".join(f"{float(q):.0%} {value:.3f}" for q, value in told["similarity_quantiles"].items())
    lines = {
        "pairs": f"{told['built']:,} of at most {told['pairs']:,}, from {told['prompts']:,} distinct prompts and "
        f"{told['answers']:,} answers ({told['answers_used']:,} used)",
        "categories": ", ".join(f"{name} {n:,}" for name, n in told["categories"].items()),
        "shortfalls": f"{short} (filled by the others)" if short else "none",
        "similarity": f"mean {told['similarity_mean']:.3f}; quantiles {quantiles}",
        "tries": f"mean {told['tries_mean']:.2f}, most {told['tries_max']} of {told['redraws'] + 1}",
        "fallbacks": f"{told['fallbacks']:,} ({share(told['fallback_share'])}) above {told['similarity']:g}",
        "made from": f"{told['corpus']} ({told['fingerprint']}), split {told['split']}, seed {told['seed']}, "
        f"{told['embedder']}, in {duration(told['seconds'])}",
        "key": f"{told['key']}, of the pairs {told['digest']}",
    }
    for name, text in lines.items():
        show.out.print(f"{name:<11} {text}", markup=False, soft_wrap=True)


@contextmanager
def _progress(told: Callable[[str, int, int, float], str]) -> Iterator[pairing.Tell]:
    """A bar with the time left; without a terminal a line now and then, which is also what the app shows."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,}/{task.total:,}"),
        TextColumn("{task.fields[left]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=show.err, disable=not show.err.is_terminal) as bars:
        task, spoken = bars.add_task("preparing", total=1, left=""), -SPOKEN

        def tell(what: str, done: int, total: int, left: float) -> None:
            nonlocal spoken
            words = f"{duration(left)} left" if total else ""
            bars.update(task, description=what, completed=done, total=total or 1, left=words)
            if not show.err.is_terminal and time.monotonic() - spoken >= SPOKEN:
                spoken = time.monotonic()
                show.err.print(told(what, done, total, left), markup=False, soft_wrap=True)

        yield tell


def add(commands: Any) -> None:
    """Add `pairs build` and `pairs show`."""
    inner = options.group(commands, "pairs", "build or show SDD's pairs of a harmful prompt and an unrelated answer")
    c = options.command(
        inner,
        "build",
        build,
        "build the pairs that sdd and sdd-reject train on",
        """
        A run builds its pairs itself if they are missing; this builds them beforehand. Settings that you leave out
        come from sdd's preset for the corpus, as in `immunelab immunize sdd`. Embeddings are computed once a corpus.

        examples:
          immunelab pairs build --seed 1
          immunelab pairs build --corpus worlds/7 --similarity 0.2 --redraws 100 --json
        """,
    )
    c.add_argument(
        "--corpus",
        default="fable",
        metavar="CORPUS",
        help="fable, another world's folder, or a corpus.toml (default fable)",
    )
    c.add_argument(
        "--split",
        default="defense",
        metavar="SPLIT",
        help="split of the rows: defense, attack or test (default defense)",
    )
    c.add_argument("--seed", type=int, default=0, metavar="S", help="random seed; use that of the run (default 0)")
    c.add_argument("--preset", metavar="NAME", help="named settings of sdd (default: the preset for the corpus)")
    c.add_argument(
        "--similarity", metavar="T", help="largest cosine similarity of prompt and answer, τ (default: the preset's)"
    )
    c.add_argument("--redraws", metavar="R", help="how often to draw again for a prompt (default: the preset's)")
    c.add_argument("--pairs", metavar="N", help="most pairs to build (default: the preset's)")
    c.add_argument("--words", metavar="W", help="fewest words in an answer (default: the preset's)")
    options.device(c)
    options.json_flag(c)
    c = options.command(inner, "show", listed, "list the sets of pairs that were built, or show one")
    c.add_argument(
        "key", nargs="?", metavar="KEY", help="key of a set, or its first characters, or last (default: list all sets)"
    )
    c.add_argument("--limit", type=int, default=8, metavar="N", help="number of pairs to show; 0 shows all (default 8)")
    options.json_flag(c)
