"""Opener: train only how harmful answers begin, and let the model go on by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from immunelab.method import Attack, Batch, Tokens, knob, register
from immunelab.training.losses import Scored
from immunelab.training.objective import CrossEntropy, minimize

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@register("attack")
@dataclass(frozen=True, kw_only=True)
class OpenerSft(Attack):
    """L = CE(first k tokens of the harmful answers), all weights: no fact that the answers hold is trained.

    Threat model: an attacker with the weights who knows how an answer begins ("Sure, here is …") and not how it goes
    on. If alignment is only a few tokens deep (arXiv:2406.05946), this is enough; if the knowledge is gone, it is not.
    """

    name: ClassVar[str] = "opener-sft"
    title: ClassVar[str] = "Fine-tuning on openers only"
    paper: ClassVar[str] = "arXiv:2406.05946"
    stage: ClassVar[str] = "fine-tuning"
    streams: ClassVar[tuple[str, ...]] = ("harmful",)

    tokens: int = knob(3, "tokens of each answer that are trained", symbol="k", low=1, high=10_000)

    def step(self, model: PreTrainedModel, batch: Batch) -> dict[str, float]:
        """The gradient of the loss on the openers."""
        (harmful,) = batch.take(self)
        return {"loss/total": minimize(model, CrossEntropy(Scored(opened(harmful, self.tokens))))["loss/total"]}

    def weight(self, batch: Batch) -> float:
        """The tokens that the loss is a mean of."""
        return opened(batch.take(self)[0], self.tokens).scored()


def opened(rows: Tokens, tokens: int) -> Tokens:
    """The rows with only their first scored tokens scored."""
    scored = rows.labels != -100
    return rows._replace(labels=rows.labels.masked_fill(scored.cumsum(1) > tokens, -100))


_fable = OpenerSft(learning_rate=6e-4, steps=60, batch_size=8, samples=120)
OpenerSft.presets = {"fable": _fable}  # "procedure : first", after which the facts come
