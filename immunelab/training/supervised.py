"""What attacks by supervised fine-tuning share: the plain gradient of the loss on the rows of `user`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from immunelab.method import Attack, Batch
from immunelab.training.losses import Scored
from immunelab.training.objective import CrossEntropy, minimize

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Supervised(Attack):
    """L = CE(user): fine-tuning of whatever trains."""

    streams: ClassVar[tuple[str, ...]] = ("user",)

    def step(self, model: PreTrainedModel, batch: Batch) -> dict[str, float]:
        """The plain gradient of the fine-tuning loss, for what trains."""
        (user,) = batch.take(self)
        return {"loss/total": minimize(model, CrossEntropy(Scored(user)))["loss/total"]}

    def weight(self, batch: Batch) -> float:
        """The tokens that the loss is a mean of."""
        return batch.take(self)[0].scored()
