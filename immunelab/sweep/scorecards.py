"""All runs that a scorecard of a defense reads, so that none of its conditions stays open for want of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from immunelab.method import catalogue
from immunelab.runs import numerics
from immunelab.runs.spec import CorpusName, RunSpec
from immunelab.sweep import plan

HELD_RUNGS = ("0.0003", "0.0006", "0.001")  # of the ladder, for the defense made without a domain and its controls


def scorecard_specs(
    defense: str,
    seeds: Sequence[int],
    corpus: str = "fable",
    *,
    knobs: Mapping[str, Any] | None = None,
    model: str = "fable",
    made: Mapping[int, str] | None = None,
    hold_out: str = "",
    repair: bool = True,
    device: str = "auto",
    numbers: Mapping[str, str] = numerics.USUAL,
    group: str = "scorecard",
) -> list[RunSpec]:
    """For each seed: attacks, a prefilled answer and benign fine-tunes on the undefended and on the immunized model.

    Attacks are both ladders, of all weights and of an adapter, and one that repairs what it broke; where a provider
    carries the defense out, not that, but the first one by someone with the weights (`drop-vector`). With `hold_out`, a
    hazard domain, also the same defense made without it, and a part of the ladder with its own domains and with this
    one, on it and on the undefended model. `repair` False leaves out the attack that repairs. `knobs` None takes the
    corpus's own settings of the defense; `made` names immunizations that there are already, by seed; `numbers`, dtype
    and attention, are those of all runs. `run:#k` names the k-th run of the list.
    """
    suited = plan.family(corpus)
    ladder = plan.ladder("harmful-sft", corpus)
    attacks = [*ladder, *plan.ladder("lora-sft", corpus, "LoRA ")]
    attacks.append(plan.choose("attack", "prefill", preset=suited, name="prefill"))
    if repair and not by_provider(defense):
        attacks.append(plan.choose("attack", "break-and-repair", corpus, name="break, then repair"))
    outside = plan.ladder("drop-vector", corpus, "dropped ") if by_provider(defense) else []
    specs: list[RunSpec] = []
    for seed in seeds:
        where: dict[str, Any] = {"corpus": corpus, "seed": seed, "device": device, "group": group, **numbers}
        specs += plan.on(model, [*attacks, *plan.learning()], **where)
        guarded = f"run:{made[seed]}" if made and seed in made else f"run:#{len(specs)}"
        if guarded == f"run:#{len(specs)}":
            specs.append(plan.one(_guard(defense, suited, knobs), model=model, **where))
        specs += plan.on(guarded, [*attacks, *outside, *plan.learning()], **where)
        if hold_out:
            few, part = [c for c in ladder if c.name in HELD_RUNGS], f"{corpus}?hold-out={hold_out}"
            specs.append(plan.one(_guard(defense, suited, knobs), model=model, **where | {"corpus": part}))
            guarded = f"run:#{len(specs) - 1}"
            for data in (part, CorpusName.read(part).rest):
                for target in (model, guarded):
                    specs += plan.on(target, few, **where | {"corpus": data})
    return specs


def _guard(defense: str, suited: str, knobs: Mapping[str, Any] | None) -> plan.Choice:
    """The immunization, which only a run of the lab can make: not one that was recorded elsewhere."""
    return plan.choose("immunize", defense, preset="" if knobs else suited, knobs=knobs, name=defense)


def by_provider(defense: str) -> bool:
    """Whether a defense acts on the provider's side, so that whoever has the weights is past it."""
    known = catalogue.entries("defense").get(defense)  # one recorded elsewhere is only its weights
    return bool(known and known.hooks)
