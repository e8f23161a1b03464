"""Many runs at once: from a wish to a list of specs (`plan`), and the lists that commands and pages ask for."""

from immunelab.sweep.plan import Choice, choose, crossed, demo_specs, joined, ladder, learning, on, one, rungs
from immunelab.sweep.scorecards import scorecard_specs
from immunelab.sweep.showcase import BASELINES, LATER, SHOWN, showcase_specs

__all__ = [
    "BASELINES",
    "LATER",
    "SHOWN",
    "Choice",
    "choose",
    "crossed",
    "demo_specs",
    "joined",
    "ladder",
    "learning",
    "on",
    "one",
    "rungs",
    "scorecard_specs",
    "showcase_specs",
]
