"""The provider's side of the contract: what a defense can do where someone runs the fine-tuning and serves the result.

A defense on the provider's side (Lisa, Panacea, Antidote, Safe LoRA, PTST, Security Vectors) acts in fine-tunings that
a provider carries out: attacks with `provider = True` on the checkpoint of its `immunize` run. Whoever has the weights
goes past it: the checkpoint is a plain model.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from immunelab.method import Feed, Step

HOOKS = ("during", "serving", "system")


class Provider:
    """Hooks of the provider; a defense overrides those that it needs.

    `kept` are the tensors that stay with the provider, from its `immunize` run; a hook may put its own state there: it
    is saved with each checkpoint of the fine-tuning and is back when that is resumed. `rows` are the provider's
    minibatches of the streams that the defense names, from the defense's split: the same for the same number.
    """

    assumes: ClassVar[str] = "a provider who runs the fine-tuning"

    def kept(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """Tensors to keep beside the released weights; called at the end of the `immunize` run, before `after`."""
        return {}

    def during(self, model: PreTrainedModel, kept: dict[str, Tensor], step: Step, rows: Feed) -> Step:
        """The provider's way to make one step of a user's fine-tuning, given the user's; called before `prepare`."""
        return step

    def serving(
        self, model: PreTrainedModel, kept: dict[str, Tensor], rows: Feed
    ) -> AbstractContextManager[dict[str, float]]:
        """The weights as they are served inside, bit for bit as they were after; yields scalars to trace.

        `model` is the one in training, adapters and all. It must leave torch's random state alone.
        """
        return nullcontext({})

    def system(self) -> str:
        """The system prompt that the model is served with, and not trained with; empty: none."""
        return ""

    @classmethod
    def overrides(cls, *hooks: str) -> bool:
        """Whether it has its own form of one of these hooks; without names: of any that acts on the provider's side."""
        mine: Any = cls
        return any(getattr(mine, hook) is not getattr(Provider, hook) for hook in hooks or HOOKS)
