"""What commands do with runs: submit them, follow them to their end, print their scores, and give an exit code."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from immunelab import jobs
from immunelab.cli import show
from immunelab.errors import UserError
from immunelab.formatting import duration, share
from immunelab.jobs import follow
from immunelab.method import catalogue
from immunelab.runs import journal
from immunelab.runs.spec import RunSpec
from immunelab.runs.status import LARGEST_DOCUMENT

if TYPE_CHECKING:
    from immunelab.store import Store


def store_of(args: argparse.Namespace) -> Store:
    """The store, with everything taken in that journals hold by now."""
    from immunelab.store import Store

    home = journal.home(args.home)
    jobs.reconcile(home)
    store = Store(home)
    store.sync(force=True)
    return store


def text_of(name: str, what: str) -> str:
    """The text of a file that a user names, or of standard input for -; a UserError where it can't be read."""
    source = "standard input" if name == "-" else name
    try:
        with contextlib.nullcontext(sys.stdin.buffer) if name == "-" else Path(name).open("rb") as file:
            raw = file.read(LARGEST_DOCUMENT + 1)  # a device or a pipe may never end
        text = raw.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"The {what} {source[:300]} can't be read: {error}.") from None
    if len(raw) > LARGEST_DOCUMENT:
        raise UserError(f"The {what} {source} is larger than {LARGEST_DOCUMENT >> 20} MB, which no {what} is.")
    return text


def launch(specs: list[RunSpec], args: argparse.Namespace, note: str = "") -> int:
    """Submit specs; return at once with --detach, else follow them to their end and print what came out. The note is
    told once they are queued; whoever waits hears how long it will take."""
    home = journal.home(args.home)
    run_ids = jobs.submit(specs, home)
    if note:
        show.err.print(note, markup=False)
    if args.detach:
        return detached(run_ids, args.json)
    show.err.print(foretold(specs, home), markup=False, soft_wrap=True)
    return finish(run_ids, home, args.json)


def foretold(specs: list[RunSpec], home: Path) -> str:
    """How long runs will take, by those on record, and what weights they leave."""
    from immunelab.analysis.estimate import estimate
    from immunelab.jobs import demand
    from immunelab.store import Store, queries

    store = Store(home)
    store.sync(force=True)
    return f"{estimate(specs, queries.runs(store))} {demand.told(specs, home)}".strip()


def once(specs: list[RunSpec], home: Path) -> list[str]:
    """Submit sweeps. A finished equal one is not run again, one that was cut short is gone on with; both are told."""
    for planned in jobs.plan(specs, home):
        if planned.state != "new":
            more = "already done, not run again" if planned.state == "done" else f"{planned.state}, continued"
            show.err.print(f"{planned.run_id}: {more}", markup=False)
    return jobs.submit(specs, home, reuse=True, go_on=True)


def detached(run_ids: list[str], as_json: bool) -> int:
    """Print the ids of runs that nobody waits for."""
    if as_json:
        show.emit({"run_ids": run_ids})
    else:
        print("\n".join(run_ids))
    return 0


def finish(run_ids: list[str], home: Path, as_json: bool) -> int:
    """Follow runs to their end, print their scores; 0 if all are done, 130 if stopped, else 1."""
    from immunelab.analysis import tasks
    from immunelab.store import Store, queries

    ended = follow.follow(run_ids, home)
    store = Store(home)
    store.sync(force=True)
    every = queries.scores(store, run_ids, splits=None)
    scores, learned = every[every["split"] == "all"], tasks.before_and_after(queries.runs(store), every)
    if as_json:
        rows, labelled = show.records(scores), show.records(learned)
        show.emit(
            [
                {
                    "run_id": i,
                    "status": s.status,
                    "error": s.error,
                    "scores": [r for r in rows if r["run_id"] == i],
                    "tasks": [r for r in labelled if r["run_id"] == i],
                }
                for i, s in ended.items()
            ]
        )
    else:
        for run_id, status in ended.items():
            _print_scores(run_id, status, scores[scores["run_id"] == run_id])
            _print_tasks(learned[learned["run_id"] == run_id])
    return code(ended)


def code(ended: Mapping[str, journal.Status]) -> int:
    """The exit code of runs that have ended: 0 if all are done, 1 if one failed, 130 if one was stopped."""
    if any(s.status in ("failed", "interrupted") for s in ended.values()):
        return 1
    return 130 if any(s.status == "stopped" for s in ended.values()) else 0


def _print_scores(run_id: str, status: journal.Status, scores: Any) -> None:
    show.out.print(f"{run_id}  {status.status} after {duration(status.seconds)}", markup=False)
    if not scores.empty:
        wide = scores.pivot_table(index="step", columns="metric", values="score", sort=False)
        kinds = {name: metric.unit for name, metric in catalogue.metrics().items() if metric.main and name in wide}
        rows = [
            (int(step), *(share(row[m]) if unit == "share" else f"{row[m]:.2f}" for m, unit in kinds.items()))
            for step, row in wide.sort_index().iterrows()
        ]
        show.table(("step", *kinds), rows, right=("step", *kinds))
    if status.status in ("stopped", "interrupted"):
        show.out.print(f"Continue with: immunelab resume {run_id}", markup=False)


def _print_tasks(learned: Any) -> None:
    """Accuracy on labelled tasks before (ZS) and after (FS) a fine-tuning, charitably read and strictly."""
    if learned.empty:
        return
    columns = [c for c in learned.columns[2:-1] if learned[c].notna().any()]
    rows = [(r["task"], *(share(r[c]) for c in columns), r["n"]) for r in learned.to_dict("records")]
    names = [c.replace("_", " ") for c in columns]
    show.table(("task", *names, "n"), rows, right=(*names, "n"))
