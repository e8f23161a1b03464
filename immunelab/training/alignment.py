"""What defenses by an alignment run share: an adapter or all weights to train, and a benign term beside their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch.nn import Parameter

from immunelab.method import Defense, Feed, Tokens, knob
from immunelab.training import adapters
from immunelab.training import gradients as g
from immunelab.training.losses import Scored, value_and_gradient

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Alignment(Defense):
    """A defense that trains all weights, or (`rank` > 0) a LoRA adapter alone, merged before the model is released."""

    rank: int = knob(0, "rank of a LoRA adapter that trains instead of the weights; 0: they train", low=0, high=4096)
    scale: float = knob(4.0, "scale of the adapter, divided by its rank", low=1e-3, high=1e5)
    targets: str = knob("q_proj,k_proj,v_proj", "linear layers to adapt, separated by commas, or all-linear")
    retain: float = knob(0.0, "weight of a benign loss term (extension)", low=0, high=100)

    @property
    def prepares(self) -> bool:
        """Only an adapter is something to prepare."""
        return self.rank > 0

    def prepare(self, model: PreTrainedModel, batches: Feed) -> PreTrainedModel:
        """The model, with a fresh adapter if one is asked for."""
        if not self.rank:
            return model
        return adapters.attach(model, rank=self.rank, alpha=self.scale, targets=self.targets)

    def after(self, model: PreTrainedModel) -> PreTrainedModel:
        """The plain model, the adapter merged."""
        return adapters.merge(model) if self.rank else model

    def leave(
        self,
        model: PreTrainedModel,
        weights: Sequence[Parameter],
        direction: g.Gradient,
        benign: Tokens | Scored,
        traced: dict[str, float],
    ) -> dict[str, float]:
        """Leave the direction and `retain` times the benign gradient in `.grad`; the scalars with the benign loss."""
        if self.retain:
            scored = benign if isinstance(benign, Scored) else Scored(benign)
            keep, more = value_and_gradient(model, list(weights), scored)
            g.accumulate(direction, more, self.retain)
            traced = {**traced, "loss/total": traced["loss/total"] + self.retain * keep, "loss/benign": keep}
        g.leave(weights, direction)
        return traced
