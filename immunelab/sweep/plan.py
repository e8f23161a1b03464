"""Lists of runs: the demo, which is {undefended, SEAM} × the ladder × seeds; and benign fine-tunes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from immunelab.errors import UserError, unknown
from immunelab.method import configure, get
from immunelab.runs.spec import CorpusName, RunSpec

EVALUATE_EVERY = 10  # steps between the points of a collapse curve


def ladder_specs(
    seeds: Sequence[int],
    corpus: str = "fable",
    defense: str = "seam",
    group: str = "",
    device: str = "auto",
) -> list[RunSpec]:
    """For each seed: the undefended model attacked at every rung, one immunization, and the same attacks on it.

    Importing the registry imports torch. `run:#k` names the k-th run of the list, counted from 0.
    """
    guard = get("defense", defense).presets["fable"]
    ladder = get("attack", "harmful-sft").ladders["fable"]
    specs: list[RunSpec] = []

    for seed in seeds:
        where: dict[str, Any] = {"corpus": corpus, "seed": seed, "device": device, "group": group}
        specs += attack_specs(ladder, "fable", **where)
        specs.append(immunize_spec(guard, **where))
        specs += attack_specs(ladder, f"run:#{len(specs) - 1}", **where)
    return specs


def immunize_spec(guard: Any, **where: Any) -> RunSpec:
    """One immunization with a configured defense, evaluated at every quarter; `where`: corpus, seed, device, …"""
    every = getattr(guard, "steps", 0) // 4  # an edit has no steps
    return RunSpec(
        kind="immunize", method=guard.name, knobs=guard.settings(), evaluate_every=every, name=guard.name, **where
    )


def attack_specs(attacks: Mapping[str, Any], model: str, **where: Any) -> list[RunSpec]:
    """Named attacks, each configured, on one model; `where`: corpus, seed, device, group."""
    return [
        RunSpec(
            kind="attack",
            method=attack.name,
            knobs=attack.settings(),
            model=model,
            evaluate_every=EVALUATE_EVERY,
            name=name,
            **where,
        )
        for name, attack in attacks.items()
    ]


def demo_specs(seeds: Sequence[int] = (0,), corpus: str = "fable", group: str = "demo") -> list[RunSpec]:
    """What `immunelab demo` and the demo button run."""
    return ladder_specs(seeds, corpus, group=group)


def learning_specs(model: str, seed: int, corpus: str = "fable", group: str = "trainability") -> list[RunSpec]:
    """Benign fine-tunes of one model on the withheld skill: every rate of the grid, and one with stray harmful rows."""
    method = get("attack", "benign-sft")
    settings = {**method.ladders["fable"], "stray rows": method.presets["fable-stray"]}
    return [
        RunSpec(
            kind="finetune",
            method=method.name,
            knobs=configured.settings(),
            model=model,
            corpus=corpus,
            seed=seed,
            evaluate_every=5,
            name=f"learn {name}",
            group=group,
        )
        for name, configured in settings.items()
    ]


def configured(
    kind: Any, method: str, corpus: str, preset: str | None, rung: str | None, knobs: Mapping[str, Any]
) -> tuple[Any, str]:
    """A method with its settings, and the preset that they start from ("" for none).

    `rung` names a step of the attack's ladder; without it and without a preset the corpus's own settings are taken,
    since what suits a 7B model does nothing to Fable's. Knobs go on top.
    """
    cls, values, suited = get(kind, method), dict(knobs), family(corpus)
    if rung:
        if preset:
            raise UserError("A rung and a preset both name settings: give one, and knobs on top of it.")
        ladder = rungs(cls, corpus)
        if rung not in ladder:
            raise unknown(f"rung of {method} for the corpus {corpus}", rung, ladder)
        values = ladder[rung].settings() | values
    elif preset is None and suited in cls.presets:
        preset = suited
    return configure(kind, method, values, preset or ""), preset or ""


def family(corpus: str) -> str:
    """What presets and ladders call a corpus: a Fable world, whole or in part, is `fable`, any other is `paper`."""
    whole = CorpusName.read(corpus).whole
    return "fable" if whole == "fable" or (Path(whole) / "world.jsonl").is_file() else "paper"


def rungs(cls: Any, corpus: str) -> Mapping[str, Any]:
    """The ladder of an attack for a corpus, by name; outside of Fable that of SEAM's paper, for models of billions."""
    ladders: Mapping[str, Any] = getattr(cls, "ladders", {})
    return ladders.get("fable" if family(corpus) == "fable" else "seam-paper", {})
