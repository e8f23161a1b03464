"""A grid file: defenses × attacks × settings × seeds, as a list of runs.

    seeds = [0, 1, 2]

    [[defense]]
    method = "seam"
    beta = [0.01, 0.1]          # a list is varied, anything else is fixed

    [[attack]]
    method = "harmful-sft"
    rung = ["0.0003", "0.001"]  # or "all", or preset = "…"; settings go on top

Each model is immunized once by each variant of each defense, and attacked by every variant of every attack; with
`control` (the default) the model is attacked as it is, too.
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from immunelab.errors import UserError, unknown
from immunelab.method import get
from immunelab.method.knobs import knobs
from immunelab.runs import numerics
from immunelab.runs.spec import RunSpec
from immunelab.sweep.plan import EVALUATE_EVERY, configured, rungs

MOST = 10_000  # runs in one grid
DEFAULTS: dict[str, Any] = {
    "name": "sweep",
    "model": "fable",
    "corpus": "fable",
    "device": "auto",
    **numerics.USUAL,
    "seeds": [0],
    "control": True,
    "evaluate_every": EVALUATE_EVERY,
    "defense": [],
    "attack": [],
}
CHOICES = ("method", "preset", "rung")  # keys of a table that are no settings
EXPECTS = {str: "a text", bool: "true or false", int: "a whole number", list: "a list"}


def expand(text: str, source: str, given: Mapping[str, Any] | None = None) -> list[RunSpec]:
    """The runs of a grid file, in the order in which they are carried out; UserErrors name `source` and the key.

    `given` stands in for keys of the file. `run:#k` names the k-th run of the list, as `jobs.submit` resolves it. Equal
    runs are listed once. This reads the registry, which imports torch.
    """
    grid = {**_read(text, source), **(given or {})}
    defenses = [v for i, table in enumerate(grid["defense"]) for v in _variants("defense", i, table, grid, source)]
    attacks = [v for i, table in enumerate(grid["attack"]) for v in _variants("attack", i, table, grid, source)]
    count = len(grid["seeds"]) * (len(defenses) + len(attacks) * (len(defenses) + bool(grid["control"])))
    if not count:
        raise UserError(f"{source} describes no runs: it needs an [[attack]] or a [[defense]] table, and a seed.")
    if count > MOST:
        raise UserError(f"{source} describes {count:,} runs, and {MOST:,} is the most: leave out some values.")
    specs: list[RunSpec] = []

    at: dict[str, int] = {}

    def add(spec: RunSpec) -> int:
        """Append a run unless an equal one is in the list already; its position either way."""
        if spec.hash not in at:
            at[spec.hash] = len(specs)
            specs.append(spec)
        return at[spec.hash]

    shared = {"corpus": grid["corpus"], "device": grid["device"], "group": grid["name"]}
    shared |= {key: grid[key] for key in numerics.USUAL}
    for seed in grid["seeds"]:
        models = [grid["model"]] if grid["control"] or not defenses else []
        for name, method in defenses:
            every = max(1, method.settings().get("steps", 4) // 4)
            guard = RunSpec(
                kind="immunize",
                method=method.name,
                knobs=method.settings(),
                model=grid["model"],
                seed=seed,
                evaluate_every=every,
                name=name,
                **shared,
            )
            models.append(f"run:#{add(guard)}")
        for model, (name, method) in itertools.product(models, attacks):
            add(
                RunSpec(
                    kind="attack",
                    method=method.name,
                    knobs=method.settings(),
                    model=model,
                    seed=seed,
                    evaluate_every=grid["evaluate_every"],
                    name=name,
                    **shared,
                )
            )
    return specs


def _read(text: str, source: str) -> dict[str, Any]:
    """The file's keys with defaults filled in, each of its own type."""
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{source} is not TOML: {error}.") from None
    for key, value in found.items():
        if key not in DEFAULTS:
            raise unknown(f"key of a grid (in {source})", key, DEFAULTS)
        wanted = type(DEFAULTS[key])
        if type(value) is not wanted:
            example = f", such as [[{key}]] tables" if key in ("defense", "attack") else ""
            raise UserError(f"{source}: {key} is {EXPECTS[wanted]}{example}, and got {value!r:.80}.")
    grid = DEFAULTS | found
    for i, seed in enumerate(grid["seeds"]):
        if type(seed) is not int or seed < 0:
            raise UserError(f"{source}: seeds are whole numbers from 0, and number {i + 1} is {seed!r:.80}.")
    return grid


def _variants(kind: Any, at: int, table: Any, grid: Mapping[str, Any], source: str) -> Iterator[tuple[str, Any]]:
    """(what is varied in words, configured method) for each combination of a table's lists."""
    where = f"{source}, {kind} {at + 1}"
    if not isinstance(table, dict) or not isinstance(table.get("method"), str):
        raise UserError(f'{where} needs a method, such as method = "{"seam" if kind == "defense" else "harmful-sft"}".')
    try:
        cls = get(kind, table["method"])
        for key in table:
            if key not in CHOICES and key not in {k.name for k in knobs(cls)}:
                raise unknown(f"setting of {cls.name}", key, [*CHOICES, *(k.name for k in knobs(cls))])
        rest = {key: value for key, value in table.items() if key != "method"}
        if rest.get("rung") == "all":
            rest["rung"] = list(rungs(cls, grid["corpus"])) or "all"
        lists = {key: value if isinstance(value, list) else [value] for key, value in rest.items()}
        for key, values in lists.items():
            if not values:
                raise UserError(f"{key} is an empty list, so there is nothing to run.")
            if key in ("rung", "preset") and not all(isinstance(value, str) for value in values):
                raise UserError(f'{key} is one text or several, such as {key} = ["0.001"], and got {values!r:.80}.')
        for point in itertools.product(*lists.values()):
            chosen = dict(zip(lists, point, strict=True))
            words = " ".join(f"{key} {chosen[key]}" for key in lists if len(lists[key]) > 1) or cls.name
            preset, rung = chosen.pop("preset", None), chosen.pop("rung", None)
            yield words[:200], configured(kind, cls.name, grid["corpus"], preset, rung, chosen)[0]
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
