"""Objectives as sums of weighted terms, and their gradients in as few passes as it takes.

    minimize(m, Ascent(harmful, on="layerwise") + α * CrossEntropy(refusal) + β * GradientCosine(harmful, benign, ε))

The terms come first, then what plans the passes: without a `GradientCosine` one backward pass of the sum. With it g_a
and g_b are at hand, so that a term which is a function of their cross-entropies is a multiple of them and takes no
pass, and a layer-wise ascent shares the forward pass of g_a.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from immunelab.training import coupling, savings
from immunelab.training import gradients as g
from immunelab.training.activations import layerwise
from immunelab.training.losses import Scored, ascent, loss
from immunelab.training.models import deterministic
from immunelab.training.sharding import sharded

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Objective:
    """Σ weight·term."""

    def __init__(self, *terms: tuple[float, Term]) -> None:
        self._terms = terms

    def __iter__(self) -> Iterator[tuple[float, Term]]:
        return iter(self._terms)

    def __add__(self, other: Objective) -> Objective:
        return Objective(*self, *other)


class Term(Objective):
    """One of the sum, and by itself an objective."""

    def __iter__(self) -> Iterator[tuple[float, Term]]:
        yield 1.0, self

    def __rmul__(self, weight: float) -> Objective:
        return Objective((weight, self))

    @property
    def name(self) -> str:
        """What its value is traced as."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class CrossEntropy(Term):
    """CE(rows), the mean over scored tokens."""

    rows: Scored

    @property
    def name(self) -> str:
        """After the stream of the rows."""
        return f"loss/{self.rows.stream}"

    def values(self, model: PreTrainedModel) -> tuple[Tensor, Tensor]:
        """The cross-entropy of the rows, and the term, from one forward pass."""
        entropy = loss(model, self.rows)
        return entropy, entropy

    def at(self, entropy: float, weight: float) -> tuple[float, float] | None:
        """The term and weight·∂term/∂CE, given the cross-entropy; None if it is no function of that alone."""
        return entropy, weight


@dataclass(frozen=True, eq=False)
class Ascent(CrossEntropy):
    """−log(1 + S/|H|), S the cross-entropies at the output and, read through norm and head, at all |H| hidden states.

    On `final-logit` it is −log(1 + CE), and on the `loss` −CE.
    """

    on: Literal["layerwise", "final-logit", "loss"]

    @property
    def name(self) -> str:
        """Not that of the cross-entropy, which is traced too."""
        return "loss/ascent"

    def values(self, model: PreTrainedModel) -> tuple[Tensor, Tensor]:
        """The cross-entropy at the output, and the term."""
        if self.on == "layerwise":
            return layerwise(model, self.rows)
        entropy = loss(model, self.rows)
        return entropy, -entropy if self.on == "loss" else ascent(entropy, [])

    def at(self, entropy: float, weight: float) -> tuple[float, float] | None:
        """None for `layerwise`."""
        if self.on == "layerwise":
            return None
        return (-entropy, -weight) if self.on == "loss" else (-math.log1p(entropy), -weight / (1 + entropy))


@dataclass(frozen=True, eq=False)
class GradientCosine(Term):
    """cos(g_a, g_b), g_a = ∇CE(harmful) and g_b = ∇CE(benign) over all weights that train.

    Its gradient is estimated at weights shifted by ε, or exact if that is None; times the term's weight it is cut down
    to norm `largest` (0 is off). `rounded` takes g_a, g_b and the estimate at weights rounded to bf16.
    """

    harmful: Scored
    benign: Scored
    epsilon: float | None
    largest: float = 0.0
    rounded: bool = False

    @property
    def name(self) -> str:
        """As SEAM calls it."""
        return "loss/coupling"


def minimize(model: PreTrainedModel, objective: Objective) -> dict[str, float]:
    """Leave the gradient of an objective in `.grad`; returns its value as loss/total, and what else there is to trace.

    Of one `GradientCosine` at most, and no two terms of one name.
    """
    weights = g.trainable(model)
    losses = [(weight, term) for weight, term in objective if isinstance(term, CrossEntropy)]
    cosines = [(weight, term) for weight, term in objective if isinstance(term, GradientCosine)]
    if not cosines:
        return _plain(model, weights, losses)
    traced = _with_cosine(model, weights, losses, *cosines[0])
    return {"loss/total": sum(weight * traced[term.name] for weight, term in objective)} | traced


Weighted = tuple[float, CrossEntropy]


def _plain(model: PreTrainedModel, weights: list[Parameter], losses: list[Weighted]) -> dict[str, float]:
    """One backward pass of the sum."""
    found = [(weight, term, *term.values(model)) for weight, term in losses]
    total = reduce(add, [weight * value for weight, _, _, value in found])
    g.leave(weights, g.gradient(total, weights))
    traced = {"loss/total": float(total.detach())}
    for _, term, entropy, value in found:
        traced |= {f"loss/{term.rows.stream}": float(entropy.detach()), term.name: float(value.detach())}
    return traced


def _with_cosine(
    model: PreTrainedModel, weights: list[Parameter], losses: list[Weighted], beta: float, cosine: GradientCosine
) -> dict[str, float]:
    """g_a and g_b with what comes for free, the estimate, and then the other terms, a pass for each."""
    streams = {id(cosine.harmful): "harmful", id(cosine.benign): "benign"}
    beside = [each for each in losses if _one_forward(model, weights, cosine, each[1])][:1]
    passes = list[Weighted]()
    with deterministic(model):
        with _full_precision(model, rounded=cosine.rounded):
            pair, others, pull, traced = _gradients(model, weights, cosine, beside)
            multiples = {"harmful": 0.0, "benign": 0.0}
            for weight, term in losses:
                stream = streams.get(id(term.rows))
                known = term.at(pair.trace[f"loss/{stream}"], weight) if stream else None
                if stream and known:
                    traced[term.name] = known[0]
                    multiples[stream] += known[1]
                elif (weight, term) not in beside:
                    passes.append((weight, term))
            direction = _combined(weights, pair, multiples, others, exact=cosine.epsilon is None)
            if beta and cosine.epsilon is not None:
                pull = coupling.estimated(model, weights, cosine.harmful, cosine.benign, pair, cosine.epsilon)
        traced |= pair.trace
        del pair, others
        direction = savings.near(direction, weights) if direction else [torch.zeros_like(w) for w in weights]
        for weight, term in passes:
            value = term.values(model)[1]
            g.gather(value, weights, direction, weight)
            traced[term.name] = float(value.detach())
    traced |= {"loss/coupling": traced["cosine/harmful-benign"], "norm/rest": float(g.norm(direction))}
    traced["norm/coupling"] = _add(direction, pull, beta, cosine.largest)
    g.leave(weights, direction)
    return traced


def _gradients(
    model: PreTrainedModel, weights: list[Parameter], cosine: GradientCosine, beside: list[Weighted]
) -> tuple[coupling.Pair, list[g.Gradient], g.Gradient, dict[str, float]]:
    """g_a and g_b; the gradients of what shares the forward pass of g_a, that of the cosine if exact; and values."""
    if cosine.epsilon is None:
        pair, pull = coupling.exact(model, weights, cosine.harmful, cosine.benign)
        return pair, [], pull, {}
    if not beside:
        pair, others = coupling.unshifted(model, weights, [loss(model, cosine.harmful)], cosine.benign)
        return pair, others, [], {}
    ((weight, term),) = beside
    entropy, value = term.values(model)
    pair, others = coupling.unshifted(model, weights, [entropy, weight * value], cosine.benign)
    return pair, others, [], {term.name: float(value.detach())}


def _combined(
    weights: list[Parameter], pair: coupling.Pair, multiples: dict[str, float], others: list[g.Gradient], *, exact: bool
) -> g.Gradient:
    """Σ multiple·gradient of the pair + Σ others, which are used up; empty if that is nothing."""
    wanted = [(multiples["harmful"], pair.a), (multiples["benign"], pair.b)]
    wanted = [(multiple, gradient) for multiple, gradient in wanted if multiple]
    if not wanted:
        return others[0] if others else []
    found = g.Gradient()
    for part, more in savings.used_up(*others, like=weights):
        total = g.combine(*((multiple, savings.near(each[part], weights[part])) for multiple, each in wanted))
        for each in more:
            g.accumulate(total, each)
        found += savings.aside(total, exact=exact)
    return found


def _add(direction: g.Gradient, pull: g.Gradient, weight: float, largest: float) -> float:
    """Direction += weight·∇cos, cut down to norm `largest` if it is longer (0 is off); returns the norm of that."""
    if not pull:
        return 0.0
    length = abs(weight) * float(g.norm(pull))
    kept = largest if length > largest > 0 else length
    g.accumulate(direction, pull, weight * (kept / length if length else 1.0))
    return kept


def _one_forward(model: PreTrainedModel, weights: list[Parameter], cosine: GradientCosine, term: CrossEntropy) -> bool:
    """Whether a term may share the forward pass of g_a: same rows and arithmetic, and FSDP goes back only once."""
    layered = term.rows is cosine.harmful and isinstance(term, Ascent) and term.on == "layerwise"
    mixed = cosine.rounded or torch.is_autocast_enabled(model.device.type)
    return layered and cosine.epsilon is not None and not mixed and not sharded(weights)


@contextmanager
def _full_precision(model: PreTrainedModel, *, rounded: bool) -> Iterator[None]:
    """Differences of gradients need fp32 whatever the other passes use; `rounded` is what the released code does."""
    cast = g.cast(list(model.parameters()), torch.bfloat16) if rounded else nullcontext()
    with g.full_precision(model), cast:
        yield
