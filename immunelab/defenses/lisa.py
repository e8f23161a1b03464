"""Lisa: a provider alternates between its refusals and the user's rows, and each phase is held near the other's end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from immunelab.errors import UserError
from immunelab.method import Batch, Deviation, Memory, Service, Step, knob, register
from immunelab.training import gradients as g
from immunelab.training.losses import loss

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@register("defense")
@dataclass(frozen=True, kw_only=True)
class Lisa(Service):
    """K₁ steps on L = CE(refusal) + ρ/2·‖w − w_u‖², K₂ steps on L = CE(user) + ρ/2·‖w − w_a‖², in turn.

    "Lisa: Lazy Safety Alignment for Large Language Models against Harmful Fine-tuning", arXiv:2405.18641. w_u and w_a
    are the weights at the end of the last user and the last alignment phase; both start as the released weights, and
    the first phase is alignment. It defends only where a *provider* runs the fine-tuning: in attacks that a provider
    would carry out (`harmful-sft`, `lora-sft`, `benign-sft`) on the checkpoint of this run, which is the model as it
    was given. Whoever has the weights goes past it. One optimizer serves both phases, at the user's learning rate and
    on the user's number of steps, so that the user's rows get K₂/(K₁+K₂) of them: the user's minibatch of an alignment
    step is left out, as in the released code. What trains is held: all weights, or the adapter of `lora-sft`.
    Deviations: K₁ and K₂ count minibatches, as the code does, which are steps unless a user accumulates; the code's
    first tenth without the pull is the knob `free`, a number of minibatches.
    """

    name: ClassVar[str] = "lisa"
    title: ClassVar[str] = "Lisa (provider-side)"
    paper: ClassVar[str] = "arXiv:2405.18641"
    stage: ClassVar[str] = "fine-tuning"
    assumes: ClassVar[str] = "a provider who runs the fine-tuning, with refusals of its own"
    streams: ClassVar[tuple[str, ...]] = ("refusal",)

    alignment_steps: int = knob(100, "minibatches of refusals in a row", symbol="K₁", low=0, high=10**6)
    user_steps: int = knob(900, "minibatches of the user in a row", symbol="K₂", low=0, high=10**6)
    rho: float = knob(1.0, "pull to the end of the other phase", symbol="ρ", low=0, high=1e6)
    free: int = knob(0, "first minibatches without the pull", low=0, high=10**9)
    samples: int = knob(0, "distinct refusals of the provider; 0 takes all there are", low=0, high=10**9)
    batch_size: int = knob(8, "refusals in one minibatch", low=1, high=4096)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.alignment_steps + self.user_steps:
            raise UserError("Lisa needs a phase: alignment_steps and user_steps are both 0.")

    def phase(self, number: int) -> str:
        """The phase of a minibatch: alignment or user."""
        cycle = self.alignment_steps + self.user_steps
        return "alignment" if number % cycle < self.alignment_steps else "user"

    def during(self, model: PreTrainedModel, memory: Memory, step: Step) -> Step:
        """The user's step, or one on refusals instead, and the pull on top."""

        def guarded(trained: PreTrainedModel, batch: Batch) -> dict[str, float]:
            weights = g.trainable(trained)
            phase = self.phase(batch.number)
            anchor = self.anchors(memory.tensors, weights, batch.number)[phase]
            if phase == "alignment":
                (refusal,) = memory.rows(batch.number).take(self)
                value = loss(trained, refusal)
                g.leave(weights, g.gradient(value, weights))
                scalars = {"loss/total": float(value.detach()), "loss/refusal": float(value.detach())}
            else:
                scalars = step(trained, batch)
            away = list(torch._foreach_sub([w.detach() for w in weights], anchor))
            if self.rho and batch.number >= self.free:
                given = [(w.grad, a) for w, a in zip(weights, away, strict=True) if w.grad is not None]
                g.accumulate([grad for grad, _ in given], [a for _, a in given], self.rho)
            return scalars | {"lisa/aligning": float(phase == "alignment"), "lisa/distance": float(g.norm(away))}

        return guarded

    def anchors(
        self, kept: dict[str, Tensor], weights: list[torch.nn.Parameter], number: int
    ) -> dict[str, list[Tensor]]:
        """By phase the weights that pull in it: those at the end of the other one, copied when the phase changes."""
        phase = self.phase(number)
        fresh = [p for p in ("alignment", "user") if f"{p}/0" not in kept]
        if number and self.phase(number - 1) != phase:
            fresh.append(phase)
        for name in fresh:
            kept |= {f"{name}/{i}": w.detach().clone() for i, w in enumerate(weights)}
        return {p: [kept[f"{p}/{i}"] for i in range(len(weights))] for p in ("alignment", "user")}


Lisa.presets = {
    "paper": Lisa(samples=10_000, batch_size=5),
    # 10,000 refusals, batch 5; a tenth of its 20,000 steps (5,000 rows, 20 epochs) is without the pull.
    "official-code": Lisa(samples=10_000, batch_size=5, free=2001),
    # Three configurations on the world of seed 0, one seed each, in cycles that fit into 60 steps. With the user's rows
    # in three steps of five it is broken at ρ = 1 and 30; in a quarter it holds, and users hardly train.
    "fable": Lisa(alignment_steps=3, user_steps=1, rho=30.0),
}

Lisa.deviations = (
    Deviation(
        "first minibatch with the pull",
        "the first",
        "number 2,001 of 20,000, counted from 0",
        "the same in `official-code`",
    ),
    Deviation("refusals", "each once", "by step number, so that 65 % are seen", "as the code"),
    Deviation("clipping", "not stated", "norm 1.0 (the trainer's default)", "the user's"),
)
