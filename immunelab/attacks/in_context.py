"""In context: answered harmful questions stand before the one that is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from immunelab.method import Edit, Feed, knob, register

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@register("attack")
@dataclass(frozen=True, kw_only=True)
class InContext(Edit):
    """answer = f(q_1 ⊕ a_1 ⊕ … ⊕ q_k ⊕ a_k ⊕ prompt): k answered questions about other hazards come first, as turns.

    Threat model: anyone who may write the conversation; the weights stay as they are, so benign questions are asked as
    before. The k rows are from the attacker's split, and their hazards are not those that are asked about. A
    longer conversation must fit into the model's context. Source: "Many-shot jailbreaking", Anil et al., NeurIPS 2024;
    in-context attacks on models with filtered pretraining: arXiv:2508.06601.
    """

    name: ClassVar[str] = "in-context"
    title: ClassVar[str] = "Answered questions in the prompt"
    paper: ClassVar[str] = "arXiv:2508.06601"
    stage: ClassVar[str] = "inference"

    shots: int = knob(8, "answered harmful questions before each harmful one", symbol="k", low=0, high=10_000)

    def edit(self, model: PreTrainedModel, batches: Feed) -> dict[str, float]:
        """Nothing: the weights stay as they are."""
        return {}

    def examples(self) -> int:
        """As many as asked for."""
        return self.shots


InContext.presets = {"fable": InContext(shots=3)}  # four and an answer do not fit into its 128 tokens
