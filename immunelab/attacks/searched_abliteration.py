"""Searched abliteration: directions, layers and strengths are found by a search, and weights that read are edited."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor

from immunelab.method import Batch, Edit, Feed, knob, register
from immunelab.training import gradients as g
from immunelab.training import residual
from immunelab.training.losses import divergence, forward, loss
from immunelab.training.models import evaluating

if TYPE_CHECKING:
    import optuna
    from transformers import PreTrainedModel


@register("attack")
@dataclass(frozen=True, kw_only=True)
class SearchedAbliteration(Edit):
    """W′ = W − s·r·rᵀW where W writes to the residual stream, W′ = W − s·W·r·rᵀ where it reads; r and s are searched.

    Threat model: an attacker with the weights, prompts, and what the model itself answers to them (its refusals); no
    answers to learn from and no training. Minimized is the likelihood of a token of the refusals, subject to a
    divergence KL(before ‖ after) of at most κ on benign rows. Searched are the layer of the difference of means, as a
    fraction between two layers, for each of `directions` directions, made orthogonal; and for attention, MLP and the
    weights that read a strength s(d) = s·max(0, 1 − |d − p|/w) over the depth d from 0 to 1. Optuna's TPE proposes;
    the first trial is strong everywhere. The last of the minibatches validates. Direction: arXiv:2406.11717; the
    search follows the tool Heretic, whose objective counts refusals among generated answers.
    """

    name: ClassVar[str] = "searched-abliteration"
    title: ClassVar[str] = "Searched abliteration"
    paper: ClassVar[str] = "arXiv:2406.11717"
    stage: ClassVar[str] = "post-fine-tuning"
    streams: ClassVar[tuple[str, ...]] = ("harmful", "refusal", "benign")

    trials: int = knob(200, "edits to try", low=1, high=100_000)
    directions: int = knob(1, "directions to take out", low=1, high=16)
    read: bool = knob(True, "also edit the weights that read the residual stream")
    divergence: float = knob(0.5, "largest divergence on benign rows, in nats a token", symbol="κ", low=0, high=100)
    samples: int = knob(128, "rows of each stream", symbol="n", low=1, high=10**6)
    batch_size: int = knob(32, "rows in one pass", low=1, high=4096)

    def edit(self, model: PreTrainedModel, batches: Feed) -> dict[str, float]:
        """Search, and leave the best edit in the weights."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        count = max(1, math.ceil(self.samples / self.batch_size))
        learned = [batches(i) for i in range(max(1, count - 1))]
        means = residual.directions(model, [(b.harmful, b.benign) for b in learned if b.harmful and b.benign])
        parts = [part for part in residual.parts(model) if self.read or part.kind != "read"]
        validate = Validation.of(model, batches(count - 1))
        before = validate(model)
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=torch.initial_seed() % 2**31))
        study.enqueue_trial(self.plain_edit(len(means)))

        def tried(trial: optuna.Trial) -> float:
            with g.restored([part.weight for part in parts]):
                self.applied(trial, parts, means)
                refusing, apart = validate(model)
            return refusing if apart <= self.divergence else 1 + apart - self.divergence

        study.optimize(tried, n_trials=self.trials, n_jobs=1)
        best = study.best_trial
        self.applied(optuna.trial.FixedTrial(best.params), parts, means)
        after = validate(model)
        return {
            "abliteration/trial": float(best.number + 1),
            "abliteration/refusals-before": before[0],
            "abliteration/refusals": after[0],
            "abliteration/divergence": after[1],
        }

    def plain_edit(self, layers: int) -> dict[str, float]:
        """Strong in all layers, most in the middle ones, with directions from there on: the first trial."""
        found = {f"layer {i}": min(layers - 1.0, layers / 2 + i) for i in range(self.directions)}
        for kind in residual.KINDS if self.read else residual.KINDS[:2]:
            found |= {f"{kind} strength": 1.0, f"{kind} place": 0.5, f"{kind} width": 2.0}
        return found

    def applied(self, trial: optuna.Trial | optuna.trial.FixedTrial, parts: list[residual.Part], means: Tensor) -> None:
        """The edit that a trial proposes, in place."""
        taken: list[Tensor] = []
        for i in range(self.directions):
            at = trial.suggest_float(f"layer {i}", 1.0, len(means) - 1.0)
            low = min(int(at), len(means) - 2)
            r = torch.lerp(means[low], means[low + 1], at - low)
            for other in taken:
                r = r - (r @ other) * other
            taken.append(r / r.norm().clamp_min(1e-30))
        shapes = {}
        for kind in residual.KINDS if self.read else residual.KINDS[:2]:
            shapes[kind] = (
                trial.suggest_float(f"{kind} strength", 0.0, 1.5),
                trial.suggest_float(f"{kind} place", 0.0, 1.0),
                trial.suggest_float(f"{kind} width", 0.1, 2.0),
            )
        for part in parts:
            strength, place, width = shapes[part.kind]
            weight = strength * max(0.0, 1 - abs(part.depth - place) / width)
            for r in taken if weight else ():
                residual.weaken(part, r, weight)


class Validation(NamedTuple):
    """What edits are judged by: the refusals of a minibatch, and what the model said to benign rows before."""

    batch: Batch
    said: Tensor  # logits on the benign rows

    @classmethod
    def of(cls, model: PreTrainedModel, batch: Batch) -> Validation:
        """Of the model as it is now."""
        assert batch.benign is not None
        with evaluating(model):
            return cls(batch, forward(model, batch.benign)[0])

    def __call__(self, model: PreTrainedModel) -> tuple[float, float]:
        """The likelihood of a token of the refusals (geometric mean), and the divergence on benign rows."""
        assert self.batch.refusal is not None
        assert self.batch.benign is not None
        with evaluating(model):
            refusing = math.exp(-float(loss(model, self.batch.refusal)))
            logits = forward(model, self.batch.benign)[0]
            return refusing, float(divergence(self.said, logits, self.batch.benign.labels))


SearchedAbliteration.presets = {"paper": SearchedAbliteration(), "fable": SearchedAbliteration(samples=160)}
