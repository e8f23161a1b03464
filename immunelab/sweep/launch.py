"""What a launch form asks for, as a list of runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from immunelab.analysis.estimate import duration as duration
from immunelab.analysis.estimate import estimate as estimate
from immunelab.runs.spec import RunSpec


@dataclasses.dataclass(frozen=True)
class Choice:
    """A method and its settings."""

    method: str
    knobs: Mapping[str, Any]


def specs(
    defense: Choice | None,
    attacks: Sequence[Choice],
    *,
    model: str,
    corpus: str,
    seeds: Sequence[int],
    device: str = "auto",
    control: bool = True,
    evaluate_every: int = 10,
    group: str = "",
    **numbers: str,
) -> list[RunSpec]:
    """Per seed: the attacks on the model as it is (the control), the immunization, and the same attacks on its result.

    `run:#k` names the k-th run of the list, as `jobs.submit` resolves it. `numbers`: dtype and attention.
    """
    found: list[RunSpec] = []
    for seed in seeds:
        shared: dict[str, Any] = {"corpus": corpus, "seed": seed, "device": device, "group": group, **numbers}
        if defense is None or control:
            found += [_attack(a, model, evaluate_every, shared) for a in attacks]
        if defense is not None:
            knobs = dict(defense.knobs)
            every = max(1, int(knobs.get("steps", 4)) // 4)
            found.append(
                RunSpec(
                    kind="immunize", method=defense.method, knobs=knobs, model=model, evaluate_every=every, **shared
                )
            )
            source = f"run:#{len(found) - 1}"
            found += [_attack(a, source, evaluate_every, shared) for a in attacks]
    return found


def _attack(choice: Choice, model: str, evaluate_every: int, shared: Mapping[str, Any]) -> RunSpec:
    knobs = dict(choice.knobs)
    return RunSpec(
        kind="attack", method=choice.method, knobs=knobs, model=model, evaluate_every=evaluate_every, **shared
    )
