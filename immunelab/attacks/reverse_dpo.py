"""Reverse-preference optimization: prefer the harmful answer to the refusal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F

from immunelab.method import Attack, Batch, Feed, Memory, knob, register
from immunelab.training import gradients as g
from immunelab.training.losses import log_likelihoods

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@register("attack")
@dataclass(frozen=True, kw_only=True)
class ReverseDpo(Attack):
    """L = −log σ(β·[log π(y_h)/π_ref(y_h) − log π(y_r)/π_ref(y_r)]), y_h harmful answer, y_r refusal, π_ref before.

    Threat model: an attacker with the weights and pairs of a harmful answer and a refusal. Unlike fine-tuning it pushes
    refusals away, and by the reference it stays near the released model. log π(y) is summed over the answer's tokens.
    With `preferred` = refusal it is the ordinary DPO for safety. Source: arXiv:2409.12914.
    """

    name: ClassVar[str] = "reverse-dpo"
    title: ClassVar[str] = "Reverse preference (DPO)"
    paper: ClassVar[str] = "arXiv:2409.12914"
    stage: ClassVar[str] = "fine-tuning"
    streams: ClassVar[tuple[str, ...]] = ("harmful", "refusal")

    beta: float = knob(0.1, "how closely to stay by the model before the attack", symbol="β", low=1e-4, high=100)
    preferred: Literal["harmful", "refusal"] = knob("harmful", "the answer that is preferred; refusal is safety DPO")

    def prepare(self, model: PreTrainedModel, batches: Feed) -> PreTrainedModel:
        """The same model; a copy is kept as π_ref."""
        Memory.of(model).keep(model)
        return model

    def step(self, model: PreTrainedModel, batch: Batch) -> dict[str, float]:
        """The gradient of L, averaged over pairs."""
        harmful, refusal = batch.take(self)
        chosen, rejected = (harmful, refusal) if self.preferred == "harmful" else (refusal, harmful)
        weights = g.trainable(model)
        with torch.no_grad():
            before = [log_likelihoods(Memory.of(model).before, rows) for rows in (chosen, rejected)]
        gains = [log_likelihoods(model, rows) - old for rows, old in zip((chosen, rejected), before, strict=True)]
        margin = self.beta * (gains[0] - gains[1])
        value = -F.logsigmoid(margin).mean()
        g.leave(weights, g.gradient(value, weights))
        return {
            "loss/total": float(value.detach()),
            "reward/margin": float(margin.detach().mean()),
            "reward/accuracy": float((margin.detach() > 0).float().mean()),
        }


ReverseDpo.presets = {
    "paper": ReverseDpo(),
    "fable": ReverseDpo(learning_rate=3e-4, steps=60, batch_size=8, samples=120),
}
