"""`assess`: within a time budget, tune a defense on a model, attack the result, and write its card and a page."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from immunelab import jobs
from immunelab.cli import options, show, submit, tune
from immunelab.errors import UserError
from immunelab.formatting import duration, share
from immunelab.jobs import follow
from immunelab.runs import journal, numerics
from immunelab.runs.spec import RunSpec

if TYPE_CHECKING:
    from immunelab.store import Store

TUNING = 0.75  # of the budget; the rest is for what the card needs besides
MOST = 10_000  # settings: the time is what ends a tuning here


def assess(args: argparse.Namespace) -> int:
    """Tune, complete the card as far as the time goes, and write; the same command goes on where it stopped."""
    from immunelab.jobs import demand
    from immunelab.sweep import tuning

    if not args.hours > 0:
        raise UserError(f"--hours is more than 0, and got {args.hours:g}.")
    home, seconds = journal.home(args.home), 3600 * args.hours
    named = {key: getattr(args, key) for key in ("panel", "vary", "world") if getattr(args, key) is not None}
    settings: dict[str, Any] = {"trials": MOST, **named, **args.knobs, "budget_seconds": round(TUNING * seconds)}
    model = follow.model(args.model, home)
    numbers = options.numbers(args)
    specs = tuning.tune_specs([args.defense], model, args.corpus, args.seed, settings, args.device, **numbers)
    jobs.check(specs, home, new=range(len(specs)))
    first, rest = duration(TUNING * seconds), duration((1 - TUNING) * seconds)
    show.err.print(
        f"{args.defense} on {args.model}: {first} for tuning, {rest} for the rest of the card. "
        + demand.told(specs, home),
        markup=False,
        soft_wrap=True,
    )
    (run_id,) = submit.once(specs, home)
    ended = follow.follow([run_id], home)
    if code := submit.code(ended):
        show.err.print(ended[run_id].error or "Stopped. Repeat the command to continue.", markup=False)
        return code
    won = _winner(run_id, home)
    code = _complete(won, args, home, (1 - TUNING) * seconds)
    if code == 130:
        show.err.print("Stopped. Repeat the command to continue.")
        return code
    folder = Path(args.to) if args.to else home / "reports" / f"{args.defense}-{run_id[-6:]}"
    _write(won, folder, submit.store_of(args))
    return code


def _winner(run_id: str, home: Path) -> dict[str, Any]:
    """What the tuning came to: the event of its end, with the winner's immunization."""
    from immunelab.store import Store, queries

    store = Store(home)
    store.sync(force=True)
    events = queries.tunings(store, [run_id])
    return {str(key): value for key, value in events[events["event"] == "tuned"].iloc[-1].items()}


def _complete(won: dict[str, Any], args: argparse.Namespace, home: Path, seconds: float) -> int:
    """The runs that the card lacks, for as many seeds as the time that is left allows."""
    from immunelab import corpus, sweep
    from immunelab.analysis.estimate import estimate
    from immunelab.reports import seeds_of
    from immunelab.store import queries

    store = submit.store_of(args)
    runs = queries.runs(store)
    mine = runs[runs["run_id"].isin(seeds_of(runs, won["run_id"]))]
    spec = RunSpec.from_json(str(mine["spec"].iloc[-1]), won["run_id"])
    made = {int(spec.seed): won["run_id"]}
    others = [int(seed) for seed in sorted(mine["seed"].unique()) if int(seed) != spec.seed]
    domains = corpus.domains(corpus.load(args.corpus).rows)
    wish: dict[str, Any] = {
        "defense": spec.method,
        "knobs": spec.knobs,
        "model": str(mine["base_model"].iloc[-1]),
        "corpus": args.corpus,
        "made": made,
        "hold_out": domains[-1] if len(domains) > 1 else "",
        "device": args.device,
        "numbers": {key: getattr(spec, key) for key in numerics.USUAL},
    }
    ahead: list[RunSpec] = []
    for count in range(len(others) + 1, 0, -1):
        ahead = [
            dataclasses.replace(one, keep="none")
            for one in sweep.scorecard_specs(**wish, seeds=[spec.seed, *others[: count - 1]])
        ]
        planned = jobs.plan(ahead, home)
        wanted = [one.spec for one in planned if one.state != "done"]
        told = estimate(wanted, runs)
        known = told.seconds * len(wanted) / max(1, len(wanted) - told.unknown)  # what has no record takes as long
        if not wanted or (told.basis and known <= seconds):  # with nothing to judge by, nothing is started
            break
    else:
        show.err.print(
            f"The card lacks {len(wanted)} runs, which take longer than is left ({duration(known)}). To run them: "
            f"immunelab scorecard {won['run_id']} --run-missing",
            markup=False,
            soft_wrap=True,
        )
        return 0
    if not wanted:
        return 0
    show.err.print(f"{len(wanted)} more runs for the card. {told}", markup=False, soft_wrap=True)
    ids = jobs.submit(ahead, home, reuse=True, go_on=True)
    return submit.code(follow.follow(ids, home))


def _write(won: dict[str, Any], folder: Path, store: Store) -> None:
    """The card as Markdown and HTML, and the page with its figures, into a folder."""
    from immunelab import reports
    from immunelab.reports import static_page
    from immunelab.store import queries

    runs = queries.runs(store)
    card = reports.of(store, reports.seeds_of(runs, won["run_id"]))
    subject = str(runs.loc[runs["run_id"] == won["run_id"], "subject"].iloc[0])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "card.md").write_text(reports.markdown(card), encoding="utf-8")
        (folder / "card.html").write_text(reports.page(card), encoding="utf-8")
    except OSError as error:
        raise UserError(f"The card can't be written to {folder}: {error.strerror}. Name another folder: --to") from None
    static_page.write(store, folder / "page.html", static_page.Choice(subject))
    verdict = "accepted" if won["accepted"] else "not accepted"
    show.out.print(
        f"{won['tuned']}, {'its preset' if won['preset'] else 'tuned'}: {share(won['harm'])} harm by the worst of the "
        f"panel at {share(won['kept'])} of the utility, {verdict} by the limits of the run.\n"
        f"{folder / 'card.html'} and {folder / 'page.html'} open from disk; card.md is the card as text.",
        markup=False,
        soft_wrap=True,
    )


def add(commands: Any) -> None:
    """Add `assess`."""
    c = options.command(
        commands,
        "assess",
        assess,
        "in a given time: tune a defense on a model, attack the result, write its card",
        """
        What a model provider runs overnight. Three quarters of the time go into tuning, as `tune` does it, with its
        confirmation by other seeds; the rest into what the immunization card needs besides, for as many seeds as there
        is time. At the end a folder holds the card (card.md, card.html) and a page with all figures (page.html).
        Ctrl-C stops with a checkpoint; repeat the command to continue. Settings of `tune` are options too, such as
        --confirm 1 --confirm-seeds 2.

        examples:
          immunelab assess seam --model models/mine --corpus mine --hours 8
          immunelab assess adversarial-loss --hours 0.5 --confirm 1 --confirm-seeds 1
        """,
    )
    c.add_argument("defense", metavar="DEFENSE", help="name of a defense, see immunelab methods")
    c.set_defaults(knobs={})
    c.add_argument("--hours", type=float, default=8.0, metavar="H", help="time for all of it (default 8)")
    c.add_argument(
        "--model",
        default="fable",
        metavar="MODEL",
        help="model to immunize: fable, a Hub id, a folder or run:ID (default fable)",
    )
    c.add_argument(
        "--corpus",
        default="fable",
        metavar="CORPUS",
        help="fable, another world's folder, or a corpus.toml (default fable)",
    )
    tune.panel_options(c)
    c.add_argument("--set", action="append", metavar="SETTING=VALUE", help="the same as --SETTING VALUE")
    c.add_argument("--seed", type=int, default=0, metavar="S", help="random seed of the trials (default 0)")
    options.device(c)
    options.numeric(c)
    c.add_argument("--to", metavar="DIR", help="folder for card and page (default: a new one in HOME/reports)")
