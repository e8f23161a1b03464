"""A grid file: defenses × attacks × settings × seeds, as a list of runs.

    seeds = [0, 1, 2]

    [[defense]]
    method = "seam"
    beta = [0.01, 0.1]          # a list is varied, anything else is fixed

    [[attack]]
    method = "harmful-sft"
    rung = ["0.0003", "0.001"]  # or "all", or preset = "…"; settings go on top

    [[finetune]]
    method = "benign-sft"       # what an honest customer does; keys as for an attack

Each model is immunized once by each variant of each defense, and attacked and fine-tuned by every variant of the
others; with `control` (the default) also the model as it is.
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from immunelab.errors import UserError, unknown
from immunelab.runs import numerics
from immunelab.runs.spec import RunSpec
from immunelab.sweep import plan

MOST = 10_000  # runs in one grid
TABLES = {"defense": "immunize", "attack": "attack", "finetune": "finetune"}  # table: the kind of its runs
DEFAULTS: dict[str, Any] = {
    "name": "sweep",
    "model": "fable",
    "corpus": "fable",
    "device": "auto",
    **numerics.USUAL,
    "seeds": [0],
    "control": True,
    "keep": "last",  # the weights that stay on the disk: none, last or all
    "evaluate_every": 0,  # of attacks and fine-tunes; where it is not given, `plan.every` decides
    **{table: [] for table in TABLES},
}
EXAMPLES = {"defense": "seam", "attack": "harmful-sft", "finetune": "benign-sft"}
EXPECTS = {str: "a text", bool: "true or false", int: "a whole number", list: "a list"}


def expand(text: str, source: str, given: Mapping[str, Any] | None = None) -> list[RunSpec]:
    """The runs of a grid file, in the order in which they are carried out; UserErrors name `source` and the key.

    `given` stands in for keys of the file. `run:#k` names the k-th run of the list, as `jobs.submit` resolves it. Equal
    runs are listed once.
    """
    found = {**_read(text, source), **(given or {})}
    grid = {**DEFAULTS, **found}
    chosen = {
        table: [v for i, one in enumerate(grid[table]) for v in _variants(table, i, one, grid, source)]
        for table in TABLES
    }
    defenses, attacks = chosen["defense"], [*chosen["attack"], *chosen["finetune"]]
    count = len(grid["seeds"]) * (len(defenses) + len(attacks) * (len(defenses) + bool(grid["control"])))
    if not count:
        raise UserError(f"{source} describes no runs: it needs an [[attack]] or a [[defense]] table, and a seed.")
    if count > MOST:
        raise UserError(f"{source} describes {count:,} runs, and {MOST:,} is the most: leave out some values.")
    return plan.crossed(
        defenses,
        attacks,
        seeds=grid["seeds"],
        model=grid["model"],
        control=grid["control"],
        evaluate_every=found.get("evaluate_every"),
        corpus=grid["corpus"],
        device=grid["device"],
        group=grid["name"],
        keep=grid["keep"],
        **{key: grid[key] for key in numerics.USUAL},
    )


def _read(text: str, source: str) -> dict[str, Any]:
    """The file's keys, each of its own type."""
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{source} is not TOML: {error}.") from None
    for key, value in found.items():
        if key not in DEFAULTS:
            raise unknown(f"key of a grid (in {source})", key, DEFAULTS)
        wanted = type(DEFAULTS[key])
        if type(value) is not wanted:
            example = f", such as [[{key}]] tables" if key in TABLES else ""
            raise UserError(f"{source}: {key} is {EXPECTS[wanted]}{example}, and got {value!r:.80}.")
    for i, seed in enumerate(found.get("seeds", ())):
        if type(seed) is not int or seed < 0:
            raise UserError(f"{source}: seeds are whole numbers from 0, and number {i + 1} is {seed!r:.80}.")
    return found


def _variants(table: str, at: int, found: Any, grid: Mapping[str, Any], source: str) -> Iterator[plan.Choice]:
    """A choice, named by what is varied, for each combination of a table's lists."""
    where = f"{source}, {table} {at + 1}"
    if not isinstance(found, dict) or not isinstance(found.get("method"), str):
        raise UserError(f'{where} needs a method, such as method = "{EXAMPLES[table]}".')
    method, corpus = found["method"], grid["corpus"]
    rest = {key: value for key, value in found.items() if key != "method"}
    try:
        if rest.get("rung") == "all":
            rest["rung"] = list(plan.rungs(method, corpus)) or "all"
        lists = {key: value if isinstance(value, list) else [value] for key, value in rest.items()}
        for key, values in lists.items():
            if not values:
                raise UserError(f"{key} is an empty list, so there is nothing to run.")
            if key in ("rung", "preset") and not all(isinstance(value, str) for value in values):
                raise UserError(f'{key} is one text or several, such as {key} = ["0.001"], and got {values!r:.80}.')
        for point in itertools.product(*lists.values()):
            chosen = dict(zip(lists, point, strict=True))
            words = " ".join(f"{key} {chosen[key]}" for key in lists if len(lists[key]) > 1) or method
            preset, rung = chosen.pop("preset", None), chosen.pop("rung", None)
            yield plan.choose(TABLES[table], method, corpus, preset=preset, rung=rung, knobs=chosen, name=words[:200])
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
