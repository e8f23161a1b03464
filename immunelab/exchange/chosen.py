"""The runs that are handed to another tool, with what they recorded."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from immunelab.errors import UserError, unknown
from immunelab.runs.spec import RunSpec
from immunelab.store import queries

if TYPE_CHECKING:
    import pandas as pd

    from immunelab.store import Store

MADE_UP = "fable"  # its answers are made up and harmless


class Score(NamedTuple):
    """One measured number, over a whole evaluation."""

    step: int
    evaluation: str
    metric: str
    score: float
    n: int
    stderr: float


@dataclass(frozen=True)
class Chosen:
    """Finished runs. `completions`: answers of real models, which may be harmful, too."""

    store: Store
    runs: pd.DataFrame  # as `queries.runs`
    completions: bool
    license: str = ""
    tell: Callable[[str], object] = lambda _: None  # hears which run is next

    def each(self) -> Iterator[Run]:
        """One after the other."""
        for i, row in enumerate(self.runs.to_dict("records"), start=1):
            self.tell(f"run {i} of {len(self.runs)}")
            yield Run(self, {str(key): value for key, value in row.items()})

    def scored(self) -> Iterator[Run]:
        """Those with scores; a UserError if none has any."""
        found = False
        for run in self.each():
            if run.scores():
                found = True
                yield run
        if not found:
            raise UserError("None of these runs has scores, so there is nothing to write.")


@dataclass(frozen=True)
class Run:
    """One run and what it recorded."""

    of: Chosen
    row: dict[str, Any]

    @property
    def run_id(self) -> str:
        """The run's id."""
        return str(self.row["run_id"])

    @property
    def spec(self) -> RunSpec:
        """What ran."""
        return RunSpec.from_json(str(self.row["spec"]), self.run_id)

    @property
    def seconds(self) -> float:
        """When it ended, or began, in Unix seconds; 0 where neither is known."""
        times = [self.row[name] for name in ("ended_at", "started_at", "queued_at")]
        return next((t.timestamp() for t in times if t == t and t is not None), 0.0)

    def about(self) -> dict[str, Any]:
        """What the run is, flat, with plain values: ids, lineage and settings."""
        spec = self.spec
        found: dict[str, Any] = {"run_id": self.run_id, "spec_hash": spec.hash}
        found |= {name: self.row[name] for name in ("kind", "method", "defense", "base_model", "corpus", "seed")}
        found |= {"model": spec.model, "dtype": spec.dtype, "judge": spec.judge, "recorded_by": spec.recorded_by}
        return {k: v for k, v in found.items() if v != ""} | {f"setting/{k}": v for k, v in spec.knobs.items()}

    def scores(self) -> list[Score]:
        """Its scores over whole evaluations, those that are numbers, by step."""
        rows = queries.scores(self.of.store, [self.run_id]).to_dict("records")
        found = [Score(*(row[name] for name in Score._fields)) for row in rows]
        return [score for score in found if math.isfinite(score.score)]

    def steps(self) -> dict[int, list[Score]]:
        """The scores by step."""
        found: dict[int, list[Score]] = {}
        for score in self.scores():
            found.setdefault(score.step, []).append(score)
        return found

    def traced(self) -> Iterator[tuple[int, float, dict[str, float]]]:
        """Step, Unix seconds, and scalars with scores (`score/…`) by name, step by step; those that are numbers."""
        rows: dict[int, tuple[float, dict[str, float]]] = {}
        names = queries.names(self.of.store, [self.run_id])["name"].unique().tolist()
        points = queries.points(self.of.store, [self.run_id], names, bins=10**9)
        for point in points[points["value"].abs() < math.inf].to_dict("records"):
            rows.setdefault(point["step"], (point["at"], {}))[1][point["name"]] = point["value"]
        for score in self.scores():
            values = rows.setdefault(score.step, (self.seconds, {}))[1]
            values.setdefault(f"score/{score.metric}", score.score)  # of several evaluations the first by name
        for step in sorted(rows):
            yield step, *rows[step]

    def answers(self, step: int, evaluation: str) -> list[dict[str, Any]]:
        """The rows behind a score: id, prompt, answer, expected, score; empty where they must not be given away."""
        if self.row["base_model"] != MADE_UP and not self.of.completions:
            return []
        found = queries.examples(self.of.store, self.run_id, step, evaluation)
        found = found.dropna(subset=["prompt", "answer"])
        rows = [{str(k): v for k, v in row.items()} for row in found.to_dict("records")]
        for i, row in enumerate(rows):
            row["id"] = str(row["id"] or i)
            row["more"] = json.loads(row["more"]) if isinstance(row["more"], str) else {}
        return rows

    def versions(self) -> dict[str, str]:
        """Of Python and packages, as the run recorded them."""
        found: dict[str, str] = json.loads(str(self.row["versions"] or "{}"))
        return found


def choose(
    store: Store, run_ids: Sequence[str], completions: bool, license: str, tell: Callable[[str], object]
) -> Chosen:
    """Finished runs by id, or all of this lab; a UserError if one is not there or not finished, or there is none."""
    runs = queries.runs(store)
    if not run_ids:
        runs = runs[(runs["status"] == "done") & ~runs["showcase"].astype(bool) & (runs["kind"] != "sweep")]
        if runs.empty:
            raise UserError("No run of this lab is finished. Name shipped ones with --run, or start some.")
        return Chosen(store, runs, completions, license, tell)
    states = dict(zip(runs["run_id"], runs["status"], strict=True))
    for run_id in run_ids:
        if run_id not in states:
            raise unknown("run", run_id, states)
        if states[run_id] != "done":
            raise UserError(f"The run {run_id} is {states[run_id]}: only finished runs are exported.")
    return Chosen(store, runs[runs["run_id"].isin(run_ids)], completions, license, tell)
