"""The protocols of papers as grids: which runs a table in a paper stands for, and what they cost.

Each is a folder of `data/protocols/`: `grid.toml` for the runs, `corpus.toml` for the data, and what deviates from the
paper in their comments. The folder's name is also the name of the corpus.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from immunelab import bundled
from immunelab.errors import unknown
from immunelab.method import catalogue
from immunelab.runs.spec import RunSpec
from immunelab.sweep.grid import expand
from immunelab.sweep.plan import METHODS

FLOP = 6  # of a forward and a backward pass, for each parameter and token (arXiv:2001.08361)


class Cost(NamedTuple):
    """What a list of runs takes at least: optimizer steps, rows trained on, tokens at most, checkpoints left."""

    runs: int
    steps: int
    rows: int
    tokens: int

    def flop(self, parameters: int) -> float:
        """Of one forward and backward pass over each token; most defenses make several, evaluations come on top."""
        return float(FLOP * parameters * self.tokens)

    def disk(self, parameters: int) -> float:
        """Bytes of the fp32 checkpoints that the runs leave."""
        return float(4 * parameters * self.runs)


def folder(name: str) -> Path:
    """Where a protocol's files lie; a UserError with near matches for an unknown name."""
    known = {path.parent.name: path.parent for path in sorted((bundled.data() / "protocols").glob("*/grid.toml"))}
    if name not in known:
        raise unknown("protocol", name, known)
    return known[name]


def titles() -> dict[str, str]:
    """What each protocol is, in the words of its grid's first line."""
    return {
        path.parent.name: path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        for path in sorted((bundled.data() / "protocols").glob("*/grid.toml"))
    }


def specs(
    name: str, model: str, corpus: str = "", seeds: Sequence[int] = (0,), device: str = "auto", **given: str
) -> list[RunSpec]:
    """The runs of a protocol for a model; `corpus` takes other data in the place of the protocol's.

    `given`: the dtype and attention, and which weights to keep.
    """
    keys: dict[str, Any] = {**given, "model": model, "corpus": corpus or name, "seeds": list(seeds), "device": device}
    return expand((folder(name) / "grid.toml").read_text(encoding="utf-8"), f"the protocol {name}", keys)


def cost(runs: Sequence[RunSpec], max_length: int) -> Cost:
    """What runs take, from their settings alone; `max_length`: tokens at which rows are cut off."""
    trained = [run for run in runs if "steps" in run.knobs]
    rows = sum(rows_of(run.kind, run.method, run.knobs, int(run.knobs["steps"])) for run in trained)
    return Cost(len(runs), sum(int(run.knobs["steps"]) for run in trained), rows, rows * max_length)


def rows_of(kind: str, method: str, knobs: Mapping[str, Any], steps: int) -> int:
    """Rows trained on: steps × batch size × accumulation × streams that the method reads."""
    streams = catalogue.entry(METHODS[kind], method).streams
    return int(steps * knobs["batch_size"] * knobs.get("accumulation", 1) * len(streams))
