"""All runs that a scorecard of a defense reads, so that none of its conditions stays open for want of one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from immunelab.method import Provider, configure, get
from immunelab.runs import numerics
from immunelab.runs.spec import CorpusName, RunSpec
from immunelab.sweep.plan import attack_specs, family, immunize_spec, learning_specs

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
    device: str = "auto",
    numbers: Mapping[str, str] = numerics.USUAL,
    group: str = "scorecard",
) -> list[RunSpec]:
    """For each seed: attacks, a prefilled answer and benign fine-tunes on the undefended and on the immunized model.

    Attacks are both ladders, of all weights and of an adapter; where a provider carries the defense out, also the
    first one by someone with the weights (`drop-vector`). With `hold_out`, a hazard domain, also the same defense made
    without it, and a part of the ladder with its own domains and with this one, on it and on the undefended model.
    `knobs` None takes the corpus's own settings of the defense; `made` names immunizations that there are already, by
    seed; `numbers`, dtype and attention, are those of all runs. `run:#k` names the k-th run of the list; `missing`
    leaves out what is recorded. Imports torch.
    """
    suited = family(corpus)
    guard = configure("defense", defense, dict(knobs or {}), "" if knobs else suited)
    ladder, adapter, dropped = (
        get("attack", name).ladders[suited] for name in ("harmful-sft", "lora-sft", "drop-vector")
    )
    attacks = {**ladder, **{f"LoRA {k}": a for k, a in adapter.items()}}
    attacks["prefill"] = get("attack", "prefill").presets[suited]
    outside = {f"dropped {k}": a for k, a in dropped.items()} if by_provider(type(guard)) else {}
    specs: list[RunSpec] = []
    for seed in seeds:
        where: dict[str, Any] = {"corpus": corpus, "seed": seed, "device": device, "group": group}
        specs += attack_specs(attacks, model, **where) + learning_specs(model, seed, corpus, group)
        guarded = f"run:{made[seed]}" if made and seed in made else f"run:#{len(specs)}"
        if guarded == f"run:#{len(specs)}":
            specs.append(immunize_spec(guard, model=model, **where))
        specs += attack_specs(attacks | outside, guarded, **where) + learning_specs(guarded, seed, corpus, group)
        if hold_out:
            few, part = {k: ladder[k] for k in HELD_RUNGS}, f"{corpus}?hold-out={hold_out}"
            specs.append(immunize_spec(guard, model=model, **where | {"corpus": part}))
            guarded = f"run:#{len(specs) - 1}"
            for data in (part, CorpusName.read(part).rest):
                for target in (model, guarded):
                    specs += attack_specs(few, target, **where | {"corpus": data})
    return [dataclasses.replace(spec, **dict[str, Any](numbers)) for spec in specs]


def by_provider(cls: type) -> bool:
    """Whether a defense acts on the provider's side, so that whoever has the weights is past it."""
    return issubclass(cls, Provider) and cls.overrides()


def missing(specs: Sequence[RunSpec], finished: Mapping[str, str]) -> list[RunSpec]:
    """Those of a list that are not recorded, as a list of its own; `finished` gives the spec hash of each finished run,
    the oldest first."""
    recorded = {spec_hash: run_id for run_id, spec_hash in finished.items()}
    found: dict[int, str] = {}  # place in the list: the run that is recorded
    left: dict[int, int] = {}  # place in the list: place among what is missing
    new: list[RunSpec] = []
    for i, spec in enumerate(specs):
        parent = spec.model.removeprefix("run:") if spec.model.startswith("run:") else ""
        if parent.startswith("#"):
            k = int(parent[1:])
            parent = found.get(k, "")
            spec = dataclasses.replace(spec, model=f"run:{parent}" if parent else f"run:#{left[k]}")
        known = recorded.get(dataclasses.replace(spec, parent_hash=finished.get(parent, "")).hash)
        if known:
            found[i] = known
        else:
            left[i] = len(new)
            new.append(spec)
    return new
