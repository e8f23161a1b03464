"""Many runs at once: the lists of the demo and the showcase, and what a method's preset and rung stand for."""

from immunelab.sweep.lists import (
    EVALUATE_EVERY,
    VARIED,
    configured,
    demo_specs,
    family,
    ladder_specs,
    learning_specs,
    showcase_specs,
)

__all__ = [
    "EVALUATE_EVERY",
    "VARIED",
    "configured",
    "demo_specs",
    "family",
    "ladder_specs",
    "learning_specs",
    "showcase_specs",
]
