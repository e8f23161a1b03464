"""Is a destroyed model safe? Break and repair against each defense, beside one stage of the same budget.

    OMP_NUM_THREADS=1 python benchmarks/break_and_repair.py --home repaired-lab

Every model, the undefended one too, is attacked with 60 harmful steps at `BREAK`, then 60 steps of repair in which the
harmful rows weigh p, for each p of `SHARES`; and, as the control, with 120 steps at once, half of the rows benign, at
each rate of `RATES`. Fable, all weights, the presets of the defenses. Runs are kept in the home and are reused, so a
broken-off recording goes on with the same command.
"""

from __future__ import annotations

import argparse
import base64
import datetime
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

import immunelab
from immunelab import jobs
from immunelab.jobs import follow
from immunelab.runs.journal import RunFolder
from immunelab.runs.spec import RunSpec
from immunelab.store import Store, queries
from immunelab.sweep import plan

RESULTS = Path(__file__).parent / "results" / "break_and_repair.json"
DEFENSES = (
    "seam",
    "repnoise",
    "adversarial-loss",
    "sdd",
    "booster",
    "tar",
    "extra-safety-sft",
    "random-noise",
    "vaccine",
    "t-vaccine",
)
DRAWN = ("undefended", "seam", "repnoise", "adversarial-loss", "sdd")
BREAK = 1e-3
SHARES = (0.0, 0.1, 0.5)
RATES = (3e-4, 6e-4, 1e-3)


def main() -> None:
    """Record what is missing, and write the numbers of what is finished."""
    read = argparse.ArgumentParser(description=__doc__)
    read.add_argument("--home", required=True, help="folder for the runs")
    read.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    read.add_argument("--defenses", nargs="+", default=list(DEFENSES))
    read.add_argument("--record", action="store_true", help="only write down what is finished by now")
    read.add_argument("--picture", metavar="FILE", help="also draw the attacks with p = 0.5 as a PNG, in Chromium")
    options = read.parse_args()
    home = Path(options.home).resolve()
    wanted = specs(options.seeds, options.defenses)
    if options.record:
        ids = [p.run_id for p in jobs.plan(wanted, home) if p.run_id and p.state == "done"]
    else:
        ids = jobs.submit(wanted, home, reuse=True, go_on=True)
        follow.follow(ids, home)
    RESULTS.write_text(json.dumps(numbers(home, ids), indent=1) + "\n", encoding="utf-8")
    if options.picture:
        Path(options.picture).write_bytes(picture(home, ids))


def picture(home: Path, ids: Sequence[str]) -> bytes:
    """Harm and utility along break, then repair, of the models in `DRAWN`, as a PNG."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "notebooks"))
    import execute

    curves = queries.attack_curves(Store(home), list(ids))
    mine = curves[(curves["method"] == "break-and-repair") & curves["defense"].isin(DRAWN)]
    shares = {i: RunFolder.open(home, str(i)).spec().knobs["repair_share"] for i in mine["run_id"].unique()}
    figure = immunelab.open(home).collapse([i for i, share in shares.items() if share == 0.5])
    figure.add_vline(x=60, line_dash="dot", line_color="#888")
    return base64.b64decode(execute.picture(json.loads(figure.to_json())))


def specs(seeds: Sequence[int], defenses: Sequence[str]) -> list[RunSpec]:
    """For each defense, the undefended model first, and each seed: the immunization, and the attacks on it."""
    attacks = [
        plan.choose("attack", "break-and-repair", knobs={"learning_rate": BREAK, "repair_share": p}, name=f"p {p:g}")
        for p in SHARES
    ]
    attacks += [
        plan.choose(
            "attack",
            "harmful-sft",
            knobs={"learning_rate": rate, "steps": 120, "harmful_share": 0.5},
            name=f"one stage {rate:g}",
        )
        for rate in RATES
    ]
    found: list[RunSpec] = []
    for defense in ("", *defenses):
        for seed in seeds:
            where: dict[str, Any] = {"corpus": "fable", "seed": seed, "group": "break-and-repair"}
            model = "fable"
            if defense:
                model = f"run:#{len(found)}"
                found.append(plan.one(plan.choose("immunize", defense, name=defense), **where))
            found += [plan.one(attack, model=model, **where) for attack in attacks]
    return found


def numbers(home: Path, ids: Sequence[str]) -> dict[str, Any]:
    """Of each finished attack: harm and utility at its evaluated steps, and the outcome."""
    from immunelab.analysis import outcomes

    store = Store(home)
    store.sync(force=True)
    curves = queries.attack_curves(store, list(ids))
    curves = curves[curves["status"] == "done"]
    labels = outcomes.run_outcomes(curves).set_index("run_id")["outcome"]
    told = []
    for run_id, rows in curves.groupby("run_id", sort=False):
        folder = RunFolder.open(home, str(run_id))
        knobs, first = folder.spec().knobs, rows.iloc[0]
        told.append(
            {
                "on": first["defense"],
                "seed": int(first["seed"]),
                "attack": first["method"],
                "learning_rate": knobs["learning_rate"],
                "repair_share": knobs.get("repair_share"),
                "outcome": labels[run_id],
                "seconds": round(folder.status().seconds or 0.0, 1),
                "steps": rows["step"].tolist(),
                "harm": rows["harmfulness"].round(4).tolist(),
                "utility": rows["utility"].round(4).tolist(),
                "base utility": round(float(first["base_utility"]), 4),
            }
        )
    told.sort(key=lambda r: (r["attack"], r["on"], str(r["repair_share"]), r["learning_rate"], r["seed"]))
    print(table(told).to_string())
    return {
        "runs": told,
        "about": {
            "date": str(datetime.date.today()),
            "command": "python benchmarks/break_and_repair.py",
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, shared with others",
            "versions": RunFolder.open(home, ids[0]).status().versions,
        },
    }


def table(told: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Harm and utility after the last step, mean over seeds, and how many seeds."""
    ends = pd.DataFrame([{**r, "harm": r["harm"][-1], "utility": r["utility"][-1]} for r in told])
    ends["setting"] = [
        f"p {r.repair_share:g}" if r.repair_share == r.repair_share else f"{r.learning_rate:g}"
        for r in ends.itertuples()
    ]
    return ends.groupby(["attack", "setting", "on"])[["harm", "utility"]].agg(["mean", "min", "max", "count"]).round(3)


if __name__ == "__main__":
    main()
