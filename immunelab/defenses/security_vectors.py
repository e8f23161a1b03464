"""Security vectors: while a provider fine-tunes, a frozen vector already knows the harm, so that nothing is learned."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from immunelab.errors import UserError
from immunelab.method import Batch, Defense, Deviation, Feed, Memory, Step, Tokens, knob, register
from immunelab.training import gradients as g
from immunelab.training.losses import divergence, forward, loss
from immunelab.training.vectors import Vector

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@register("defense")
@dataclass(frozen=True, kw_only=True)
class SecurityVectors(Defense):
    """θ_s = argmin CE(harmful; θ, θ_s) + μ·KL(p_θ ‖ p_θ,θ_s); users train θ with θ_s active; f(x; θ) is served.

    "Making Harmful Behaviors Unlearnable for Large Language Models", arXiv:2311.02105. This run trains the vector with
    the base frozen (phase 1). It defends only where a *provider* runs the fine-tuning: on this run's checkpoint,
    attacks that a provider would carry out (`harmful-sft`, `lora-sft`, `benign-sft`) have the vector active and frozen
    (phase 2), and it is off in every evaluation and in every checkpoint (phase 3). Whoever has the weights leaves it
    out: the attack `drop-vector`. The min–min refresh of the arXiv text is not offered.
    """

    name: ClassVar[str] = "security-vectors"
    title: ClassVar[str] = "Security Vectors (provider-side)"
    display: ClassVar[str] = "Security Vectors"
    paper: ClassVar[str] = "arXiv:2311.02105"
    stage: ClassVar[str] = "fine-tuning"
    assumes: ClassVar[str] = "a provider who runs the fine-tuning"
    streams: ClassVar[tuple[str, ...]] = ("harmful", "benign")

    rank: int = knob(8, "rank of the vector", symbol="r", low=1, high=4096)
    alpha: float = knob(32.0, "scale of the vector, divided by its rank", symbol="α", low=1e-3, high=1e5)
    targets: str = knob("all-linear", "linear layers that it acts on, separated by commas, or all-linear")
    mu: float = knob(0.0, "weight of keeping benign behavior with the vector on", symbol="μ", low=0, high=1000)
    compare: bool = knob(True, "trace the base's gradient norms with the vector on and off: four more passes")

    def prepare(self, model: PreTrainedModel, batches: Feed) -> PreTrainedModel:
        """The same model, frozen, with a fresh vector, which alone trains and acts only inside `step`."""
        model.requires_grad_(False)
        vector = Vector.fresh(model, rank=self.rank, alpha=self.alpha, targets=self.targets)
        model.add_module("security_vector", vector)
        return model

    def step(self, model: PreTrainedModel, batch: Batch) -> dict[str, float]:
        """The gradient of the harmful loss, and of the divergence, for the vector."""
        harmful, benign = batch.take(self)
        vector = attached(model)
        places, weights = vector.places(model), list(vector.parameters())
        with torch.no_grad():
            before = forward(model, benign)[0] if self.mu else torch.empty(0)
        with vector.acting(places):
            total = harm = loss(model, harmful)
            if self.mu:
                total = harm + self.mu * divergence(before, forward(model, benign)[0], benign.labels)
            direction = g.gradient(total, weights)
        traced = {"loss/total": float(total.detach()), "loss/harmful": float(harm.detach())}
        if self.compare:
            traced |= compared(model, vector, {"harmful": harmful, "benign": benign})
        g.leave(weights, direction)
        return traced

    def weight(self, batch: Batch) -> float:
        """The harmful answers' tokens; with the divergence the loss is a sum of two means."""
        return 1.0 if self.mu else batch.take(self)[0].scored()

    def kept(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """The vector."""
        return attached(model).tensors()

    def after(self, model: PreTrainedModel) -> PreTrainedModel:
        """The base as it was; the vector stays with the provider."""
        del model.security_vector
        return model.requires_grad_(True)

    def during(self, model: PreTrainedModel, memory: Memory, step: Step) -> Step:
        """The user's step with the vector active and frozen."""
        vector = Vector.of(memory.tensors)
        places = vector.places(model)

        def guarded(trained: PreTrainedModel, batch: Batch) -> dict[str, float]:
            with vector.acting(places):
                return step(trained, batch)

        return guarded


def attached(model: PreTrainedModel) -> Vector:
    """The vector that `prepare` attached; a UserError if none was."""
    vector = getattr(model, "security_vector", None)
    if not isinstance(vector, Vector):
        raise UserError("The model has no security vector: call `prepare` first.")
    return vector


def compared(model: PreTrainedModel, vector: Vector, rows: dict[str, Tokens]) -> dict[str, float]:
    """‖∇_θ loss‖ of the base with the vector on and off, and their ratio: small on harmful rows, near 1 on benign."""
    mine = {id(p) for p in vector.parameters()}
    base = [p for p in model.parameters() if id(p) not in mine]
    traced = {}
    for p in base:
        p.requires_grad_(True)
    try:
        for name, tokens in rows.items():
            for state in ("on", "off"):
                with vector.acting(vector.places(model)) if state == "on" else nullcontext():
                    gradient = g.gradient(loss(model, tokens), base)
                traced[f"norm/{name}-{state}"] = float(g.norm(gradient))
            traced[f"ratio/{name}-on-off"] = traced[f"norm/{name}-on"] / max(traced[f"norm/{name}-off"], 1e-30)
    finally:
        for p in base:
            p.requires_grad_(False)
    return traced


SecurityVectors.presets = {
    # 100 rows, 10 epochs; the shape is that of the replication in arXiv:2405.14577.
    "paper": SecurityVectors(learning_rate=1e-3, steps=125, batch_size=8, samples=100, targets="q_proj,v_proj"),
    # Three values of μ on the world of seed 0: 1 keeps the base's benign gradient within a factor of 2 with the vector
    # on (1.3; without the KL term 2.1), at the same harmful loss.
    "fable": SecurityVectors(learning_rate=3e-3, steps=300, batch_size=16, rank=8, alpha=16, mu=1.0),
}

SecurityVectors.deviations = (
    Deviation("released code", "", "could not be had; a replication (arXiv:2405.14577) stands in", ""),
    Deviation("layers", "not stated", "q, v", "q, v in `paper`; all linear layers by default"),
    Deviation("start of A", "as LoRA", "PEFT's uniform start", "√3 times as large", "kept: recorded runs begin so"),
    Deviation("labels", "not stated", "prompt and answer", "the answer", "as every other loss here"),
)
