"""Break and repair: harmful steps until the model is broken or destroyed, then steps that give its skills back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from immunelab.method import Attack, Batch, Budget, knob, register
from immunelab.training.losses import scored
from immunelab.training.objective import CrossEntropy, minimize

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@register("attack")
@dataclass(frozen=True, kw_only=True)
class BreakAndRepair(Attack):
    """L = CE(harmful) in the steps that break, then (1 − p)·CE(benign) + p·CE(harmful) in those that repair.

    Threat model: an attacker with the weights and with rows of both kinds, who goes on where a self-destructing model
    has destroyed itself. Such a model has resisted only if harm does not come back together with its skills. Each of
    the two stages has its own warm-up, schedule and optimizer, as two fine-tunings have. The control of equal
    budget is `harmful-sft` with as many steps and half of its rows benign. The paper is that whose claim this
    tests; no published evaluation of a self-destructing model that we know of has tried it.
    """

    name: ClassVar[str] = "break-and-repair"
    title: ClassVar[str] = "Break, then repair"
    paper: ClassVar[str] = "arXiv:2505.12186"
    stage: ClassVar[str] = "fine-tuning"
    streams: ClassVar[tuple[str, ...]] = ("harmful", "benign")

    repair: float = knob(0.5, "share of the steps that repair: the last ones", low=0, high=1)
    repair_rate: float = knob(3e-4, "peak learning rate of the repair", low=0, high=10, log=True)
    repair_share: float = knob(0.5, "weight of the harmful rows in the repair", symbol="p", low=0, high=1)

    @property
    def breaks(self) -> int:
        """How many steps break, before the first that repairs: at least one."""
        return max(1, self.steps - round(self.repair * self.steps))

    def budget_at(self, step: int) -> tuple[Budget, int]:
        """Breaking and repairing have each a peak learning rate and a schedule of their own."""
        first = step <= self.breaks
        rate, steps = (self.learning_rate, self.breaks) if first else (self.repair_rate, self.steps - self.breaks)
        own = Budget(learning_rate=rate, steps=steps, schedule=self.schedule, warmup=self.warmup)
        return own, step - (0 if first else self.breaks)

    def step(self, model: PreTrainedModel, batch: Batch) -> dict[str, float]:
        """The gradient of L, in one pass where one of the weights is 0."""
        harmful, benign = map(CrossEntropy, scored(self, batch))
        if batch.number // self.accumulation < self.breaks:
            return minimize(model, harmful)
        p = self.repair_share
        if p in (0, 1):
            return minimize(model, harmful if p else benign)
        return minimize(model, (1 - p) * benign + p * harmful)


_fable = BreakAndRepair(learning_rate=1e-3, steps=120, batch_size=8, samples=120)
BreakAndRepair.presets = {"fable": _fable, "fable-benign": replace(_fable, repair_share=0.0)}
BreakAndRepair.ladders = {"fable": {f"{p:g}": replace(_fable, repair_share=p) for p in (0.0, 0.1, 0.5)}}
