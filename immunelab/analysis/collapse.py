"""The collapse curve: harmfulness and utility against attack steps and against intensity, as bands over seeds.

Frames in, frames out. `curves` is what `store.queries.attack_curves` returns: one row per attack run and checkpoint.
Every number is a recorded run's or the mean, minimum and maximum over recorded runs; nothing is interpolated.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from immunelab.analysis.outcomes import ATTACK, DEFAULT, Thresholds, counts, run_outcomes, worst
from immunelab.analysis.variants import KEYS, Variant, complete, each, of, told_apart
from immunelab.runs.spec import CorpusName

INTENSITY = ("learning_rate", "steps", "samples", "harmful_share")  # what an attack's intensity is made of
METRICS = ("harmfulness", "utility")
USABLE = ("done", "queued", "running", "stopping")  # states of runs that figures show


def by_step(curves: pd.DataFrame) -> pd.DataFrame:
    """Bands along the attack: defense, variant, step, metric, mean, low, high, n (runs at this step)."""
    return _bands(complete(curves), [*KEYS, "step"])


def by_intensity(curves: pd.DataFrame, x: str = "learning_rate", thresholds: Thresholds = DEFAULT) -> pd.DataFrame:
    """Bands of the scores after the attack, one row per defense, variant, x and metric.

    Columns: defense, variant, x, metric, mean, low, high, n, outcome (the worst of the cell), outcomes (such as
    "2 broken, 1 resisted"). Only runs that reached their last checkpoint belong here: pass finished runs.
    """
    read, keys = run_outcomes(complete(curves), thresholds), [*KEYS, x]
    if read.empty:
        return pd.DataFrame(columns=[*keys, "metric", "mean", "low", "high", "n", "outcome", "outcomes"])
    bands = _bands(read, keys)
    cells = read.groupby(keys)["outcome"].agg(outcome=worst, outcomes=describe).reset_index()
    return bands.merge(cells, on=keys, how="left")


def describe(labels: Any) -> str:
    """A cell's outcomes in words, the worst first: "2 broken, 1 resisted"."""
    return ", ".join(f"{n} {name}" for name, n in counts(labels).items() if n)


def base_utility(curves: pd.DataFrame) -> float:
    """The utility of the base model that these attacks share, before anything was done to it; NaN if not recorded."""
    return round(float(curves["base_utility"].dropna().mean()), 12)  # the same for any choice of its attacks


def recorded(curves: pd.DataFrame, setting: str, choice: Mapping[str, Any] | None = None) -> list[Any]:
    """The recorded values of a setting, in order; with `choice`, only of runs that match it."""
    rows = select(curves, choice or {})
    return sorted(rows[setting].dropna().unique().tolist())


def select(curves: pd.DataFrame, choice: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of runs whose settings equal the choice, or are in it where it is a list."""
    rows = curves
    for setting, value in choice.items():
        rows = rows[rows[setting].isin(value) if isinstance(value, list | tuple) else rows[setting] == value]
    return rows


def one_attack(curves: pd.DataFrame, x: str, chosen: Iterable[str] = ()) -> pd.DataFrame:
    """The rows of one attack along `x`, which is "step" or a setting: no band mixes attacks.

    Every setting other than `x` and the `chosen` ones keeps its most frequent value; of equally frequent values, the
    middle one.
    """
    rows = curves
    for setting in ATTACK:
        if setting in rows and setting != x and setting not in set(chosen) and rows[setting].notna().any():
            counted = rows.groupby(setting)["run_id"].nunique()
            usual = sorted(counted.index[counted == counted.max()])
            rows = rows[rows[setting] == usual[len(usual) // 2]]
    return rows


def subjects(curves: pd.DataFrame) -> list[str]:
    """The subjects (`spec.subject`) to choose from: first those of this lab's own runs, newest first, then those of
    shipped runs, the most frequent first."""
    runs = curves.drop_duplicates("run_id")
    shipped = runs["showcase"].astype(bool)
    own = runs.loc[~shipped, "subject"].iloc[::-1]
    return list(dict.fromkeys([*own, *runs.loc[shipped, "subject"].value_counts().index]))


def comparable(curves: pd.DataFrame, subject: str | None = None, asked: Collection[str] = ()) -> pd.DataFrame:
    """The finished and live attacks that may be drawn together: on one subject (by default the first of `subjects`),
    with defenses told apart by their settings, one run per variant, attack and seed, and no archived runs. Runs that
    were `asked` for by id stand for their repeats.

    If attacks with all hazard domains of a corpus are recorded, those with a part of the domains are left out: their
    harmfulness is another quantity, and only the scorecard reads them.
    """
    kept = curves[curves["status"].isin(USABLE) & ~curves["archived"].astype(bool)]
    kept = kept[kept["subject"].isin([subject] if subject is not None else subjects(kept)[:1])]
    names = {c: CorpusName.read(str(c)) for c in kept["corpus"].unique()}
    whole = [c for c, name in names.items() if not name.part or name.whole not in names]
    return without_repeats(told_apart(kept[kept["corpus"].isin(whole)]), asked)


def without_repeats(curves: pd.DataFrame, asked: Collection[str] = ()) -> pd.DataFrame:
    """One run per variant of a defense, attack and seed: one that was asked for, then a finished one before others, one
    of this lab before a shipped one, and the newest.

    Otherwise a repeated run would count twice in a band, and n would be larger than the number of seeds.
    """
    runs = curves.drop_duplicates("run_id").assign(
        others=lambda f: ~f["run_id"].isin(asked), unfinished=lambda f: f["status"] != "done"
    )
    order = [k for k in ("others", "unfinished", "showcase") if k in runs.columns]
    keys = [k for k in (*KEYS, *ATTACK, "seed") if k in runs.columns]
    newest = runs.sort_values("run_id", ascending=False).sort_values(order, kind="stable")
    kept = newest.drop_duplicates(keys)
    return curves[curves["run_id"].isin(kept["run_id"])]


def marks(read: pd.DataFrame) -> pd.DataFrame | None:
    """A mark at the end of each defense's curve: its worst outcome over seeds."""
    rows = []
    for variant, mine in each(read.dropna(subset=["outcome"])):
        metric = "harmfulness" if str(worst(mine["outcome"])).startswith("broken") else "utility"
        at = variant._asdict() | {"step": mine["final_step"].max(), "metric": metric}
        rows.append(at | {"mean": mine[metric].mean(), "outcome": worst(mine["outcome"])})
    return pd.DataFrame(rows) if rows else None


def missing(curves: pd.DataFrame, choice: Mapping[str, Any], wanted: Sequence[Variant]) -> list[Variant]:
    """The variants without a recorded run with exactly these settings."""
    rows = select(curves, choice)
    return [v for v in wanted if of(rows, v).empty]


def nearest(values: Sequence[float], wanted: float) -> float:
    """The recorded value nearest to a wanted one, for links to values that are not (or no longer) recorded."""
    return min(values, key=lambda v: abs(v - wanted))


def _bands(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    long = rows.melt(id_vars=keys, value_vars=list(METRICS), var_name="metric", value_name="value")
    grouped = long.dropna(subset=["value"]).groupby([*keys, "metric"], sort=True)["value"]
    return grouped.agg(mean="mean", low="min", high="max", n="count").reset_index()
