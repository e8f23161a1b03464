"""Control: more of the ordinary safety training, on a defense's budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from immunelab.method import Batch, Defense, knob, register
from immunelab.training.losses import scored
from immunelab.training.objective import CrossEntropy, minimize

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@register("defense")
@dataclass(frozen=True, kw_only=True)
class ExtraSafetySft(Defense):
    """L = CE(refusal): the control that tells a defense from merely more refusals.

    Run it with the rows, steps, learning rate and batch of the defense that it stands beside; the preset `fable` has
    SEAM's. It is SEAM without its ascent and coupling, and the adversarial loss at α = 0. The harmful rows only serve
    the mask of differing tokens. A control of arXiv:2402.16382 and arXiv:2405.14577.
    """

    name: ClassVar[str] = "extra-safety-sft"
    title: ClassVar[str] = "Control: extra safety fine-tuning"
    display: ClassVar[str] = "Extra safety SFT"
    paper: ClassVar[str] = "arXiv:2402.16382"
    stage: ClassVar[str] = "alignment"
    streams: ClassVar[tuple[str, ...]] = ("harmful", "refusal")

    mask: Literal["response", "official"] = knob("response", "tokens scored: the refusal, or where the pair differs")

    def step(self, model: PreTrainedModel, batch: Batch) -> dict[str, float]:
        """The plain gradient of the refusal loss."""
        _, refusal = scored(self, batch, self.mask)
        return minimize(model, CrossEntropy(refusal))

    def weight(self, batch: Batch) -> float:
        """The refusals' tokens; under the official mask minibatches count alike, as in the released code."""
        return 1.0 if self.mask == "official" else batch.take(self)[1].scored()


ExtraSafetySft.presets = {
    "paper": ExtraSafetySft(),  # the budget of SEAM's preset `paper`
    "fable": ExtraSafetySft(learning_rate=3e-4, steps=300, batch_size=16),  # the budget of SEAM's preset `fable`
}
