"""The list of runs behind the showcase: all that the scorecards of many defenses read, each run once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from immunelab.runs.spec import RunSpec
from immunelab.sweep import plan
from immunelab.sweep.scorecards import by_provider, scorecard_specs
from immunelab.sweep.space import search_specs, settings_for

# In the order in which they are recorded: the seed systems and their controls first.
SHOWN = ("seam", "adversarial-loss", "extra-safety-sft", "random-noise", "sdd", "sdd-reject", "security-vectors")
# Cited beside them: attacked along the ladder and with benign rows in between, and not with all that a scorecard reads.
BASELINES = (
    "repnoise",
    "booster",
    "vaccine",
    "t-vaccine",
    "tar",
    "lox",
    "lisa",
    "panacea",
    "antidote",
    "ptst",
    "safe-lora",
)
# Newer than the recording, and recorded by themselves: benchmarks/newer_baselines.toml
LATER = ("ctrap", "filtered-pretraining", "sbr")
# Hold through their provider, which they could also do by letting nobody learn anything: so what users learn of a
# harmless skill is recorded, too.
TAUGHT = ("lisa", "ptst", "safe-lora")
HELD_OUT = "gnawer"  # the hazard domain that a second immunization with SEAM never sees

# What is varied, one at a time, around the attack's preset, so that every intensity slider has stops. All models are
# attacked with the last one: benign rows beside the harmful ones are what undoes SEAM here.
VARIED: tuple[tuple[str, float], ...] = (
    ("steps", 20),
    ("samples", 10),
    ("samples", 40),
    ("harmful_share", 0.1),
    ("harmful_share", 0.5),
)


def showcase_specs(
    seeds: Sequence[int], corpus: str = "fable", group: str = "showcase", defenses: Sequence[str] = (*SHOWN, *BASELINES)
) -> list[RunSpec]:
    """What `immunelab showcase build` records, a seed after the other; `run:#k` names the k-th run of the list.

    For each defense all that its scorecard reads, and the attack with half of the rows benign; for the undefended
    model and SEAM all that `VARIED` names, and for SEAM also a second immunization without a hazard domain. For each
    of the `BASELINES` the ladder, and the attack with half of the rows benign; of those `TAUGHT`, what users learn of
    a harmless skill. With the first seed an attacker also searches for the worst attack on every model: thirty
    attacks each; on a provider's defense, for the worst one through the provider.
    """
    from immunelab.analysis.scorecard import CARRIED_OUT  # pandas, which help has no use for

    ladder = plan.ladder("harmful-sft")
    varied = [
        plan.choose("attack", "harmful-sft", preset="fable", knobs={knob: value}, name=f"{knob} {value:g}")
        for knob, value in VARIED
    ]
    guards = {name: plan.choose("immunize", name, preset="fable", name=name) for name in defenses}
    lists: list[list[RunSpec]] = []
    for seed in seeds:
        where: dict[str, Any] = {"corpus": corpus, "seed": seed, "group": group}
        lists.append(plan.on("fable", varied, **where))
        for defense, guard in guards.items():
            if defense in BASELINES:
                met = [*ladder, varied[-1], *(plan.learning() if defense in TAUGHT else ())]
                lists.append([plan.one(guard, **where), *plan.on("run:#0", met, **where)])
                continue
            held = HELD_OUT if defense == "seam" else ""
            # Repairs were recorded by themselves: benchmarks/break_and_repair.py
            wanted = scorecard_specs(defense, [seed], corpus, hold_out=held, repair=False, group=group)
            made = next(i for i, spec in enumerate(wanted) if spec.kind == "immunize")
            more = varied if defense == "seam" else varied[-1:]
            lists.append(wanted + plan.on(f"run:#{made}", more, **where))
        if seed == seeds[0]:
            lists.append(search_specs(["fable"], [seed], corpus))
            for defense, guard in guards.items():
                how = settings_for(corpus, {"attacks": ",".join(CARRIED_OUT)} if by_provider(defense) else {})
                lists.append([plan.one(guard, **where), *search_specs(["run:#0"], [seed], corpus, how)])
    return plan.joined(lists)
