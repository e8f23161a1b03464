r"""SEAM: couple benign and harmful gradients so that a harmful step is a step against everything else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from immunelab.method import Batch, Defense, Deviation, knob, register
from immunelab.training.gradients import NEEDS_FP32
from immunelab.training.losses import scored
from immunelab.training.objective import Ascent, CrossEntropy, GradientCosine, Objective, minimize

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

    def objective(self, batch: Batch) -> Objective:
        """L of one minibatch each of `harmful`, `refusal` (paired with it) and `benign`."""
        harmful, refusal, benign = scored(self, batch, self.mask)
        l_ul = Ascent(harmful, on=self.ascent)
        l_up = CrossEntropy(refusal)
        l_sd = GradientCosine(
            harmful,
            benign,
            epsilon=None if self.estimator == "exact" else self.epsilon,
            largest=self.coupling_clip,
            rounded=self.precision == "official-bf16",
        )
        extension = CrossEntropy(benign)
        return self.ascent_weight * l_ul + self.alpha * l_up + self.beta * l_sd + self.retain * extension

    def step(self, model: PreTrainedModel, batch: Batch) -> dict[str, float]:
        """∇L: five or six passes, two of them at shifted weights."""
        return minimize(model, self.objective(batch))

    def in_fp32(self) -> str:
        """Differences of gradients are; without them, without a coupling, or as released, any weights will do."""
        as_released = self.precision == "official-bf16"
        return NEEDS_FP32 if self.beta and self.estimator == "finite-difference" and not as_released else ""


Seam.presets = {
    # 4K rows of each stream once; grid-searched by the authors on models of 3–8 B parameters.
    "paper": Seam(),
    # The released scripts: 8K rows, ∇L_sd in bf16, the mask of differing tokens. With dtype bf16 all is in bf16, as
    # released.
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

Seam.deviations = (
    Deviation("ascent on harmful answers", "−log(1 + S/|H|)", "log of the mean over hidden states", "the paper's"),
    Deviation(
        "precision",
        "not stated",
        "passes and ∇L_sd in bf16; weights and AdamW in bf16",
        "official-code: ∇L_sd in bf16, all else fp32",
        "in bf16 the estimate is ten times its own size off",
    ),
    Deviation("labels of benign rows", "not stated", "prompt and answer", "the answer", "as every other loss here"),
    Deviation("token 0 as a label", "", "ignored: in several vocabularies it is a sign", "scored", "a bug there"),
    Deviation("end of text", "", "not scored where it is the padding", "scored", "answers have to end"),
)
