"""What is known beside the model that trains: the model as it was before, and where more minibatches come from."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from torch import Tensor

from immunelab.errors import UserError
from immunelab.method import Feed
from immunelab.training import models

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FABLE = "lab/fable/base"  # where presets for Fable look for its model before alignment, from the working directory

# Beside the model and not in it: a submodule would be trained, saved and counted with it.
_kept: WeakKeyDictionary[PreTrainedModel, PreTrainedModel] = WeakKeyDictionary()
_feeds: WeakKeyDictionary[PreTrainedModel, Feed] = WeakKeyDictionary()


def keep(model: PreTrainedModel) -> None:
    """Remember a frozen copy of the model's present weights while it lives: one more model in memory."""
    _kept[model] = copy.deepcopy(model).requires_grad_(False).eval()


def of(model: PreTrainedModel) -> PreTrainedModel:
    """The copy that was kept; a UserError if none was."""
    if model not in _kept:
        raise UserError("This loss compares with the model before training, and none was kept: call `prepare` first.")
    return _kept[model]


def keep_feed(model: PreTrainedModel, batches: Feed) -> None:
    """Remember the run's minibatches while the model lives, for a step that needs more than its own."""
    _feeds[model] = batches


def feed_of(model: PreTrainedModel) -> Feed:
    """The minibatches that were kept; a UserError if none were."""
    if model not in _feeds:
        raise UserError("This step draws further minibatches, and knows none: call `prepare` first.")
    return _feeds[model]


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
