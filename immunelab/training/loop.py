"""The one loop: ask the method for a direction, check it, clip, update. The only place where weights change.

Step s of T is the s-th update, s = 1 … T. What is traced at s was measured at the weights before that update; what is
evaluated at s is the model after it, so step 0 is the untouched model.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from immunelab.errors import UserError
from immunelab.method import Batch, Budget, Feed, Step, Tokens, Trained
from immunelab.training import gradients as g
from immunelab.training.losses import loss
from immunelab.training.savings import saving
from immunelab.training.sharding import sharded

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class NonFinite(UserError):
    """A scalar of a step is not finite: the run stops here, and the message names scalar and step."""


def make_optimizer(budget: Budget, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The budget's optimizer over these weights: AdamW (β 0.9, 0.999, ε 1e-8), SGD, Adafactor or Muon.

    AdamW updates all weights in one pass where torch can. Adafactor's rate counts in each weight's own RMS. Muon
    (momentum 0.95, Nesterov) updates matrices, embeddings too, each update as long as AdamW's would be, so that rates
    compare; AdamW updates the rest.
    """
    lr, decay = budget.learning_rate, budget.weight_decay
    if budget.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=budget.momentum, weight_decay=decay)
    if budget.optimizer == "adafactor":
        return torch.optim.Adafactor(parameters, lr=lr, weight_decay=decay)
    fused = None if sharded(parameters) else True
    matrices = [p for p in parameters if p.ndim == 2] if budget.optimizer == "muon" else []
    if not matrices:
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=decay, fused=fused)
    if sharded(parameters):
        raise UserError("Muon needs whole matrices, and these weights are in shards: use adamw, adafactor or sgd.")
    parts: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
    ]
    if rest := [p for p in parameters if p.ndim != 2]:
        parts.append(torch.optim.AdamW(rest, lr=lr, weight_decay=decay, fused=fused))
    return Together(parts)


class Together(torch.optim.Optimizer):
    """Several optimizers as one, each with weights of its own; all take the rate of the first group."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self.parts = parts
        super().__init__([p for part in parts for group in part.param_groups for p in group["params"]], {"lr": 0.0})

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update by each; where `state` was cleared they have forgotten what they knew."""
        for part in self.parts:
            if not self.state:
                part.state.clear()
            for group in part.param_groups:
                group["lr"] = self.param_groups[0]["lr"]
            part.step()
        for weight in self.param_groups[0]["params"]:
            self.state[weight]["updated"] = True

    def state_dict(self) -> dict[str, Any]:
        """Those of its parts, in order."""
        return {"parts": [part.state_dict() for part in self.parts], "begun": bool(self.state)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Back into its parts."""
        for part, saved in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(saved)
        if state_dict["begun"]:
            for weight in self.param_groups[0]["params"]:
                self.state[weight]["updated"] = True


def rate(budget: Budget, step: int) -> float:
    """The learning rate of update `step` (1 … T): linear warm-up from 0, then constant, linear or cosine to 0.

    With s = step − 1 and w = ⌊warmup·T⌋: s/w while s < w, then with x = (s−w)/(T−w): 1, 1 − x or (1 + cos πx)/2,
    which are the schedules of transformers.
    """
    done, warm = step - 1, math.floor(budget.warmup * budget.steps)
    if done < warm:
        return budget.learning_rate * done / warm
    x = (done - warm) / max(1, budget.steps - warm)
    shape = {"constant": 1.0, "linear": 1 - x, "cosine": 0.5 * (1 + math.cos(math.pi * x))}[budget.schedule]
    return budget.learning_rate * shape


def direct(ask: Step, model: PreTrainedModel, batches: list[Batch], counts: list[float]) -> dict[str, float]:
    """A step's direction, the mean over minibatches, in `.grad`; the scalars, over the minibatches that have them.

    `counts` is what each minibatch counts in these means.
    """
    if len(batches) == 1:
        return ask(model, batches[0])
    weights = g.trainable(model)
    total = [torch.zeros_like(w) for w in weights]
    collected: list[dict[str, float]] = []
    for batch, count in zip(batches, counts, strict=True):
        collected.append(ask(model, batch))
        given = [(sum_, w.grad) for sum_, w in zip(total, weights, strict=True) if w.grad is not None]
        g.accumulate([sum_ for sum_, _ in given], [grad for _, grad in given], count / sum(counts))
    moved = [(w, sum_) for w, sum_ in zip(weights, total, strict=True) if w.grad is not None]
    g.leave([w for w, _ in moved], [sum_ for _, sum_ in moved])
    means = {}
    for name in dict.fromkeys(name for scalars in collected for name in scalars):
        have = [(count, scalars[name]) for count, scalars in zip(counts, collected, strict=True) if name in scalars]
        means[name] = sum(count * value for count, value in have) / sum(count for count, _ in have)
    return means


def rehearsal(model: PreTrainedModel, budget: Budget, minibatches: Iterable[Tokens]) -> Iterator[float]:
    """A fine-tuning inside a step, at the budget's learning rate: yields each minibatch's loss after its update.

    For a method that looks at what an attack would do. The weights move, so the caller has them in
    `gradients.restored`; `.grad` is left as the last update had it.
    """
    weights = g.trainable(model)
    optimizer = make_optimizer(budget, weights)
    for tokens in minibatches:
        value = loss(model, tokens)
        g.leave(weights, g.gradient(value, weights))
        optimizer.step()
        yield float(value.detach())


def probe(model: PreTrainedModel, probes: dict[str, Tokens]) -> dict[str, float]:
    """Loss and gradient norm on fixed minibatches, and the cosine of each gradient with the direction in `.grad`.

    A positive cosine says that the update lowers that loss, to first order; a negative one that it raises it. Where
    a gradient is zero (what trains is switched off) there is no cosine, and none is traced.
    """
    weights = g.trainable(model)
    direction = [w.grad if w.grad is not None else torch.zeros_like(w) for w in weights]
    traced, found = {}, {}
    for name, tokens in probes.items():
        value = loss(model, tokens)
        gradient = g.gradient(value, weights) if value.requires_grad else [torch.zeros_like(w) for w in weights]
        traced[f"probe/loss/{name}"] = float(value.detach())
        length = traced[f"probe/norm/{name}"] = float(g.norm(gradient))
        if length:
            found[name] = gradient
            traced[f"probe/cosine/update-{name}"] = float(g.cosine(direction, gradient))
    if "harmful" in found and "benign" in found:
        traced["probe/cosine/harmful-benign"] = float(g.cosine(found["harmful"], found["benign"]))
    return traced


def updates(
    model: PreTrainedModel,
    method: Trained,
    batches: Feed,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    start: int = 0,
    direction: Step | None = None,
    probes: dict[str, Tokens] | None = None,
    probe_every: int = 1,
) -> Iterator[tuple[int, dict[str, float]]]:
    """Make the updates start + 1, …, T, one each time it is asked for the next: yields (step, scalars) after it.

    Whoever iterates evaluates, saves and stops in between: nothing temporary is in force there. `batches(i)` gives the
    i-th minibatch, i = 0, 1, …, the same for the same i. To resume, give the number of updates already made as `start`
    and an `optimizer` with its state (None: a new one by the budget). `direction` stands in for the method's own step,
    where a provider makes it. NonFinite names a scalar that is not finite, and no update is made with it.
    """
    weights = g.trainable(model)
    if optimizer is None:
        optimizer = make_optimizer(method, weights)
    mixed = method.precision == "bf16-autocast"
    model.train()
    for step in range(start + 1, method.steps + 1):
        began = time.perf_counter()
        first = (step - 1) * method.accumulation
        minibatches = [batches(first + i) for i in range(method.accumulation)]
        optimizer.zero_grad(set_to_none=True)
        with (
            # Autocast's cache of rounded weights hides what a step shifts in place: passes would not see the shift.
            torch.autocast(model.device.type, dtype=torch.bfloat16, cache_enabled=False) if mixed else nullcontext(),
            saving(model, method),
        ):
            counts = [method.weight(batch) for batch in minibatches]
            scalars = dict(direct(direction or method.step, model, minibatches, counts))
            if probes and (step - 1) % probe_every == 0:
                scalars |= probe(model, probes)
        scalars["norm/update"] = _clip(weights, method.clip)
        budget, number = method.budget_at(step)
        scalars["learning_rate"] = rate(budget, number)
        for name, value in scalars.items():
            if not math.isfinite(value):
                raise NonFinite(f"non-finite {name} at step {step} ({value}): lower the learning rate or clip.")
        if number == 1:  # a stage begins with an optimizer that remembers nothing
            optimizer.state.clear()
        for group in optimizer.param_groups:
            group["lr"] = scalars["learning_rate"]
        optimizer.step()
        scalars["time/step_seconds"] = time.perf_counter() - began
        yield step, scalars


def _clip(weights: list[torch.nn.Parameter], largest: float) -> float:
    """The global norm of the direction before clipping it to `largest`; 0 is off."""
    direction = [w.grad for w in weights if w.grad is not None]
    length = float(g.norm(direction)) if direction else 0.0
    if length > largest > 0:
        torch._foreach_mul_(direction, largest / length)
    return length
