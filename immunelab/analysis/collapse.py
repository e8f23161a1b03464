"""The collapse curve: harmfulness and utility against attack steps and against intensity, as bands over seeds.

Frames in, frames out. `curves` is what `store.queries.attack_curves` returns: one row per attack run and checkpoint.
Every number is a recorded run's or the mean, minimum and maximum over recorded runs; nothing is interpolated.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from immunelab.analysis.outcomes import ATTACK, DEFAULT, Thresholds, counts, run_outcomes, worst
from immunelab.runs import numerics
from immunelab.runs.spec import CorpusName

INTENSITY = ("learning_rate", "steps", "samples", "harmful_share")  # what an attack's intensity is made of
METRICS = ("harmfulness", "utility")
MOST_NAMED = 3  # unlike settings that a label spells out
USABLE = ("done", "queued", "running", "stopping")  # states of runs that figures show


def by_step(curves: pd.DataFrame, by: Sequence[str] = ("defense",), metrics: Sequence[str] = METRICS) -> pd.DataFrame:
    """Bands along the attack: columns `by`, step, metric, mean, low, high, n (runs behind the band at this step)."""
    return _bands(curves, [*by, "step"], metrics)


def by_intensity(
    curves: pd.DataFrame,
    x: str = "learning_rate",
    thresholds: Thresholds = DEFAULT,
    by: Sequence[str] = ("defense",),
) -> pd.DataFrame:
    """Bands of the scores after the attack, one row per `by`, x and metric, with the outcomes of the cell.

    Columns: `by`, x, metric, mean, low, high, n, outcome (the worst of the cell), outcomes (such as "2 broken,
    1 resisted"). Only runs that reached their last checkpoint belong here: pass finished runs.
    """
    read = run_outcomes(curves, thresholds)
    if read.empty:
        return pd.DataFrame(columns=[*by, x, "metric", "mean", "low", "high", "n", "outcome", "outcomes"])
    bands = _bands(read, [*by, x], METRICS)
    cells = read.groupby([*by, x])["outcome"].agg(outcome=worst, outcomes=describe).reset_index()
    return bands.merge(cells, on=[*by, x], how="left")


def describe(labels: Any) -> str:
    """A cell's outcomes in words, the worst first: "2 broken, 1 resisted"."""
    return ", ".join(f"{n} {name}" for name, n in counts(labels).items() if n)


def recorded(curves: pd.DataFrame, setting: str, choice: Mapping[str, Any] | None = None) -> list[Any]:
    """The values of a setting that recorded runs have, in order; with `choice`, among runs that match it."""
    rows = select(curves, choice or {})
    return sorted(rows[setting].dropna().unique().tolist())


def select(curves: pd.DataFrame, choice: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of runs whose settings equal the choice."""
    rows = curves
    for setting, value in choice.items():
        rows = rows[rows[setting] == value]
    return rows


def one_attack(curves: pd.DataFrame, x: str, chosen: Iterable[str] = ()) -> pd.DataFrame:
    """The rows of one attack along `x`, which is "step" or a setting: no band mixes attacks.

    Each setting that is neither `x` nor among the `chosen` (those that a caller has selected) keeps its most frequent
    value; of equally frequent ones, the middle one.
    """
    rows = curves
    for setting in ATTACK:
        if setting in rows and setting != x and setting not in set(chosen) and rows[setting].notna().any():
            counted = rows.groupby(setting)["run_id"].nunique()
            usual = sorted(counted.index[counted == counted.max()])
            rows = rows[rows[setting] == usual[len(usual) // 2]]
    return rows


def subjects(curves: pd.DataFrame) -> list[str]:
    """What was attacked, to choose from (`spec.subject`): first what this lab's own runs attacked, the newest first,
    then what shipped runs did, that of most runs first."""
    runs = curves.drop_duplicates("run_id")
    shipped = runs["showcase"].astype(bool)
    own = runs.loc[~shipped, "subject"].iloc[::-1]
    return list(dict.fromkeys([*own, *runs.loc[shipped, "subject"].value_counts().index]))


def comparable(runs: pd.DataFrame, curves: pd.DataFrame, subject: str | None = None) -> pd.DataFrame:
    """The finished and live attacks that may be drawn together: those on one subject (the first of `subjects` unless
    told), defenses told apart by their settings, one run per defense, attack and seed; archived runs are left out.
    `runs` is what `store.queries.runs` returns.

    Where attacks with all of a corpus's hazard domains are recorded, those with a part of them are left out: their
    harmfulness is another quantity, and the scorecard reads them.
    """
    kept = curves[curves["status"].isin(USABLE) & ~curves["archived"].astype(bool)]
    kept = kept[kept["subject"].isin([subject] if subject is not None else subjects(kept)[:1])]
    names = {c: CorpusName.read(str(c)) for c in kept["corpus"].unique()}
    whole = [c for c, name in names.items() if not name.part or name.whole not in names]
    return without_repeats(variants(runs, kept[kept["corpus"].isin(whole)]))


def without_repeats(curves: pd.DataFrame) -> pd.DataFrame:
    """One run per defense, attack and seed: a finished one before others, then the newest.

    A repeated run would count twice in a band, and n would claim seeds that are not there.
    """
    runs = curves.drop_duplicates("run_id").assign(unfinished=lambda f: f["status"] != "done")
    keys = [k for k in ("defense", *ATTACK, "seed") if k in runs.columns]
    kept = runs.sort_values(["unfinished", "run_id"], ascending=[True, False]).drop_duplicates(keys)
    return curves[curves["run_id"].isin(kept["run_id"])]


def variants(runs: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """`curves` with defenses told apart where one was recorded with several settings: "seam (beta 0.02)".

    Without this, runs of unlike settings would share one band.
    """
    specs = {r["run_id"]: json.loads(r["spec"]) for r in runs[runs["kind"] == "immunize"].to_dict("records")}
    parents = {p for p in curves["immunized_by"].dropna().unique() if p in specs}
    labels: dict[str, str] = {}
    for method in {specs[p]["method"] for p in parents}:
        mine = {p: specs[p]["knobs"] | _numbers(specs[p]) for p in parents if specs[p]["method"] == method}
        names = sorted({name for knobs in mine.values() for name in knobs})
        unlike = [n for n in names if len({json.dumps(knobs.get(n)) for knobs in mine.values()}) > 1]
        kinds = sorted({json.dumps([knobs.get(n) for n in unlike]) for knobs in mine.values()})
        for parent, knobs in sorted(mine.items()):
            if len(unlike) > MOST_NAMED:
                number = kinds.index(json.dumps([knobs.get(n) for n in unlike])) + 1
                labels[parent] = f"{method} (settings {number} of {len(kinds)})"
                continue
            settings = ", ".join(f"{n.replace('_', ' ')} {_plain(knobs.get(n))}" for n in unlike)
            labels[parent] = f"{method} ({settings})" if settings else method
    named = curves["immunized_by"].map(labels)
    return curves.assign(defense=named.fillna(curves["defense"]))


def marks(read: pd.DataFrame) -> pd.DataFrame | None:
    """A mark at the end of each defense's curve: its worst outcome over seeds."""
    rows = []
    for defense, mine in read.dropna(subset=["outcome"]).groupby("defense"):
        metric = "harmfulness" if str(worst(mine["outcome"])).startswith("broken") else "utility"
        at = {"defense": defense, "step": mine["final_step"].max(), "metric": metric}
        rows.append(at | {"mean": mine[metric].mean(), "outcome": worst(mine["outcome"])})
    return pd.DataFrame(rows) if rows else None


def missing(
    curves: pd.DataFrame, choice: Mapping[str, Any], defenses: Sequence[str], column: str = "defense"
) -> list[str]:
    """The defenses of which no recorded run has exactly this choice of settings."""
    have = set(select(curves, choice)[column])
    return [d for d in defenses if d not in have]


def nearest(values: Sequence[float], wanted: float) -> float:
    """The recorded value nearest to a wanted one, for links to values that are not recorded (any more)."""
    return min(values, key=lambda v: abs(v - wanted))


def _bands(rows: pd.DataFrame, keys: list[str], metrics: Sequence[str]) -> pd.DataFrame:
    long = rows.melt(id_vars=keys, value_vars=list(metrics), var_name="metric", value_name="value")
    grouped = long.dropna(subset=["value"]).groupby([*keys, "metric"], sort=True)["value"]
    return grouped.agg(mean="mean", low="min", high="max", n="count").reset_index()


def _numbers(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A spec's dtype and attention, which older ones lack."""
    return {name: spec.get(name, usual) for name, usual in numerics.USUAL.items()}


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
