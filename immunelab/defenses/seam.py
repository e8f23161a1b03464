r"""SEAM: couple benign and harmful gradients so that a harmful step is a step against everything else."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from immunelab.method import Batch, Defense, knob, register
from immunelab.training import gradients as g
from immunelab.training.activations import layerwise
from immunelab.training.coupling import NEEDS_FP32, Thrift, add, coupling
from immunelab.training.losses import Scored, differing, loss
from immunelab.training.models import deterministic

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@register("defense")
@dataclass(frozen=True, kw_only=True)
class Seam(Defense):
    """L = L_ul + α·L_up + β·L_sd, with L_sd = cos(g_a, g_b), L_ul = −log(1 + S/|H|), L_up = CE(refusal).

    "Self-Destructive Language Models", arXiv:2505.12186. g_a = ∇CE(harmful) and g_b = ∇CE(benign) are the flattened
    gradients; S sums the cross-entropy of the harmful answers at the output and, read through final norm and head, at
    all |H| hidden states. ∇L_sd needs two Hessian-vector products; they are estimated by differences of gradients
    at weights shifted by ε, whose error is O(ε).

    Not in the paper, and off in the presets `paper` and `official-code`: `ascent_weight` ≠ 1, `retain` (a benign
    loss term) and `coupling_clip` (the largest norm of β·∇L_sd).
    """

    name: ClassVar[str] = "seam"
    title: ClassVar[str] = "SEAM: self-destructive model"
    display: ClassVar[str] = "SEAM"
    paper: ClassVar[str] = "arXiv:2505.12186"
    stage: ClassVar[str] = "alignment"
    streams: ClassVar[tuple[str, ...]] = ("harmful", "refusal", "benign")

    alpha: float = knob(1.0, "weight of the refusal loss L_up", symbol="α", low=0, high=100)
    beta: float = knob(0.01, "weight of the coupling L_sd", symbol="β", low=-100, high=100)
    epsilon: float = knob(
        1e-3, "how far the weights are shifted for the estimate", symbol="ε", low=1e-8, high=1, log=True
    )
    estimator: Literal["finite-difference", "exact"] = knob("finite-difference", "∇L_sd by differences, or exactly")
    ascent: Literal["layerwise", "final-logit"] = knob("layerwise", "hidden states that L_ul ascends on")
    mask: Literal["response", "official"] = knob("response", "tokens scored in L_ul, L_up and g_a")
    precision: Literal["fp32", "bf16-autocast", "official-bf16"] = knob(  # type: ignore[assignment]  # one choice more
        "fp32", "arithmetic of the passes; official-bf16 also rounds the weights for ∇L_sd, as released"
    )
    ascent_weight: float = knob(1.0, "weight of L_ul (extension)", low=0, high=100)
    retain: float = knob(0.0, "weight of a benign loss term (extension)", low=0, high=100)
    coupling_clip: float = knob(0.0, "largest norm of β·∇L_sd; 0 is off (extension)", low=0, high=1e6)
    buffers: Literal["fp32", "bf16"] = knob("fp32", "precision of gradients that wait for other passes", saving=True)
    offload: bool = knob(False, "keep what waits, and the copy of the weights, in main memory", saving=True)

    def in_fp32(self) -> str:
        """Differences of gradients are; without them, or without a coupling, any weights will do."""
        return NEEDS_FP32 if self.beta and self.estimator == "finite-difference" else ""

    def step(self, model: PreTrainedModel, batch: Batch) -> dict[str, float]:
        """One direction from one minibatch each of `harmful`, `refusal` (paired with it) and `benign`."""
        harmful, refusal, benign = (Scored(tokens) for tokens in batch.take(self))
        if self.mask == "official":
            harmful, refusal = differing(harmful.tokens, refusal.tokens)
        weights = g.trainable(model)
        layered, l_ul = self.ascent == "layerwise", 0.0

        def ascending() -> tuple[Tensor, Tensor]:
            nonlocal l_ul
            final, ascent = layerwise(model, harmful)
            l_ul = float(ascent.detach())
            return final, self.ascent_weight * ascent

        def share(trace: dict[str, float]) -> tuple[float, float]:
            # Of final logits alone L_ul is −log(1 + CE), so ∇L_ul = −g_a/(1 + CE) costs nothing.
            return 0.0 if layered else -self.ascent_weight / (1 + trace["loss/harmful"]), self.retain

        together = layered and self.one_forward(weights)
        with deterministic(model):
            with self.arithmetic(model):
                pull, rest, trace = coupling(
                    model,
                    weights,
                    harmful,
                    benign,
                    epsilon=None if self.estimator == "exact" else self.epsilon,
                    needed=self.beta != 0,
                    share=share,
                    beside=ascending if together else None,
                    thrift=Thrift(torch.bfloat16 if self.buffers == "bf16" else None, self.offload),
                )
            direction = g.near(rest, weights) if rest else [torch.zeros_like(w) for w in weights]
            del rest
            if layered and not together:
                g.gather(ascending()[1], weights, direction)
            l_up = loss(model, refusal)
            g.gather(l_up, weights, direction, self.alpha)
        others = float(g.norm(direction))
        pulled = add(direction, pull, self.beta, self.coupling_clip)
        g.leave(weights, direction)

        l_ul = l_ul if layered else -math.log1p(trace["loss/harmful"])
        l_sd, l_up_value = trace["cosine/harmful-benign"], float(l_up.detach())
        weighted = self.ascent_weight * l_ul + self.alpha * l_up_value + self.beta * l_sd
        return {
            "loss/total": weighted + self.retain * trace["loss/benign"],
            "loss/ascent": l_ul,
            "loss/refusal": l_up_value,
            "loss/coupling": l_sd,
            "norm/coupling": pulled,
            "norm/rest": others,
            **trace,
        }

    def one_forward(self, weights: list[Parameter]) -> bool:
        """Whether g_a and ∇L_ul may come from one forward pass: in one arithmetic, and FSDP goes back only once."""
        return self.estimator == "finite-difference" and self.precision == "fp32" and not g.sharded(weights)

    @contextmanager
    def arithmetic(self, model: PreTrainedModel) -> Iterator[None]:
        """Differences of gradients need fp32 whatever the other passes use; `official-bf16` rounds as released."""
        rounded = (
            g.cast(list(model.parameters()), torch.bfloat16) if self.precision == "official-bf16" else nullcontext()
        )
        with torch.autocast(model.device.type, enabled=False), rounded:
            yield


Seam.presets = {
    # 4K rows of each stream once; grid-searched by the authors on models of 3–8 B parameters.
    "paper": Seam(),
    # The released scripts: 8K rows, everything in bf16, the mask of differing tokens.
    "official-code": Seam(steps=1000, mask="official", precision="official-bf16"),
    # Searched on the Fable world of seed 0 and 1, one seed each; the extensions keep a model this small useful.
    "fable": Seam(
        learning_rate=3e-4,
        steps=300,
        batch_size=16,
        ascent="final-logit",
        ascent_weight=0.65,
        alpha=0.33,
        beta=1.0,
        coupling_clip=1.0,
        retain=1.0,
    ),
}
