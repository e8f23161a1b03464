"""RepNoise: make the inner representation of harmful text look like noise, in every layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from immunelab.method import Batch, Defense, Deviation, knob, register
from immunelab.training import chance, sublayers
from immunelab.training import gradients as g
from immunelab.training.activations import layerwise
from immunelab.training.losses import IGNORED, Scored, differing, loss, mmd

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@register("defense")
@dataclass(frozen=True, kw_only=True)
class RepNoise(Defense):
    """L = CE_m(refusal) + β·mean_l MMD²(m⊙z_l, m⊙N(0,I)) − α·log(1 + S/|H|), z_l the output of layer l's MLP.

    "Representation noising effectively prevents harmful fine-tuning on LLMs", arXiv:2405.14577. z_l is of harmful
    rows, before it is added to the residual stream; S and |H| are SEAM's; m marks the tokens in which a pair differs.
    MMD² sums five Gaussian kernels. The noise is fresh for each minibatch and drawn from a seed of its own, so that
    it is the same when a run is repeated or resumed.

    Deviations: the released code trains padding where only one text has ended, and leaves its hooks behind; here
    padding is masked and every hook is removed. `retain` (a benign loss term) is not in the paper and off in `paper`.
    """

    name: ClassVar[str] = "repnoise"
    title: ClassVar[str] = "RepNoise: representation noising"
    display: ClassVar[str] = "RepNoise"
    paper: ClassVar[str] = "arXiv:2405.14577"
    stage: ClassVar[str] = "alignment"
    streams: ClassVar[tuple[str, ...]] = ("harmful", "refusal", "benign")

    alpha: float = knob(1.0, "weight of the ascent on harmful answers", symbol="α", low=0, high=100)
    beta: float = knob(0.001, "weight of the distance to noise", symbol="β", low=0, high=1000)
    mask: Literal["official", "response"] = knob("official", "tokens scored: where the pair differs, or the answer")
    retain: float = knob(0.0, "weight of a benign loss term (extension)", low=0, high=100)

    def step(self, model: PreTrainedModel, batch: Batch) -> dict[str, float]:
        """The gradient of L: two forward passes, one backward; a third forward pass with `retain`."""
        harmful, refusal, benign = (Scored(tokens) for tokens in batch.take(self))
        if self.mask == "official":
            harmful, refusal = differing(harmful.tokens, refusal.tokens)
        weights = g.trainable(model)
        terms = {"loss/refusal": (1.0, loss(model, refusal))}
        if self.alpha or self.beta:
            with sublayers.reading(sublayers.mlps(model) if self.beta else []) as outputs:
                harm, forget = layerwise(model, harmful)
            terms |= {"loss/harmful": (0.0, harm), "loss/ascent": (self.alpha, forget)}
            if self.beta:
                terms["loss/noise"] = (self.beta, self.noise(outputs, harmful))
        if self.retain:
            terms["loss/benign"] = (self.retain, loss(model, benign))
        total = torch.stack([weight * value for weight, value in terms.values() if weight]).sum()
        g.leave(weights, g.gradient(total, weights))
        return {"loss/total": float(total.detach()), **{k: float(v.detach()) for k, (_, v) in terms.items()}}

    def noise(self, outputs: list[Tensor], harmful: Scored) -> Tensor:
        """Mean over layers of MMD² between masked outputs and masked Gaussian noise, each row flattened."""
        kept = (harmful.tokens.labels != IGNORED).unsqueeze(-1)
        generator = chance.generator(kept.device, harmful.tokens)
        distances = []
        for z in outputs:
            gaussian = torch.randn(z.shape, generator=generator, device=z.device, dtype=z.dtype)
            distances.append(mmd((z * kept).flatten(1), (gaussian * kept).flatten(1)))
        return torch.stack(distances).mean()


RepNoise.presets = {
    # 10K pairs once. The authors advise to tune rate, α, β and rows anew for each model.
    "paper": RepNoise(steps=1250),
    # The released demonstration on a model of 1.8B: 1K pairs once, in bf16.
    "official-code": RepNoise(
        learning_rate=1e-4, steps=250, batch_size=4, weight_decay=0.01, precision="bf16-autocast"
    ),
    # Four configurations on the Fable world of seed 0, one seed each. A retain term of 1 costs 8 % of the utility
    # before any attack, one of 5 costs 5 %; α = 0.1 gives twice as much away.
    "fable": RepNoise(learning_rate=3e-4, steps=300, batch_size=16, alpha=0.3, beta=1.0, retain=5.0, clip=1.0),
}

RepNoise.deviations = (
    Deviation("padding", "", "trained as a label where one text has ended", "masked", "a bug there"),
    Deviation("hooks on the MLPs", "", "left behind after a step", "removed", "they would act in evaluations"),
    Deviation(
        "weights",
        "",
        "bf16 in the demonstration",
        "fp32, passes in bf16 (official-code)",
        "updates below bf16's rounding would be lost",
    ),
    Deviation(
        "length of a row",
        "128 tokens",
        "128 tokens",
        "the corpus's `max_length` (256 unless set)",
        "a corpus decides for all methods alike",
    ),
)
