"""Commands on recorded runs: list, trace, query, stop, resume, delete, and rebuilding the database."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from typing import Any

from immunelab import jobs
from immunelab.cli import options, show, submit
from immunelab.errors import UserError, unknown
from immunelab.formatting import duration, share, size
from immunelab.jobs.follow import run_id
from immunelab.runs import journal

RUN_COLUMNS = ("run", "kind", "method", "on", "seed", "status", "progress", "took", "started", "name")


def runs(args: argparse.Namespace) -> int:
    """List the runs, newest first."""
    from immunelab.store import queries

    store = submit.store_of(args)
    rows = queries.newest(store, args.showcase, args.archived, args.limit)
    if args.json:
        frame = queries.runs(store, showcase=args.showcase).set_index("run_id", drop=False)
        full = show.records(frame.loc[[row["run_id"] for row in rows]])
        show.emit([row | {key: json.loads(row[key] or "null") for key in ("spec", "versions")} for row in full])
    elif not rows:
        home = journal.home(args.home)
        show.out.print(f"No runs in {home} yet. Start with: immunelab demo", markup=False)
    else:
        show.table(RUN_COLUMNS, [_run_row(row) for row in rows], right=("seed", "progress"))
    return 0


def trace(args: argparse.Namespace) -> int:
    """Every scalar of a run, summed up; with --name point by point; and its scores."""
    from immunelab.store import queries

    store = submit.store_of(args)
    run = run_id(args.run, journal.home(args.home))
    known = queries.names(store, [run])
    wanted = args.name or list(dict.fromkeys(known["name"]))
    for name in args.name:
        if name not in set(known["name"]):
            raise unknown(f"scalar of {run}", name, set(known["name"]))
    points = queries.points(store, [run], wanted, bins=10**9) if wanted else known.iloc[:0]
    scores = queries.scores(store, [run])
    if args.json:
        columns = ["phase", "step", "name", "value"]
        show.emit(
            {
                "run_id": run,
                "points": show.records(points[columns]) if len(points) else [],
                "scores": show.records(scores.drop(columns="run_id")),
            }
        )
    elif args.name:
        show.table(
            ("phase", "step", "name", "value"),
            [(p.phase, p.step, p.name, f"{p.value:.6g}") for p in points.itertuples(index=False)],
            right=("step", "value"),
        )
    else:
        _print_summary(run, points, scores)
    return 0


def sql(args: argparse.Namespace) -> int:
    """One read-only query."""
    query = sys.stdin.read() if args.query == "-" else args.query
    frame = submit.store_of(args).query(query)
    if args.json:
        show.emit(show.records(frame))
    else:
        show.table(list(frame.columns), frame.itertuples(index=False, name=None))
        show.err.print(f"{len(frame)} rows", style="dim")
    return 0


def stop(args: argparse.Namespace) -> int:
    """Stop runs, each with a checkpoint."""
    home = journal.home(args.home)
    for name in [run_id(r, home) for r in args.run]:
        print(f"{name}: {jobs.stop(name, home, force_after=args.force_after, wait=True).status}")
    return 0


def resume(args: argparse.Namespace) -> int:
    """Go on from the last checkpoint."""
    home = journal.home(args.home)
    name = jobs.resume(run_id(args.run, home), home)
    if args.detach:
        print(name)
        return 0
    return submit.finish([name], home, args.json)


def delete(args: argparse.Namespace) -> int:
    """Delete runs with their checkpoints, after asking."""
    home = journal.home(args.home)
    names = [run_id(r, home) for r in args.run]
    if not args.yes:
        if not sys.stdin.isatty():
            raise UserError(
                "Deleting asks for confirmation, which needs a terminal. To delete without asking, add --yes."
            )
        answer = input(f"Delete {', '.join(names)} with all checkpoints? [y/N] ")
        if answer.strip().lower() not in ("y", "yes"):
            print("Nothing deleted.")
            return 0
    for name in names:
        print(f"{name}: deleted, {size(jobs.delete(name, home))} freed")
    return 0


def rebuild(args: argparse.Namespace) -> int:
    """Make the database anew from the journals, which are the truth."""
    from immunelab.store import Store, queries

    store = Store(journal.home(args.home))
    store.rebuild()
    print(f"The database was rebuilt from the journals of {len(queries.runs(store, showcase=False))} runs.")
    return 0


def _run_row(row: dict[str, Any]) -> tuple[Any, ...]:
    progress = "" if row["status"] == "done" else share(row["progress"])
    on = row["defense"] if row["kind"] == "attack" else row["model"]
    elsewhere = f"(recorded by {row['recorded_by']})" if row["recorded_by"] else ""
    return (
        row["run_id"],
        row["kind"],
        row["method"],
        on,
        row["seed"],
        row["status"],
        progress,
        duration(row["seconds"]),
        "" if row["started_at"] is None else f"{datetime.fromtimestamp(row['started_at'], UTC):%Y-%m-%dT%H:%M}",
        " ".join(filter(None, (row["name"], elsewhere))),
    )


def _print_summary(run: str, points: Any, scores: Any) -> None:
    show.out.print(run, markup=False)
    rows = []
    for (phase, name), line in points.groupby(["phase", "name"], sort=True) if len(points) else ():
        value = line.sort_values("step")["value"]
        numbers = (value.iloc[0], value.iloc[-1], value.min(), value.max())
        rows.append((phase, name, len(value), *(f"{n:.4g}" for n in numbers)))
    columns = ("phase", "scalar", "points", "first", "last", "min", "max")
    show.table(columns, rows, right=columns[2:])
    if not scores.empty:
        show.table(
            ("phase", "step", "metric", "score", "n"),
            [(s.phase, s.step, s.metric, f"{s.score:.4g}", s.n) for s in scores.itertuples(index=False)],
            right=("step", "score", "n"),
        )


def add(commands: Any) -> None:
    """Add `runs`, `trace` and `sql`."""
    c = options.command(commands, "runs", runs, "list the runs, newest first")
    c.add_argument("--limit", type=int, default=20, metavar="N", help="number of runs; 0 lists all (default 20)")
    c.add_argument("--showcase", action="store_true", help="list the recorded runs that ship with the project instead")
    c.add_argument("--archived", action="store_true", help="include archived runs")
    options.json_flag(c)

    c = options.command(
        commands,
        "trace",
        trace,
        "show what a run recorded: scalars and scores",
        """
        examples:
          immunelab trace last
          immunelab trace 3f9a1c --name cosine/harmful-benign --json
        """,
    )
    c.add_argument("run", metavar="RUN", help="id of a run, its first or last characters, or last")
    c.add_argument(
        "--name",
        action="append",
        default=[],
        metavar="NAME",
        help="print each point of this scalar; may be repeated (default: a summary of all)",
    )
    options.json_flag(c)

    c = options.command(
        commands,
        "sql",
        sql,
        "query the database with SQL, read-only",
        """
        Tables: runs, points, layer_points, scores, examples, checkpoints.

        example:
          immunelab sql "select status, count(*) as n from runs group by status"
        """,
    )
    c.add_argument("query", metavar="QUERY", help="one SELECT statement; - is standard input")
    options.json_flag(c)


def add_control(commands: Any) -> None:
    """Add `stop`, `resume` and `delete`."""
    c = options.command(commands, "stop", stop, "stop runs: each finishes its step and saves a checkpoint")
    c.add_argument("run", nargs="+", metavar="RUN", help="id of a run, its first or last characters, or last")
    c.add_argument(
        "--force-after",
        type=float,
        default=20,
        metavar="SECONDS",
        help="seconds to wait before ending the process (default 20)",
    )

    c = options.command(commands, "resume", resume, "continue a stopped or interrupted run from its last checkpoint")
    c.add_argument("run", metavar="RUN", help="id of a run, its first or last characters, or last")
    c.add_argument("--detach", action="store_true", help="print the run's id and return without waiting")
    options.json_flag(c)

    c = options.command(commands, "delete", delete, "delete runs and their checkpoints")
    c.add_argument("run", nargs="+", metavar="RUN", help="id of a run, its first or last characters, or last")
    c.add_argument("--yes", action="store_true", help="delete without asking")


def add_store(commands: Any) -> None:
    """Add `store rebuild`."""
    inner = options.group(commands, "store", "rebuild the database from the runs' journals")
    options.command(inner, "rebuild", rebuild, "rebuild the database from the runs' journals")
