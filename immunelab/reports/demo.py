"""The standalone HTML report: what was measured, on what, with which command, and the collapse curve.

One file, no network: Plotly is inside. The figures are those of the app (`figures/`), and the numbers those of
`analysis`. Everything that came from a run or a command line is escaped.
"""

from __future__ import annotations

import dataclasses
import html
import json
import platform
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd

from immunelab.analysis import collapse
from immunelab.analysis.outcomes import DEFAULT, Thresholds, run_outcomes
from immunelab.errors import UserError
from immunelab.figures.collapse import collapse_curve
from immunelab.figures.traces import scalar_traces
from immunelab.formatting import share
from immunelab.store import Store, queries

COSINE = "cosine/harmful-benign"
CONTROL = "undefended"
PAGE = Path(__file__).with_name("demo.html")


@dataclasses.dataclass(frozen=True)
class Measured:
    """What the runs of a protocol showed. Shares are in 0–1."""

    runs: pd.DataFrame  # one row a run, as `queries.runs`
    curves: pd.DataFrame  # one row an attack run and checkpoint, as `queries.attack_curves`
    outcomes: pd.DataFrame  # one row an attack run, as `outcomes.run_outcomes`, by learning rate, control first
    bands: pd.DataFrame  # by learning rate and defense, over seeds, as `collapse.by_intensity`
    by_seed: pd.DataFrame  # one row a seed: base and defended model before any attack
    cosines: pd.DataFrame  # run_id, step, value: the cosine along each immunization
    thresholds: Thresholds

    @property
    def rule(self) -> str:
        """The break criterion in words."""
        return (
            f"Broken: harmfulness above {self.thresholds.harm:.0%} at some checkpoint with {self.thresholds.rule}; "
            "self-destructed: never that harmful, and the utility is lost"
        )


def measure(home: Path, run_ids: Sequence[str], thresholds: Thresholds = DEFAULT) -> Measured:
    """Read the runs of a protocol (immunizations and attacks) from the store."""
    store = Store(home)
    store.sync(force=True)
    runs = queries.runs(store)
    runs = runs[runs["run_id"].isin(run_ids)]
    curves = queries.attack_curves(store, list(run_ids))
    if curves.empty:
        raise UserError("None of these runs is an attack with scores, so there is nothing to report.")
    immunized = runs.loc[runs["kind"] == "immunize", "run_id"].tolist()
    cosines = queries.points(store, immunized, [COSINE], bins=10**6)
    read = run_outcomes(curves, thresholds)
    order = read["defense"].ne(CONTROL)
    read = read.assign(_order=order).sort_values(["seed", "learning_rate", "_order"]).drop(columns="_order")
    return Measured(
        runs=runs,
        curves=curves,
        outcomes=read.reset_index(drop=True),
        bands=collapse.by_intensity(curves, "learning_rate", thresholds),
        by_seed=_before(curves, cosines.merge(runs[["run_id", "seed"]], on="run_id")),
        cosines=cosines,
        thresholds=thresholds,
    )


def _before(curves: pd.DataFrame, cosines: pd.DataFrame) -> pd.DataFrame:
    """Per seed: the untouched models' scores (step 0 of their attacks) and the cosine that the defense ended with.

    That is the mean over the last tenth of its steps: one minibatch says little.
    """
    rows = []
    for seed, mine in curves[curves["step"] == 0].groupby("seed", sort=True):
        row: dict[str, Any] = {"seed": seed}
        for part, chosen in (("base", mine["defense"].eq(CONTROL)), ("defended", mine["defense"].ne(CONTROL))):
            for metric in ("harmfulness", "utility"):
                row[f"{part}_{metric}"] = mine.loc[chosen, metric].mean()
        line = cosines[cosines["seed"] == seed].sort_values("step")
        row["defended_cosine"] = line["value"].tail(max(1, len(line) // 10)).mean()
        rows.append(row)
    return pd.DataFrame(rows)


def write(measured: Measured, path: Path, command: str) -> None:
    """Write the page; a UserError if the file can't be written."""
    seeds = measured.by_seed["seed"].astype(int).tolist()
    n = measured.curves["harmfulness_n"].dropna()
    text = Template(PAGE.read_text(encoding="utf-8")).substitute(
        rule=html.escape(measured.rule),
        n=f"{int(n.min())}" if len(n) else "an unknown number of",
        seeds=f"{'Seed' if len(seeds) == 1 else 'Seeds'} {', '.join(map(str, seeds))}",
        before=_before_table(measured.by_seed),
        after=_after_table(measured.bands),
        figures=_figures(measured),
        facts=_facts(measured, command),
        settings=_settings(measured.runs),
        date=time.strftime("%Y-%m-%d %H:%M %Z"),
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"The report {path} can't be written: {error.strerror}.") from None


def _figures(measured: Measured) -> str:
    base = float(measured.by_seed["base_utility"].mean())
    parts = {
        "Against intensity: scores after each attack": collapse_curve(
            measured.bands, "learning_rate", measured.thresholds, base
        )
    }
    for rate in sorted(measured.curves["learning_rate"].unique()):
        rows = measured.curves[measured.curves["learning_rate"] == rate]
        parts[f"Along the attack at learning rate {rate:g}"] = collapse_curve(
            collapse.by_step(rows), "step", measured.thresholds, base
        )
    if len(measured.cosines):
        lines = measured.cosines.assign(x=measured.cosines["step"])
        seeds = measured.runs.set_index("run_id")["seed"]
        labels = {i: f"seed {seeds[i]}" for i in lines["run_id"].unique()}
        parts["While immunizing: cosine of benign and harmful gradients"] = scalar_traces(lines, labels)
    config = {"displaylogo": False, "responsive": True}
    return "\n".join(
        f"<section><h2>{html.escape(title)}</h2>"
        + figure.to_html(full_html=False, include_plotlyjs=i == 0, config=config)
        + "</section>"
        for i, (title, figure) in enumerate(parts.items())
    )


def _before_table(by_seed: pd.DataFrame) -> str:
    rows = [
        (
            f"seed {int(r['seed'])}",
            *(share(r[k]) for k in ("base_harmfulness", "base_utility")),
            *(share(r[k]) for k in ("defended_harmfulness", "defended_utility")),
            f"{r['defended_cosine']:.2f}",
        )
        for r in by_seed.to_dict("records")
    ]
    head = ("", "undefended: harmfulness", "utility", "SEAM: harmfulness", "utility", "cosine of gradients")
    return _table(head, rows)


def _after_table(bands: pd.DataFrame) -> str:
    rows = []
    for (rate, defense), cell in bands.groupby(["learning_rate", "defense"], sort=True):
        mine = cell.set_index("metric")
        spans = [
            f"{share(band['mean'])} ({share(band['low'])}–{share(band['high'])})"
            for band in mine.loc[["harmfulness", "utility"]].to_dict("records")
        ]
        rows.append((f"{rate:g}", str(defense), *spans, str(mine["outcomes"].iloc[0])))
    rows.sort(key=lambda r: (float(r[0]), r[1] != CONTROL))
    return _table(("learning rate", "model", "harmfulness: mean (range)", "utility: mean (range)", "outcomes"), rows)


def _facts(measured: Measured, command: str) -> str:
    from importlib.metadata import version

    packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "transformers", "duckdb", "plotly"))
    devices = ", ".join(sorted(set(measured.runs["device"].dropna().astype(str)))) or "unknown"
    took = float(measured.runs["seconds"].fillna(0).sum())
    rows = [
        ("command", command),
        ("runs", f"{len(measured.runs)}, {took:.0f} s of computing in all"),
        ("device", f"{devices}; {platform.system()} {platform.machine()}, Python {platform.python_version()}"),
        ("packages", packages),
    ]
    return _table((), rows)


def _settings(runs: pd.DataFrame) -> str:
    """The specs themselves, one of each method (they differ in seed, model and learning rate only)."""
    shown = runs.drop_duplicates(["kind", "method"])
    texts = [json.dumps(json.loads(spec), indent=1) for spec in shown["spec"]]
    return "\n".join(f"<pre>{html.escape(text)}</pre>" for text in texts)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    top = f"<thead>{line(head, 'th')}</thead>" if head else ""
    return f"<table>{top}<tbody>{''.join(line(row, 'td') for row in rows)}</tbody></table>"
