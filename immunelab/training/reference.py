"""The model as it was before training, kept beside the one that trains, for losses that compare with it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from immunelab.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Beside the model and not in it: a submodule would be trained, saved and counted with it.
_kept: WeakKeyDictionary[PreTrainedModel, PreTrainedModel] = WeakKeyDictionary()


def keep(model: PreTrainedModel) -> None:
    """Remember a frozen copy of the model's present weights while it lives: one more model in memory."""
    _kept[model] = copy.deepcopy(model).requires_grad_(False).eval()


def of(model: PreTrainedModel) -> PreTrainedModel:
    """The copy that was kept; a UserError if none was."""
    if model not in _kept:
        raise UserError("This loss compares with the model before training, and none was kept: call `prepare` first.")
    return _kept[model]
