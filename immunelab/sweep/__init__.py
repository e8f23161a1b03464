"""Many runs at once: the lists of the demo and the showcase, and what a method's preset and rung stand for."""

from immunelab.sweep.plan import (
    EVALUATE_EVERY,
    attack_specs,
    configured,
    demo_specs,
    family,
    immunize_spec,
    ladder_specs,
    learning_specs,
    rungs,
)
from immunelab.sweep.scorecards import missing, scorecard_specs
from immunelab.sweep.showcase import BASELINES, SHOWN, joined, showcase_specs

__all__ = [
    "BASELINES",
    "EVALUATE_EVERY",
    "SHOWN",
    "attack_specs",
    "configured",
    "demo_specs",
    "family",
    "immunize_spec",
    "joined",
    "ladder_specs",
    "learning_specs",
    "missing",
    "rungs",
    "scorecard_specs",
    "showcase_specs",
]
