"""Lists of runs: the demo and the showcase, both {undefended, SEAM} × the ladder × seeds; and benign fine-tunes."""

from __future__ import annotations

from collections.abc import Sequence

from immunelab.method import get
from immunelab.spec import RunSpec

EVALUATE_EVERY = 10  # steps between the points of a collapse curve


def ladder_specs(
    seeds: Sequence[int], corpus: str = "fable", defense: str = "seam", group: str = "", device: str = "auto"
) -> list[RunSpec]:
    """For each seed: the undefended model attacked at every rung, one immunization, and the same attacks on it.

    Importing the registry imports torch. `run:#k` names the k-th run of the list, counted from 0.
    """
    guard = get("defense", defense).presets["fable"]
    ladder = get("attack", "harmful-sft").ladders["fable"]
    specs: list[RunSpec] = []

    def attacks(model: str, seed: int) -> list[RunSpec]:
        return [
            RunSpec(
                kind="attack",
                method=attack.name,
                knobs=attack.settings(),
                model=model,
                corpus=corpus,
                seed=seed,
                device=device,
                evaluate_every=EVALUATE_EVERY,
                name=rung,
                group=group,
            )
            for rung, attack in ladder.items()
        ]

    for seed in seeds:
        specs += attacks("fable", seed)
        specs.append(
            RunSpec(
                kind="immunize",
                method=defense,
                knobs=guard.settings(),
                corpus=corpus,
                seed=seed,
                device=device,
                evaluate_every=guard.steps // 4,
                name=defense,
                group=group,
            )
        )
        specs += attacks(f"run:#{len(specs) - 1}", seed)
    return specs


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
