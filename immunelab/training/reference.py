"""What is kept beside the model that trains: the model as it was before, and where more minibatches come from."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from immunelab.errors import UserError
from immunelab.method import Feed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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
