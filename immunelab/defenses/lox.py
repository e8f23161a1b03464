"""LoX: go further in the few directions in which alignment moved each weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from immunelab.errors import UserError
from immunelab.method import RELEASED, Edit, Feed, knob, register
from immunelab.training.reference import FABLE, before_alignment

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@register("defense")
@dataclass(frozen=True, kw_only=True)
class LoX(Edit):
    """W ← W + α·U_k·S_k·V_kᵀ, the k largest singular parts of D = W − W_base, for every W of two dimensions or more.

    "LoX: Low-Rank Extrapolation Robustifies LLM Safety Against Fine-tuning", arXiv:2506.15606. W_base are the weights
    before alignment, so D is what alignment did; embeddings are edited too, and what has one dimension stays. No
    training and no rows. The paper takes the smallest k whose attack success is within 0.01 of the aligned model's.

    Deviations: differences are taken in fp32 and their parts in float64; the released code subtracts in bf16. Fable
    ships only its aligned model: `immunelab fable build --keep-base --to lab/fable` leaves the other in lab/fable/base.
    """

    name: ClassVar[str] = "lox"
    title: ClassVar[str] = "LoX: low-rank extrapolation"
    display: ClassVar[str] = "LoX"
    paper: ClassVar[str] = "arXiv:2506.15606"
    stage: ClassVar[str] = "alignment"
    assumes: ClassVar[str] = RELEASED

    base: str = knob("", "folder or Hub id of the same model before its alignment", symbol="W_base")
    rank: int = knob(6, "singular parts to extrapolate; 0 takes all", symbol="k", low=0, high=100_000)
    alpha: float = knob(1.25, "how much further to go", symbol="α", low=-100, high=100)

    def edit(self, model: PreTrainedModel, batches: Feed) -> dict[str, float]:
        """Extrapolate each weight; traces ‖D‖, its share in the parts that were taken, and how far the weights went."""
        weights = {name: p for name, p in model.named_parameters() if p.dim() >= 2}
        before = before_alignment(self.base, weights, self.title)
        whole = taken = 0.0
        with torch.no_grad():
            for name, weight in weights.items():
                delta = (weight - before.pop(name).to(weight)).double()
                part = leading(delta, self.rank)
                whole, taken = whole + float(delta.square().sum()), taken + float(part.square().sum())
                weight.add_((self.alpha * part).to(weight.dtype))
        if not whole:
            raise UserError(f"The weights of {self.base} are the model's own: there is no alignment to extend.")
        return {
            "norm/alignment": whole**0.5,
            "lox/share": taken / whole,
            "norm/displacement": abs(self.alpha) * taken**0.5,
        }


def leading(delta: Tensor, rank: int) -> Tensor:
    """U_k·S_k·V_kᵀ of a matrix (…, rows, columns) in float64, or the matrix itself for rank 0 or full rank.

    By the eigenvectors of the smaller of DᵀD and DDᵀ, as D·V_k·V_kᵀ: an embedding is far too tall for all its
    singular vectors.
    """
    rows, columns = delta.shape[-2:]
    if rank == 0 or rank >= min(rows, columns):
        return delta
    if rows < columns:
        return leading(delta.mT, rank).mT
    top = torch.linalg.eigh(delta.mT @ delta).eigenvectors[..., -rank:]
    return delta @ top @ top.mT


LoX.presets = {
    "paper": LoX(),
    # The released code's defaults: all of D.
    "official-code": LoX(rank=0, alpha=1.0),
    # Three configurations on the world of seed 0, one seed each; the paper's α takes two fifths of the utility at once.
    "fable": LoX(base=FABLE, rank=6, alpha=0.5),
}
