"""Adaptive harmful fine-tuning: learn the harm and keep the rest, so that self-destruction has nothing to pull on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from immunelab.method import Attack, Batch, Feed, Memory, Tokens, knob, register
from immunelab.training import gradients as g
from immunelab.training.losses import cross_entropy, divergence, forward, loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@register("attack")
@dataclass(frozen=True, kw_only=True)
class AdaptiveSft(Attack):
    """L = CE(harmful) + μ·CE(benign) + ν·KL(π_def ‖ π) on benign answers, π_def the model before the attack.

    Threat model: an attacker with the weights who knows that the defense trades utility for safety, has benign rows,
    and pays one or two more passes a step. Two variants go on top: `noise` perturbs the direction, against defenses
    that shape gradients, and `project` takes from the harmful gradient what would raise the benign loss:
    g_a ← g_a − min(0, ⟨g_a, ĝ_b⟩)·ĝ_b. After arXiv:2605.14605, whose exact loss is not public, so this approximates
    it; noise and benign regularizer are the adaptive tests of arXiv:2505.12186; the projection is ours.
    """

    name: ClassVar[str] = "adaptive-sft"
    title: ClassVar[str] = "Adaptive harmful fine-tuning"
    paper: ClassVar[str] = "arXiv:2605.14605"
    stage: ClassVar[str] = "fine-tuning"
    streams: ClassVar[tuple[str, ...]] = ("harmful", "benign")

    mu: float = knob(1.0, "weight of the benign loss", symbol="μ", low=0, high=1000)
    nu: float = knob(1.0, "weight of the divergence from the model before the attack", symbol="ν", low=0, high=1000)
    noise: float = knob(0.0, "norm of Gaussian noise on the direction, in norms of the direction", low=0, high=1000)
    project: bool = knob(False, "take from the harmful gradient what would raise the benign loss")

    def prepare(self, model: PreTrainedModel, batches: Feed) -> PreTrainedModel:
        """The same model; a copy is kept to compare with if ν > 0."""
        if self.nu:
            Memory.of(model).keep(model)
        return model

    def step(self, model: PreTrainedModel, batch: Batch) -> dict[str, float]:
        """The gradient of L, projected and perturbed if asked for."""
        harmful, benign = batch.take(self)
        weights = g.trainable(model)
        harm = loss(model, harmful)
        direction = g.gradient(harm, weights)
        traced = {"loss/total": float(harm.detach()), "loss/harmful": float(harm.detach())}
        if self.mu or self.nu or self.project:
            keep, drift = self.benign(model, benign)
            traced |= {"loss/benign": float(keep.detach()), "loss/divergence": float(drift.detach())}
            traced["loss/total"] += self.mu * traced["loss/benign"] + self.nu * traced["loss/divergence"]
            if self.project:
                b = g.gradient(keep, weights, keep_graph=True)
                overlap = float(g.dot(direction, b))
                g.accumulate(direction, b, -min(0.0, overlap) / max(float(g.dot(b, b)), 1e-30))
            g.accumulate(direction, g.gradient(self.mu * keep + self.nu * drift, weights))
        if self.noise:
            random = [torch.randn_like(d) for d in direction]
            g.accumulate(direction, random, self.noise * float(g.norm(direction) / g.norm(random)))
        g.leave(weights, direction)
        return traced

    def benign(self, model: PreTrainedModel, benign: Tokens) -> tuple[Tensor, Tensor]:
        """Benign loss, and divergence from the model before the attack on the same rows (0 if ν is)."""
        logits = forward(model, benign)[0]
        keep = cross_entropy(logits, benign.labels)
        if not self.nu:
            return keep, torch.zeros_like(keep)
        with torch.no_grad():
            before = forward(Memory.of(model).before, benign)[0]
        return keep, divergence(before, logits, benign.labels)


_fable = AdaptiveSft(learning_rate=6e-4, steps=60, batch_size=8, samples=120)
AdaptiveSft.presets = {
    "fable": _fable,
    "fable-regularized": replace(_fable, nu=0.0),
    "fable-noise": replace(_fable, mu=0.0, nu=0.0, noise=1.0),
    "fable-projected": replace(_fable, mu=0.0, nu=0.0, project=True),
}
