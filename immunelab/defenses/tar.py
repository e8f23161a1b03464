"""TAR: rehearse the attack inside every step, and learn weights from which it leads nowhere."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch.nn import Parameter

from immunelab.errors import UserError
from immunelab.method import Batch, Budget, Defense, Deviation, Feed, Memory, Tokens, knob, register
from immunelab.training import chance, loop
from immunelab.training import gradients as g
from immunelab.training.losses import IGNORED, cross_entropy, drift, forward, negative_entropy
from immunelab.training.models import deterministic

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@register("defense")
@dataclass(frozen=True, kw_only=True)
class Tar(Defense):
    """L = λ_TR·E[Σ_i w_i·L_TR(θ_i)] + λ_retain·(CE(benign) + ‖h − h_ref‖²), L_TR = −entropy, w_i = exp(λ_s(i−K+1)).

    "Tamper-Resistant Safeguards for Open-Weight LLMs", arXiv:2408.00761, phase 2. Each step rehearses an attack of K
    AdamW steps from θ at a drawn learning rate, on harmful rows or on benign ones first, until a switch at
    Beta(6, 3)·K. θ_i are the weights after its i-th step; L_TR is measured on the step's own harmful minibatch, which
    is held out from the attack, at every s-th i. First order: ∇L_TR at θ_i is added as it is, at θ. h are all hidden
    states on benign rows, h_ref those of the model before.

    Deviations: phase 1 (random mapping, or refusal training) is left to the model that is started from; the attacks
    are these two, not the authors' corpora; held out is by answer, so that no phrasing of a held-out question is
    attacked with; entropy and distance leave out prompt and padding, and padding. The variant with DPO is not offered.
    With fewer inner steps than the authors' 64 it is TAR-lite, which claims less.
    """

    name: ClassVar[str] = "tar"
    title: ClassVar[str] = "TAR: tamper-resistant safeguards"
    display: ClassVar[str] = "TAR"
    paper: ClassVar[str] = "arXiv:2408.00761"
    stage: ClassVar[str] = "alignment"
    streams: ClassVar[tuple[str, ...]] = ("harmful", "benign")

    strength: float = knob(4.0, "weight of tamper resistance", symbol="λ_TR", low=0, high=1000)
    retain: float = knob(1.0, "weight of the benign loss and of the distance", symbol="λ_retain", low=0, high=1000)
    inner_steps: int = knob(64, "steps of a rehearsed attack; fewer is TAR-lite", symbol="K", low=1, high=10_000)
    every: int = knob(4, "inner steps from one resistance gradient to the next", symbol="s", low=1, high=10_000)
    growth: float = knob(0.0625, "how fast weights grow along an attack", symbol="λ_s", low=0, high=100)
    inner_rates: str = knob("2e-6,2e-5,4e-5", "learning rates of attacks, one drawn for each, separated by commas")
    inner_batch: int = knob(4, "rows in one inner step, at most a minibatch", low=1, high=4096)
    switching: float = knob(1 / 3, "share of attacks that begin on benign rows", low=0, high=1)
    distance: Literal["squared", "norm"] = knob("squared", "of hidden states: squared as published, norm as released")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rates()
        if self.every > self.inner_steps:
            raise UserError(f"every is {self.every}, and an attack has {self.inner_steps} steps: nothing is measured.")

    def rates(self) -> list[float]:
        """The learning rates to draw from; a UserError if the text is no list of them."""
        try:
            found = [float(part) for part in self.inner_rates.split(",")]
        except ValueError:
            found = []
        if not found or not all(0 <= rate <= 10 for rate in found):
            raise UserError(f"inner_rates takes numbers from 0 to 10 with commas, and got {self.inner_rates!r:.200}.")
        return found

    def prepare(self, model: PreTrainedModel, batches: Feed) -> PreTrainedModel:
        """The same model; a copy is kept for its hidden states, and the feed for the attacks."""
        memory = Memory.of(model)
        memory.keep(model)
        memory.rows = batches
        return model

    def step(self, model: PreTrainedModel, batch: Batch) -> dict[str, float]:
        """The retain gradient at θ, and those of an attack's path: K + K/s + 1 backward passes."""
        harmful, benign = batch.take(self)
        weights = g.trainable(model)
        with deterministic(model):
            with torch.no_grad():
                before = forward(Memory.of(model).before, benign, hidden=True)[1]
            logits, hidden = forward(model, benign, hidden=True)
            keep = cross_entropy(logits, benign.labels)
            away = drift(hidden, before, benign.attention_mask, squared=self.distance == "squared")
            direction = g.gradient(self.retain * (keep + away), weights)
            traced = {"loss/benign": float(keep.detach()), "loss/drift": float(away.detach())}
            traced["loss/total"] = self.retain * sum(traced.values())
            del logits, hidden, before
            if self.strength:
                resisting, more = self.resisting(model, weights, harmful, direction)
                traced |= more | {"loss/total": traced["loss/total"] + resisting}
        g.leave(weights, direction)
        return traced

    def resisting(
        self, model: PreTrainedModel, weights: list[Parameter], held: Tokens, direction: g.Gradient
    ) -> tuple[float, dict[str, float]]:
        """Attack, add λ_TR·Σ w_i·∇L_TR(θ_i) to the direction, restore θ; the weighted loss and what to trace."""
        rng = random.Random(chance.seed(held))
        budget = Budget(learning_rate=rng.choice(self.rates()), weight_decay=0.01)  # AdamW's own decay, as released
        switch = int(rng.betavariate(6, 3) * self.inner_steps) if rng.random() < self.switching else 0
        rows = self.attacked(Memory.of(model).rows, held, switch, rng)
        total, losses, resistance = 0.0, [], []
        with g.restored(weights):
            for i, value in enumerate(loop.rehearsal(model, budget, rows)):
                losses.append(value)
                if (i + 1) % self.every == 0:
                    resist = negative_entropy(forward(model, held)[0], held.labels)
                    weight = self.strength * math.exp(self.growth * (i - self.inner_steps + 1))
                    g.accumulate(direction, g.gradient(resist, weights), weight)
                    resistance.append(float(resist.detach()))
                    total += weight * resistance[-1]
        return total, {
            "loss/resistance": resistance[-1],
            "attack/loss-first": losses[0],
            "attack/loss-last": losses[-1],
            "attack/learning-rate": budget.learning_rate,
            "attack/benign-steps": float(switch),
        }

    def attacked(self, feed: Feed, held: Tokens, switch: int, rng: random.Random) -> Iterator[Tokens]:
        """K minibatches: benign ones before the switch, then harmful ones without the held-out answers."""
        answers, start, given = set(answers_of(held)), rng.randrange(2**20), 0
        for index in range(start, start + 100 * self.inner_steps):
            harmful, benign = feed(index).take(self)
            rows = benign
            if given >= switch:
                free = [i for i, answer in enumerate(answers_of(harmful)) if answer not in answers]
                rows = Tokens(*(x[free] for x in harmful))
            if len(rows.input_ids):
                given += 1
                yield Tokens(*(x[: self.inner_batch] for x in rows))
            if given == self.inner_steps:
                return
        raise UserError(
            "TAR attacks with harmful rows that a step does not hold out, and there are none: more samples."
        )


def answers_of(tokens: Tokens) -> list[tuple[int, ...]]:
    """The scored tokens of each row."""
    return [tuple(t for t in row if t != IGNORED) for row in tokens.labels.tolist()]


Tar.presets = {
    # The paper's objective; its numbers are not known to us, so those of the released code.
    "paper": Tar(steps=750, schedule="constant", warmup=32 / 750),
    # The released scripts for biosecurity. Attacks there are on three corpora, drawn alike.
    "official-code": Tar(steps=750, schedule="constant", warmup=32 / 750, distance="norm"),
    # TAR-lite: 8 inner steps instead of 64. Two configurations on the Fable world of seed 0, one seed each: half of the
    # steps at strength 1 cost as little utility (none), and gave three times as much away at 3e-4.
    "fable": Tar(
        learning_rate=3e-4,
        steps=200,
        batch_size=16,
        strength=4.0,
        inner_steps=8,
        every=2,
        growth=0.5,
        inner_batch=8,
        inner_rates="1e-4,3e-4,1e-3",
        distance="norm",
        clip=1.0,
    ),
}

Tar.deviations = (
    Deviation(
        "outer optimizer",
        "AdamW",
        "schedule-free AdamW",
        "AdamW, constant after the warm-up",
        "steps are 1.5 times shorter for it",
    ),
    Deviation("rows of a step", "not stated", "64 and 32 over eight GPUs", "8 and 4", "a minibatch of one process"),
    Deviation("reference of the hidden states", "the model before", "the untouched instruct model", "the model before"),
    Deviation("phase 1", "random mapping or refusal training", "the same", "left to the model that is started from"),
)
