"""The model before its alignment, for defenses that compare with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from immunelab.errors import UserError
from immunelab.training import models

FABLE = "lab/fable/base"  # where presets for Fable look for its model before alignment, from the working directory


def before_alignment(base: str, weights: Mapping[str, Tensor], who: str) -> dict[str, Tensor]:
    """The same weights, by name, of the model `base` before its alignment, on the CPU.

    A UserError if no base is named, and if a weight is missing there or has another shape.
    """
    if not base or (base == FABLE and not Path(FABLE).is_dir()):
        raise UserError(
            f"{who} needs the model before its alignment: set base to a folder or Hub id. Fable's is made by "
            f"`immunelab fable build --keep-base --to {Path(FABLE).parent}`, in {FABLE}."
        )
    found = {name: p.detach() for name, p in models.load(base)[0].named_parameters()}
    for name, weight in weights.items():
        if name not in found or found[name].shape != weight.shape:
            theirs = tuple(found[name].shape) if name in found else "none"
            raise UserError(
                f"{base} is not the model before its alignment: {name} is {tuple(weight.shape)} here and "
                f"{theirs} there."
            )
    return {name: found[name] for name in weights}
