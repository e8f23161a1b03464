"""`demo`, and what is made the same way: `showcase build` and `showcase table`, the recorded runs that ship."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from immunelab import bundled, jobs, sweep
from immunelab.cli import fable, options, show
from immunelab.errors import UserError
from immunelab.formatting import duration, share
from immunelab.jobs import follow
from immunelab.runs import journal

if TYPE_CHECKING:
    import pandas as pd

    from immunelab.runs.spec import RunSpec

CONTROL = "undefended"


def demo(args: argparse.Namespace) -> int:
    """Immunize, attack undefended and defended at every rung; print a table, write report and JSON."""
    seeds, home, began = options.seeds(args.seed, args.seeds), journal.home(args.home), time.monotonic()
    corpus = "fable" if args.fable_seed is None else str(_world(args.fable_seed, home))
    run_ids, code = _run(sweep.demo_specs(seeds=seeds, corpus=corpus), home, args.reuse)
    if code:
        return code
    from immunelab.reports import demo as report

    measured = report.measure(home, run_ids)
    numbers = _numbers(measured, time.monotonic() - began)
    target = Path(args.report or home / "reports" / f"demo-{time.strftime('%Y%m%d-%H%M%S')}.html")
    report.write(measured, target, command=shlex.join(["immunelab", *sys.argv[1:]]))
    if args.json == "-":
        show.emit(numbers)
    else:
        if args.json:
            _write(Path(args.json), json.dumps(show.finite(numbers), indent=1) + "\n")
        _print(measured, numbers)
        show.out.print(f"\nReport: {target}", markup=False, soft_wrap=True)
    return 0


def showcase_build(args: argparse.Namespace) -> int:
    """Run the demo's protocol and more intensities over seeds, and keep the record as Parquet."""
    home = journal.home(args.home)
    target = Path(args.to) if args.to else bundled.data() / "showcase"
    specs = sweep.showcase_specs(options.seeds(0, args.seeds))
    for base in {Path(spec.knobs["base"]) for spec in specs if spec.knobs.get("base")}:
        if not base.is_dir():  # said now, not after hours
            raise UserError(
                f"LoX and Safe LoRA are recorded too, and need Fable's model before its alignment in {base}. About six "
                f"minutes make it: immunelab fable build --keep-base --to {base.parent}"
            )
    run_ids, code = _run(specs, home, reuse=True)
    if code:
        return code
    from immunelab.store import Store, record_showcase

    store = Store(home)
    store.sync(force=True)
    record_showcase.export(store, run_ids, target)
    print(f"{len(run_ids)} runs are recorded in {target}.")
    return 0


def showcase_table(args: argparse.Namespace) -> int:
    """Print the outcome of every defense at every rung and its worst case under search, or write it into the docs."""
    from immunelab.reports import results

    if args.write:
        for path in results.write():
            print(path)
    else:
        print(results.tables()["outcomes"], end="")
    return 0


def _run(specs: list[RunSpec], home: Path, reuse: bool) -> tuple[list[str], int]:
    """The protocol's runs, carried out by one process of their own, and the exit code: 0 if all of them finished."""
    run_ids = jobs.submit(specs, home, reuse=reuse, ready=False)  # what is to be shown or recorded is made here
    kept = sum(journal.RunFolder.open(home, i).status().status == "done" for i in run_ids)
    if kept:
        show.err.print(f"{kept} of {len(run_ids)} runs are already done and are not run again.")
    ended = follow.follow(run_ids, home)
    unfinished = [i for i, s in ended.items() if s.status != "done"]
    if not unfinished:
        return run_ids, 0
    first = unfinished[0]
    show.err.print(
        f"{len(unfinished)} of {len(ended)} runs did not finish; the first, {first}, is {ended[first].status}. "
        f"Log: {home / 'runs' / first / 'log.txt'}\n"
        "Finished runs are kept: add --reuse to use them.",
        markup=False,
        soft_wrap=True,
    )
    return run_ids, 130 if ended[first].status == "stopped" else 1


def _world(seed: int, home: Path) -> Path:
    """The folder of another Fable world, built on first use."""
    folder = home / "worlds" / f"fable-{seed}"
    if not (folder / "model" / "config.json").is_file():
        show.err.print(f"Building the world of seed {seed} and its model, once; it is kept in {folder}.", markup=False)
        fable.train(seed, folder)
    return folder


def _numbers(measured: Any, seconds: float) -> dict[str, Any]:
    """The demo's JSON: means over seeds; with several seeds, each seed's too."""
    by_seed = measured.by_seed
    keys = {"base": ("harmfulness", "utility"), "defended": ("harmfulness", "utility", "cosine")}
    numbers: dict[str, Any] = {
        part: {key: float(by_seed[f"{part}_{key}"].mean()) for key in names} for part, names in keys.items()
    }
    numbers["attacks"] = [
        {
            "defended": row["defense"] != CONTROL,
            "learning_rate": float(row["learning_rate"]),
            "steps": int(row["steps"]),
            "seed": int(row["seed"]),
            "harmfulness": float(row["harmfulness"]),
            "utility": float(row["utility"]),
            "outcome": row["outcome"],
        }
        for row in measured.outcomes.to_dict("records")
    ]
    numbers["seconds"] = round(seconds, 1)
    if len(by_seed) > 1:
        numbers["seeds"] = [
            {"seed": int(row["seed"])} | {p: {k: float(row[f"{p}_{k}"]) for k in names} for p, names in keys.items()}
            for row in by_seed.to_dict("records")
        ]
    return numbers


def _print(measured: Any, numbers: dict[str, Any]) -> None:
    base, defended = numbers["base"], numbers["defended"]
    n = len(measured.by_seed)
    seeds = f"{n} seed{'s' if n > 1 else ''}: " + ", ".join(str(int(s)) for s in measured.by_seed["seed"])
    show.out.print(f"\nBefore any attack ({seeds})", markup=False)
    show.table(
        ("model", "harmfulness", "utility"),
        [
            (name, share(part["harmfulness"]), share(part["utility"]))
            for name, part in (("undefended", base), ("SEAM", defended))
        ],
        right=("harmfulness", "utility"),
    )
    show.out.print(f"cosine of benign and harmful gradients at the end of SEAM: {defended['cosine']:.2f}\n")
    columns = ("learning rate", "model", "harmfulness", "utility", "outcome")
    show.table(columns, _rungs(measured.bands), title="After each attack", right=columns[2:4])
    show.out.print(f"\n{measured.rule}. {duration(numbers['seconds'])}.", markup=False)


def _rungs(bands: pd.DataFrame) -> list[tuple[Any, ...]]:
    rows = []
    for rate, cell in bands.groupby("learning_rate", sort=True):
        for defense in sorted(set(cell["defense"]), key=lambda d: d != CONTROL):
            mine = cell[cell["defense"] == defense].set_index("metric")
            worst, text = mine["outcome"].iloc[0], mine["outcomes"].iloc[0]
            many = int(mine["n"].max()) > 1
            word = show.outcome(worst) if not many else show.outcome(worst).__class__(text, show.outcome(worst).style)
            first = f"{rate:g}" if defense == CONTROL else ""
            rows.append((first, defense, _range(mine.loc["harmfulness"]), _range(mine.loc["utility"]), word))
    return rows


def _range(band: pd.Series) -> str:
    text = share(band["mean"])
    return text if band["n"] == 1 else f"{text} ({share(band['low'])}–{share(band['high'])})"


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} can't be written: {error.strerror}.") from None


def add(commands: Any) -> None:
    """Add `demo`."""
    c = options.command(
        commands,
        "demo",
        demo,
        "immunize the bundled model with SEAM, attack it at every rung, write a report",
        """
        Immunizes the Fable model, then attacks it and the undefended model at every rung: a few fixed intensities,
        from weak to strong. Needs no network and no GPU. Its runs are recorded like any others.

        examples:
          immunelab demo --json demo.json
          immunelab demo --seed 10 --seeds 3 --report report.html
        """,
    )
    c.add_argument("--seed", type=int, default=0, metavar="S", help="first random seed (default 0)")
    c.add_argument("--seeds", type=int, default=1, metavar="N", help="number of seeds: S … S+N-1 (default 1)")
    c.add_argument(
        "--fable-seed",
        type=int,
        metavar="S",
        help="use the world of this seed; build it and its model if needed (default: the bundled world)",
    )
    c.add_argument(
        "--json", metavar="FILE", help="write the results as JSON; - is standard output (default: not written)"
    )
    c.add_argument(
        "--report", metavar="FILE", help="where to write the HTML report (default: a new file in HOME/reports)"
    )
    c.add_argument("--reuse", action="store_true", help="use finished runs of the same spec instead of repeating them")


def add_showcase(commands: Any) -> None:
    """Add `showcase build` and `showcase table`."""
    inner = options.group(commands, "showcase", "record the runs that ship with the project; print their tables")
    c = options.command(
        inner, "build", showcase_build, "run every defense against every attack and record the results (hours)"
    )
    c.add_argument("--seeds", type=int, default=3, metavar="N", help="number of seeds: 0 … N-1 (default 3)")
    c.add_argument("--to", metavar="DIR", help="folder to write to (default: data/showcase)")
    c = options.command(inner, "table", showcase_table, "print the outcomes of the recorded attacks as Markdown")
    c.add_argument("--write", action="store_true", help="write the tables into README.md and docs/results.md instead")
