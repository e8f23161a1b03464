"""`kill -9` of jobs, apps and `store.sync` at random moments, and everyone at once: what is lost, repeated, or held up.

    python benchmarks/reliability.py                  # 50 kills of each kind, some minutes on 2 cores
    python benchmarks/reliability.py --kills 5
    python benchmarks/reliability.py --page           # only write docs/reliability.md again, from the last figures

Stops with a sentence at the first thing that does not hold. Else writes `benchmarks/results/reliability.json`, and
`docs/reliability.md` from it. Needs Linux or macOS.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
os.environ["OMP_NUM_THREADS"] = os.environ["IMMUNELAB_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import small_world

from benchmarks import crowd, kills
from immunelab.experiment.run import versions
from immunelab.method import get, names
from immunelab.runs.spec import RunSpec

RESULTS = ROOT / "benchmarks" / "results" / "reliability.json"
PAGE = ROOT / "docs" / "reliability.md"


def small_specs(world: Path) -> dict[str, RunSpec]:
    """Real training of each kind on a tiny world: some seconds a run, with checkpoints on the way."""
    budget = {"learning_rate": 1e-3, "batch_size": 4}
    chosen = {"plain fine-tuning": ("attack", "harmful-sft", {"steps": 12, "samples": 12})}
    lora = next((name for name in names("attack") if "lora" in name), None)
    if lora:
        chosen["LoRA"] = ("attack", lora, {"steps": 12, "samples": 12})
    chosen["SEAM"] = ("immunize", "seam", {"steps": 8, "retain": 1.0})
    rest: dict[str, Any] = {"evaluate_every": 4, "checkpoint_every": 2, "probe_every": 4, "layers_every": 2}
    return {
        name: RunSpec(
            kind=kind,
            method=method,
            knobs=get(_of(kind), method)(**budget, **own).settings(),
            device="cpu",
            corpus=str(world),
            **rest,
        )
        for name, (kind, method, own) in chosen.items()
    }


def _of(kind: str) -> Any:
    return "defense" if kind == "immunize" else "attack"


def measure(number: int, seed: int, only: list[str]) -> None:
    """All figures, written after each part; a `kills.Loss` at the first thing that does not hold."""

    def say(text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        specs = small_specs(small_world.make(folder / "world"))
        parts = {
            "jobs": lambda: kills.of_jobs(folder / "of-jobs" / "home", specs, number, seed, say),
            "sync": lambda: kills.of_sync(folder / "of-sync" / "home", number, seed, say),
            "apps": lambda: kills.of_apps(folder / "of-apps" / "home", number, seed, say),
            "many at once": lambda: crowd.of_many(
                folder / "of-many" / "home", [s for s in specs.values() for _ in range(2)][:4], None, say
            ),
        }
        for name, part in parts.items():
            if name in only or not only:
                (folder / f"of-{name.split()[0]}" / "home").mkdir(parents=True)
                measured = part()
                found = kills.read_figures(RESULTS) if RESULTS.exists() else {}
                found |= {name: measured, "about": about(seed)}
                RESULTS.parent.mkdir(exist_ok=True)
                RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def about(seed: int) -> dict[str, Any]:
    """What the figures were measured with."""
    return {
        "date": date.today().isoformat(),
        "seed": seed,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, shared with other work",
        "versions": versions(),
    }


def page(found: dict[str, Any]) -> str:
    """docs/reliability.md."""
    of_jobs, sync, apps, many = (found[k] for k in ("jobs", "sync", "apps", "many at once"))
    methods = ", ".join(f"{name} {n}" for name, n in of_jobs["by method"].items())
    states = ", ".join(f"{state} {n}" for state, n in of_jobs["killed while"].items())
    rows = [
        (
            "a job, in real training",
            of_jobs["kills"],
            f"{of_jobs['acknowledged lines']:,} acknowledged journal lines",
            of_jobs["lost lines"],
            0,
        ),
        (
            "`store.sync`, two processes on one home",
            sync["kills"],
            f"{sync['points recorded']:,} points",
            sync["lost"],
            sync["repeated"],
        ),
        (
            "the app, while it draws pages",
            apps["kills"],
            f"{apps['points recorded']:,} points of a run beside it",
            apps["lost"],
            apps["repeated"],
        ),
    ]
    table = "\n".join(f"| {what} | {n} | {of} | {lost} | {twice} |" for what, n, of, lost, twice in rows)
    versions_ = ", ".join(f"{k} {v}" for k, v in found["about"]["versions"].items())
    crowd_rows = "\n".join(f"| {k} | {'yes' if v is True else v} |" for k, v in many.items())
    return f"""# Reliability, measured

<!-- Made by `python benchmarks/reliability.py` from benchmarks/results/reliability.json. Don't edit. -->

The promise: a closed tab, a killed process or a crashed app loses nothing that was recorded. A run whose process
is gone is shown as `interrupted`, is resumed from its last whole checkpoint, and on a CPU ends with the same numbers
as a run that was never interrupted. Measured on {found["about"]["date"]} with seed {found["about"]["seed"]}:
{found["about"]["machine"]}; {versions_}.

## `kill -9` at random moments

| killed | kills | on record | lost | repeated |
|---|---|---|---|---|
{table}

- **Jobs.** By method: {methods}; killed while {states}. After every kill the run was shown as `interrupted`, and the
  database opened. {of_jobs["resumed from a checkpoint"]} of {of_jobs["kills"]} had a checkpoint to go on from, the
  others began again. All {of_jobs["runs finished after kills"]} runs were finished, after up to three kills each;
  {of_jobs["of them equal bit for bit"]} of them ended with every point, every score and the weights equal, bit for
  bit, to an uninterrupted run. (Step times are left out of the comparison.)
- **`store.sync`.** Meanwhile a run recorded a line every millisecond or two. Right after each kill the database opened
  (longest read: {sync["longest read right after a kill, s"]} s), and no point was there twice. At the end every
  point of the journal was stored once, and `immunelab store rebuild` gave an equal database from the journal alone.
- **The app.** {apps["pages asked for"]} pages were asked for over the same socket that browsers use. The run beside
  it had been started as the app starts runs; it went on through all {apps["kills"]} kills in its first attempt.

"Acknowledged" means that the call that records a line has returned; the worker reports that through a pipe, which
outlives it. A power cut is different: the system may lose what it has not yet written to the disk. Events and
checkpoints are forced to the disk, points are not.

## Many at once

Two apps with a session each, a notebook that holds the database open (for writing, up to 3 s), `immunelab runs` in a
loop, two more readers, and {many["jobs"]} jobs for one device. A page waits up to 2 s for the database
file and then names who holds it; a read that took longer spent the rest in its query. Most of a page's time is
drawing, on cores that were shared with other work.

| | |
|---|---|
{crowd_rows}

Smaller versions of these checks are in `tests/jobs/test_reliability.py`. Torn lines, damaged checkpoints, old and new
schemas, full and read-only disks have tests of their own: `test_journal.py`, `test_experiment.py`, `test_store.py`,
`test_no_room.py`.
"""


def main() -> None:
    """Measure, and write figures and page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", default=[], help="jobs, sync, apps or 'many at once'")
    parser.add_argument("--page", action="store_true", help="write the page from the last figures")
    chosen = parser.parse_args()
    if not chosen.page:
        try:
            measure(chosen.kills, chosen.seed, chosen.only)
        except kills.Loss as error:
            sys.exit(f"does not hold: {error}")
    found = kills.read_figures(RESULTS) if RESULTS.exists() else {}
    lacking = {"jobs", "sync", "apps", "many at once"} - set(found)
    if lacking:
        sys.exit(f"{PAGE.name} is not written: there are no figures yet of {', '.join(sorted(lacking))}")
    PAGE.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
