"""Hidden states read through the model's own final norm and output head (the "logit lens" that SEAM ascends)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from immunelab.errors import UserError
from immunelab.training import heads, losses
from immunelab.training.heads import Head

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Llama, Qwen, Mistral, SmolLM, Gemma · GPT-2, GPT-J, Falcon · GPT-NeoX, OPT · Phi
FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f")


class Lens:
    """Reads a hidden state as logits: head(final_norm(h)), with the model's soft-capping if it has one.

    Raises a UserError naming what is missing if the final norm or the output head cannot be found, or if the head
    does not reproduce the model's own logits: a layer-wise loss must never be dropped in silence.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
        kind = type(inner).__name__
        found = [
            (name, module)
            for name, module in inner.named_modules()
            if name.split(".")[-1] in FINAL_NORMS and not any(part.isdigit() for part in name.split("."))
        ]
        if len(found) != 1:
            names = ", ".join(name for name, _ in found) or "none"
            raise UserError(
                f"The layer-wise term needs the model's final norm, and {kind} has {len(found)} candidates ({names}). "
                f"Known names: {', '.join(FINAL_NORMS)}. Use ascent=final-logit for this architecture."
            )
        self.norm: nn.Module = found[0][1]
        self.head = Head(model)

    def read(self, hidden: Tensor) -> Tensor:
        """Logits (…, vocabulary) of hidden states (…, width)."""
        return self.head(self.norm(hidden))

    def losses(self, last: Tensor, hidden: tuple[Tensor, ...], scored: losses.Scored) -> list[Tensor]:
        """Cross-entropy of every hidden state read as logits: |H| = layers + 1 scalars, the embedding output first.

        The last hidden state that transformers returns has been normalized already, so the norm acts on it twice, as
        in the released code of SEAM and RepNoise. It must be what the model gives its head, `last`.
        """
        if not torch.equal(hidden[-1][:1, :1], last[:1, :1]):
            raise UserError(
                f"The layer-wise term reads hidden states through {self.head.kind}'s output head, but that head is "
                "given something else than the last of them. Use ascent=final-logit."
            )
        return [losses.read_loss(self.read, h, scored) for h in hidden]


def layerwise(model: PreTrainedModel, scored: losses.Scored) -> tuple[Tensor, Tensor]:
    """The final cross-entropy of a minibatch, and L_ul = −log(1 + S/|H|) over all hidden states: one forward pass."""
    lens = Lens(model)
    head, last, out = heads.before_head(model, lambda: losses.output(model, scored.tokens, hidden=True))
    final = losses.read_loss(head, last, scored)
    return final, losses.ascent(final, lens.losses(last, tuple(out.hidden_states), scored))
