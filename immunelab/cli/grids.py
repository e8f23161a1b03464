"""`sweep GRID.toml`: many runs from one file, reused where they are on record, and one row for each at the end."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from immunelab import jobs
from immunelab.cli import show, start
from immunelab.errors import UserError
from immunelab.formatting import duration, share
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


def sweep(args: argparse.Namespace) -> int:
    """Carry out a grid, or with --dry-run only say what it would take; the same command goes on where it ended."""
    specs = read(args.grid, journal.home(args.home))
    start.check(specs)
    return carry(specs, args)


def carry(specs: list[RunSpec], args: argparse.Namespace) -> int:
    """Carry out runs that were laid out, reusing what is on record, and print a row for each."""
    home = journal.home(args.home)
    if args.dry_run:
        jobs.check(specs, home, here=args.executor == "local")
        return _dry_run(jobs.plan(specs, home), home, args.json)
    using = _executor(args)
    try:
        if using:
            cluster.settle(using, home)  # jobs of an earlier command that were lost are handed over anew
        _announce(jobs.plan(specs, home))
        run_ids = jobs.submit(specs, home, reuse=True, go_on=True, begin=using.begin if using else None)
        if args.detach:
            return start.detached(run_ids, args.json)
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
    return start.code(ended)


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


def read(name: str, home: Path) -> list[RunSpec]:
    """The runs of a grid file; `run:last` and shortened ids are spelled out."""
    from immunelab.sweep import grid

    source = "standard input" if name == "-" else name
    specs = grid.expand(start.text_of(name, "grid"), source)
    return [
        dataclasses.replace(s, model=s.model if s.model.startswith("run:#") else follow.model(s.model, home))
        for s in specs
    ]


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
    from immunelab.store import Store, queries

    store = Store(home)
    store.sync(force=True)
    wanted = [p.spec for p in planned if p.state in ("new", "unfinished")]
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
            }
        )
        return 0
    rows = [
        (i, p.spec.kind, p.spec.method, p.spec.model, p.spec.name, p.spec.seed, p.state, p.run_id or "")
        for i, p in enumerate(planned)
    ]
    show.table(("#", "kind", "method", "model", "what", "seed", "state", "run"), rows, right=("#", "seed"))
    show.out.print(f"{len(wanted)} of {len(planned)} runs to carry out. {judged if wanted else ''}", markup=False)
    return 0


def _announce(planned: list[Any]) -> None:
    states = [p.state for p in planned]
    kept = {"done": "on record and not run again", "under way": "under way already", "unfinished": "gone on with"}
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
