"""Panacea: while users train, a provider learns where a perturbation undoes the harm, and adds it at the end."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from immunelab.errors import UserError
from immunelab.method import Batch, Feed, Memory, Service, Step, knob, register
from immunelab.training import gradients as g
from immunelab.training.losses import loss
from immunelab.training.models import deterministic

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

TINY = 1e-7  # added to ‖∇h‖, as in the released code


@register("defense")
@dataclass(frozen=True, kw_only=True)
class Panacea(Service):
    """max_w max_‖ε‖≤ρ λ(h(w+ε) − h(w)) − g(w): a step on ∇g(w) − λ(∇h(w+ε) − ∇h(w)), ε = ρ∇h/‖∇h‖; w + ε is served.

    "Panacea: Mitigating Harmful Fine-tuning for Large Language Models via Post-fine-tuning Perturbation",
    arXiv:2501.18100; g is the user's loss, h the loss on the provider's harmful rows. It defends only where a
    *provider* runs the fine-tuning and serves the result: every evaluation and every checkpoint of such an attack is of
    w + ε, and training goes on from w. Whoever has the weights of this run goes past it: they are as they were given.
    ε is over what trains: all weights, or the adapter of `lora-sft`, as in the released code. What is added at the end
    is the `perturbation`: ε of ∇h over all the provider's harmful rows at the final w (`harmful-set`), that of the
    last step's minibatch (`last-minibatch`, as the released code does; before the first step there is none), or
    Gaussian noise of norm ρ after plain fine-tuning (`random`, the paper's baseline). The clamp is the one that the
    released code means, which does not run: where h(w+ε) is above `ceiling` its gradient is 0. ε is restored from a
    copy, not subtracted.
    """

    name: ClassVar[str] = "panacea"
    title: ClassVar[str] = "Panacea (provider-side)"
    paper: ClassVar[str] = "arXiv:2501.18100"
    stage: ClassVar[str] = "post-fine-tuning"
    assumes: ClassVar[str] = "a provider who runs the fine-tuning, has harmful rows, and serves the perturbed model"
    streams: ClassVar[tuple[str, ...]] = ("harmful",)

    rho: float = knob(1.0, "norm of the perturbation", symbol="ρ", low=0, high=1e6)
    strength: float = knob(0.001, "weight of what the perturbation does to harmful rows", symbol="λ", low=0, high=1e6)
    ceiling: float = knob(5.0, "harmful loss under ε above which it is not raised further; 0 is off", low=0, high=1e3)
    perturbation: Literal["harmful-set", "last-minibatch", "random"] = knob("harmful-set", "what is added at the end")
    samples: int = knob(1000, "distinct harmful rows of the provider", low=1, high=10**9)
    batch_size: int = knob(10, "harmful rows in one minibatch", low=1, high=4096)

    def during(self, model: PreTrainedModel, memory: Memory, step: Step) -> Step:
        """The user's step, and −λ(∇h(w+ε) − ∇h(w)) on top."""
        if self.perturbation == "random" or (not self.strength and self.perturbation == "harmful-set"):
            return step

        def guarded(trained: PreTrainedModel, batch: Batch) -> dict[str, float]:
            scalars = step(trained, batch)
            (harmful,) = memory.rows(batch.number).take(self)
            weights = g.trainable(trained)
            if weights[0].dtype.itemsize < 4:  # an adapter on rounded weights is in fp32 itself
                raise UserError(f"Behind this fine-tuning stands {self.name}, and {self.in_fp32()}")
            with deterministic(trained), g.full_precision(trained):
                value = loss(trained, harmful)
                here = g.gradient(value, weights)
                epsilon = self.epsilon(here)
                with g.shifted(weights, epsilon, by=1.0):
                    there_value = loss(trained, harmful)
                    there = g.gradient(there_value, weights) if self.strength and self.below(there_value) else None
            if self.perturbation == "last-minibatch":
                memory.tensors.update({f"epsilon/{i}": e for i, e in enumerate(epsilon)})
            if self.strength:
                for i, w in enumerate(weights):
                    if w.grad is not None:
                        rise = -here[i] if there is None else there[i] - here[i]
                        w.grad = w.grad - self.strength * rise
            change, first_order = float((there_value - value).detach()), self.rho * float(g.norm(here))
            return scalars | {
                "loss/harmful": float(value.detach()),
                "loss/harmful-perturbed": float(there_value.detach()),
                "norm/harmful": float(g.norm(here)),
                "estimator/first-order": change / first_order if first_order else 1.0,
            }

        return guarded

    def in_fp32(self) -> str:
        """The shifted weights are, and the difference of gradients there."""
        return g.NEEDS_FP32

    def epsilon(self, gradient: g.Gradient) -> g.Gradient:
        """ρ∇h/(‖∇h‖ + 1e-7), as new tensors."""
        return g.scale(gradient, self.rho / (float(g.norm(gradient)) + TINY))

    def below(self, value: Tensor) -> bool:
        """Whether the perturbed harmful loss may still be raised."""
        return not self.ceiling or float(value.detach()) <= self.ceiling

    @contextmanager
    def serving(self, model: PreTrainedModel, memory: Memory) -> Iterator[dict[str, float]]:
        """The model at w + ε inside."""
        weights = g.trainable(model)
        if self.perturbation == "harmful-set":
            epsilon = self.epsilon(self.over_set(model, memory.rows))
        elif self.perturbation == "random":
            epsilon = self.epsilon(noise(weights))
        else:
            epsilon = [memory.tensors.get(f"epsilon/{i}", torch.zeros_like(w)) for i, w in enumerate(weights)]
        with g.shifted(weights, epsilon, by=1.0):
            yield {"norm/perturbation": float(g.norm(epsilon))}

    def over_set(self, model: PreTrainedModel, rows: Feed) -> g.Gradient:
        """∇h over all the provider's harmful rows: the mean of their minibatches' gradients."""
        weights = g.trainable(model)
        count = math.ceil(self.samples / self.batch_size)
        total = [torch.zeros_like(w) for w in weights]
        with deterministic(model):
            for number in range(count):
                (harmful,) = rows(number).take(self)
                g.accumulate(total, g.gradient(loss(model, harmful), weights), 1 / count)
        return total


def noise(weights: list[torch.nn.Parameter]) -> g.Gradient:
    """Gaussian noise, the same in every call of a run: seeded by its seed, apart from the run's random state."""
    generator = torch.Generator().manual_seed(torch.initial_seed())
    return [torch.randn(w.shape, generator=generator).to(w) for w in weights]


_code = Panacea(perturbation="last-minibatch")
# Two values of ρ on the Fable world of seed 0, one seed each: at the released code's 1, ε alone takes an eighth of the
# utility. The rows are as many as Fable has also with a domain held out.
_fable = Panacea(rho=0.7, samples=240, batch_size=8)
Panacea.presets = {
    "paper": Panacea(),  # the paper's ρ and λ are not known to us: those of the released code, over the whole set
    "official-code": _code,
    "fable": _fable,
    "fable-random": replace(_fable, perturbation="random"),
}
