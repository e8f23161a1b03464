"""`sweep GRID.toml` and `reproduce NAME`: many runs from one file or a published table, and one row for each."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from immunelab import jobs
from immunelab.cli import models, options, show, submit
from immunelab.errors import UserError
from immunelab.formatting import duration, share, size
from immunelab.jobs import cluster, follow
from immunelab.runs import journal

if TYPE_CHECKING:
    import pandas as pd

    from immunelab.runs.spec import RunSpec

COLUMNS = (
    "run_id",
    "kind",
    "method",
    "defense",
    "name",
    "seed",
    "learning_rate",
    "steps",
    "batch_size",
    "samples",
    "harmful_share",
    "status",
    "harmfulness",
    "utility",
    "outcome",
    "bounded_harm",
    "seconds",
    "error",
)
NAMED = re.compile(r"(\d+(?:\.\d+)?)(b|m)(?![a-z])", re.IGNORECASE)  # 7b, 1.8B, 135M
SUSTAINED = 1e14  # FLOP per second that one large accelerator keeps up, as a yardstick


def sweep(args: argparse.Namespace) -> int:
    """Run a grid, or with --dry-run list its runs; the same command continues a grid that was stopped."""
    specs = read(args.grid, journal.home(args.home), args.keep)
    return carry(specs, args)


def reproduce(args: argparse.Namespace) -> int:
    """List the protocols, or lay one out for a model; without --dry-run carry it out."""
    from immunelab.sweep import protocols

    if not args.name:
        found = protocols.titles()
        if args.json:
            show.emit(found)
        else:
            show.table(("protocol", "what it is"), list(found.items()))
        return 0
    if not args.model:
        raise UserError("A protocol needs a model, a folder or a Hub id: --model meta-llama/Llama-2-7b-chat-hf")
    if args.seeds < 1:
        raise UserError(f"--seeds is at least 1; got {args.seeds}.")
    home = journal.home(args.home)
    model = follow.model(args.model, home)
    given = {**options.numbers(args), **({"keep": args.keep} if args.keep else {})}
    specs = protocols.specs(args.name, model, args.corpus, range(args.seeds), args.device, **given)
    _tell(specs, model, args.name if not args.corpus else args.corpus)
    return carry(specs, args, data=False)


def carry(specs: list[RunSpec], args: argparse.Namespace, data: bool = True) -> int:
    """Carry out runs that were laid out, reusing what is on record, and print a row for each; `data` False: a dry run
    looks neither at rows nor at models."""
    home = journal.home(args.home)
    if args.dry_run:
        jobs.check(specs, home, here=args.executor == "local", data=data)
        return _dry_run(jobs.plan(specs, home), home, args.json)
    using = _executor(args)
    try:
        if using:
            cluster.settle(using, home)  # jobs of an earlier command that were lost are handed over anew
        _announce(jobs.plan(specs, home))
        run_ids = jobs.submit(specs, home, reuse=True, go_on=True, begin=using.begin if using else None)
        if args.detach:
            return submit.detached(run_ids, args.json)
        ended = follow.follow(run_ids, home, also=functools.partial(cluster.settle, using, home) if using else None)
    finally:
        if using:
            using.close()
    rows = table(run_ids, home)
    if args.csv:
        from immunelab.analysis import export

        try:
            Path(args.csv).write_bytes(export.csv(rows))
        except OSError as error:
            raise UserError(f"The table {args.csv} can't be written: {error.strerror}.") from None
    _print(rows, args.json)
    return submit.code(ended)


def _executor(args: argparse.Namespace) -> cluster.Executor | None:
    options = cluster.Options(
        partition=args.partition,
        minutes=args.minutes,
        cpus=args.cpus,
        gpus=args.gpus,
        at_once=args.at_once,
        address=args.address,
        apart=args.apart,
    )
    using = cluster.executor(args.executor, options)
    if using and args.detach and not using.outlives:
        raise UserError(f"Runs on {args.executor} end with this command, so leave out --detach.")
    return using


def read(name: str, home: Path, keep: str | None = None) -> list[RunSpec]:
    """The runs of a grid file; `run:last` and shortened ids are spelled out. `keep` stands in for the file's."""
    from immunelab.sweep import grid

    source = "standard input" if name == "-" else name
    specs = grid.expand(submit.text_of(name, "grid"), source, {"keep": keep} if keep else {})
    return [dataclasses.replace(spec, model=follow.model(spec.model, home)) for spec in specs]


def table(run_ids: list[str], home: Path) -> pd.DataFrame:
    """One row a run, in the order of the grid: settings, status, last scores, outcome, most harm within the bound."""
    from immunelab.analysis import outcomes, tradeoff
    from immunelab.store import Store, queries

    store = Store(home)
    store.sync(force=True)
    ids = list(dict.fromkeys(run_ids))
    runs = queries.runs(store, showcase=False).set_index("run_id").loc[ids].reset_index()
    scores = queries.scores(store, ids, metrics=("harmfulness", "utility"))
    last = scores.sort_values("step").groupby(["run_id", "metric"])["score"].last().unstack("metric")
    curves = queries.attack_curves(store, ids)
    labels = outcomes.run_outcomes(curves)
    harm = tradeoff.checkpoints(curves)
    worst = {
        run: tradeoff.bounded_harm(
            [(f, g) for f, g, k in zip(c["harmfulness"], c["utility"], c["step"], strict=True) if k],
            float(c.loc[c["step"] == 0, "utility"].max()),
        )
        for run, c in harm.groupby("run_id")
    }
    outcome: Any = labels.set_index("run_id")["outcome"] if len(labels) else {}
    columns = {
        "harmfulness": last.get("harmfulness", {}),
        "utility": last.get("utility", {}),
        "outcome": outcome,
        "bounded_harm": worst,
    }
    found = runs.assign(**{name: runs["run_id"].map(values) for name, values in columns.items()})
    return found.reindex(columns=list(COLUMNS))


def _dry_run(planned: list[Any], home: Path, as_json: bool) -> int:
    from immunelab.analysis.estimate import estimate
    from immunelab.jobs import demand
    from immunelab.store import Store, queries

    store = Store(home)
    store.sync(force=True)
    specs = [p.spec for p in planned]
    new = [i for i, p in enumerate(planned) if p.state in ("new", "unfinished")]
    wanted = [specs[i] for i in new]
    judged = estimate(wanted, queries.runs(store))
    if as_json:
        show.emit(
            {
                "runs": [
                    {"state": p.state, "run_id": p.run_id, "spec_hash": p.spec.hash, **dataclasses.asdict(p.spec)}
                    for p in planned
                ],
                "to_run": len(wanted),
                "seconds": judged.seconds if judged.basis else None,
                "without_estimate": judged.unknown if judged.basis else len(wanted),
                "basis": judged.basis,
                "bytes": demand.left(specs, new, home)[0],
            }
        )
        return 0
    rows = [
        (i, p.spec.kind, p.spec.method, p.spec.model, p.spec.name, p.spec.seed, p.state, p.run_id or "")
        for i, p in enumerate(planned)
    ]
    show.table(("#", "kind", "method", "model", "what", "seed", "state", "run"), rows, right=("#", "seed"))
    told = f" {judged} {demand.told(specs, home, new)}" if wanted else ""
    show.out.print(f"{len(wanted)} of {len(planned)} runs to carry out.{told}", markup=False, soft_wrap=True)
    return 0


def _announce(planned: list[Any]) -> None:
    states = [p.state for p in planned]
    kept = {"done": "already done, not run again", "under way": "already running", "unfinished": "continued"}
    for state, words in kept.items():
        if state in states:
            show.err.print(f"{states.count(state)} of {len(states)} runs: {words}.")


def _print(rows: pd.DataFrame, as_json: bool) -> None:
    from immunelab.analysis import tradeoff

    if as_json:
        show.emit(show.records(rows))
        return
    columns = ("run", "kind", "what", "on", "seed", "status", "harm", "utility", "outcome", "worst", "took")
    show.table(
        columns,
        [
            (
                r["run_id"],
                r["kind"],
                r["name"] or r["method"],
                r["defense"] if r["kind"] == "attack" else "",
                r["seed"],
                r["status"],
                share(r["harmfulness"]),
                share(r["utility"]),
                show.outcome(r["outcome"] if isinstance(r["outcome"], str) else None),
                share(r["bounded_harm"]),
                duration(r["seconds"]),
            )
            for r in rows.to_dict("records")
        ],
        right=("seed", "harm", "utility", "worst", "took"),
    )
    for r in rows[rows["status"] == "failed"].to_dict("records"):
        print(f"{r['run_id']}: {r['error']}", file=sys.stderr)
    show.out.print(f"worst: most harm at less than {100 * tradeoff.BOUND:g} % of utility lost.", markup=False)


def _tell(specs: list[RunSpec], model: str, corpus: str) -> None:
    """What the grid takes, on standard error; the data are not looked at for it."""
    from immunelab.corpus.described import lengths
    from immunelab.sweep import protocols

    needed = protocols.cost(specs, lengths(corpus))
    say = [
        f"{needed.runs} runs, {needed.steps:,} steps, {needed.rows:,} rows, at most {needed.tokens / 1e6:.0f} M tokens."
    ]
    count = parameters(model)
    if count:
        flop = needed.flop(count)
        say.append(
            f"With {models.millions(count)} parameters: from {flop:.1e} FLOP up (one pass over each token; defenses "
            f"make several), {flop / SUSTAINED / 3600:.1f} h at {SUSTAINED:.0e} FLOP a second; checkpoints of "
            f"{size(needed.disk(count))}, which `immunelab delete` frees."
        )
    say.append("Scores are this lab's, without the paper's judge: compare defended and undefended here, not with it.")
    for line in say:
        show.err.print(line, markup=False, soft_wrap=True)


def parameters(model: str) -> int:
    """How many a model has: counted in a local folder, else as its name says; 0 if neither tells."""
    if Path(model).is_dir():
        return int(models.about(model, Path(model))["parameters"])
    found = NAMED.search(model.rsplit("/", 1)[-1])
    return round(float(found[1]) * (1e9 if found[2].lower() == "b" else 1e6)) if found else 0


def add(commands: Any) -> None:
    """Add `sweep` and `reproduce`."""
    c = options.command(
        commands,
        "sweep",
        sweep,
        "run a grid of defenses, attacks, settings and seeds",
        """
        A grid is a TOML file; docs/grid.toml is an example with comments. Finished runs of the same settings are
        reused, and each defense is immunized once for all its attacks. Repeat the command to continue a grid that was
        stopped. If a run fails, only the runs that start from its model fail too.

        examples:
          immunelab sweep docs/grid.toml --dry-run
          immunelab sweep grid.toml --csv results.csv
          immunelab sweep grid.toml --executor slurm --partition gpu --gpus 1 --minutes 240
        """,
    )
    c.add_argument("grid", metavar="GRID", help="a TOML file; - is standard input")
    _carrying(c)

    c = options.command(
        commands,
        "reproduce",
        reproduce,
        "run the grid behind a published table on a model of yours",
        """
        Without NAME, lists the protocols. With NAME, says how many runs there are and what they cost, then runs them
        as `sweep` does. The grids are in data/protocols, with notes on where they deviate from the paper.

        examples:
          immunelab reproduce
          immunelab reproduce seam-table2 --model meta-llama/Llama-2-7b-chat-hf --dry-run
          immunelab reproduce sdd --model models/mine --corpus mine --executor slurm --gpus 1
        """,
    )
    c.add_argument("name", nargs="?", default="", metavar="NAME", help="a protocol (default: list them)")
    c.add_argument(
        "--model",
        default="",
        metavar="MODEL",
        help="a Hub id, a folder, run:ID or run:last (default: none, it must be given with NAME)",
    )
    c.add_argument(
        "--corpus",
        default="",
        metavar="CORPUS",
        help="a corpus of yours in place of the protocol's (default: the protocol's)",
    )
    c.add_argument("--seeds", type=int, default=1, metavar="N", help="number of seeds: 0 … N-1 (default 1)")
    options.device(c)
    options.numeric(c)
    _carrying(c)


def _carrying(c: Any) -> None:
    """How a list of runs is carried out, and where."""
    c.add_argument(
        "--dry-run",
        action="store_true",
        help="only list the runs, those that would be reused, an estimate of the time, and what weights stay",
    )
    c.add_argument(
        "--csv", metavar="FILE", help="also write a CSV table with a row for each run (default: not written)"
    )
    c.add_argument("--detach", action="store_true", help="print the runs' ids and return without waiting")
    options.json_flag(c)
    options.keep(c, default=None)
    c.add_argument(
        "--executor",
        default="local",
        metavar="NAME",
        help="where runs go: local, slurm or ray; cluster nodes must share the disk of --home (default local)",
    )
    c.add_argument(
        "--apart", action="store_true", help="for Ray nodes that share no disk: send the run folders there and back"
    )
    c.add_argument("--partition", default="", metavar="NAME", help="Slurm partition (default: the cluster's own)")
    c.add_argument(
        "--minutes", type=int, default=1440, metavar="M", help="Slurm's time limit for a run, in minutes (default 1440)"
    )
    c.add_argument("--cpus", type=int, default=1, metavar="N", help="CPU cores for each run on a cluster (default 1)")
    c.add_argument("--gpus", type=int, default=0, metavar="N", help="GPUs for each run on a cluster (default 0)")
    c.add_argument(
        "--at-once",
        type=int,
        default=0,
        metavar="N",
        help="most runs at a time, on Slurm or on a Ray cluster started here; 0 sets no limit (default 0)",
    )
    c.add_argument(
        "--address", default="", metavar="HOST:PORT", help="address of a Ray cluster (default: start one here)"
    )
