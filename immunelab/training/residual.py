"""The residual stream: its values at a prompt's end, the weights that write to it, and how to remove a direction."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from immunelab.errors import UserError
from immunelab.method import Tokens
from immunelab.training.losses import IGNORED, forward
from immunelab.training.models import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Output layers of attention and MLP: Llama, Qwen, Mistral, Gemma, SmolLM · GPT-2 · GPT-NeoX, Phi · OPT
WRITERS = ("o_proj", "down_proj", "c_proj", "dense", "dense_4h_to_h", "out_proj", "fc2")
AFTER_WRITING = ("post_feedforward_layernorm", "post_self_attn_layernorm", "post_mlp_layernorm")  # Gemma 2, GLM-4


class Writer(NamedTuple):
    """A weight that writes to the residual stream; `axis` is the one along which it writes."""

    weight: Tensor
    axis: int


def at_prompt_end(model: PreTrainedModel, tokens: Tokens) -> Tensor:
    """Hidden states at each row's last prompt token: (rows, layers + 1, width), the embedding output first."""
    with evaluating(model):
        hidden = forward(model, tokens, hidden=True)[1]
    last = (tokens.labels != IGNORED).int().argmax(dim=1) - 1
    rows = torch.arange(len(last), device=last.device)
    return torch.stack([h[rows, last] for h in hidden], dim=1).float()


def writers(model: PreTrainedModel) -> list[Writer]:
    """Every weight that writes to the residual stream: embeddings, attention and MLP outputs, and their biases.

    A UserError if the architecture is not known, because a missed writer would let the direction back in.
    """
    width, count = int(model.config.hidden_size), int(model.config.num_hidden_layers)
    kind = type(model).__name__
    found: list[Writer] = []
    blocks = 0
    for name, module in model.named_modules():
        last = name.rsplit(".", 1)[-1]
        if last in AFTER_WRITING:
            raise UserError(f"{kind} scales what its layers write ({last}), so a direction can't be taken out exactly.")
        if isinstance(module, nn.Embedding) and module.embedding_dim == width:
            found.append(Writer(module.weight, 1))
        elif last in WRITERS and (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"):
            blocks += 1
            found.append(Writer(module.weight, 0 if isinstance(module, nn.Linear) else 1))
            if isinstance(module.bias, nn.Parameter):
                found.append(Writer(module.bias, 0))
    if blocks != 2 * count:
        raise UserError(
            f"{kind} has {count} layers and {blocks} weights known to write to the residual stream, where two a layer "
            f"are expected. Known names: {', '.join(WRITERS)}."
        )
    return found


def remove(found: list[Writer], direction: Tensor) -> None:
    """W ← W − r·rᵀW for each, r of unit length (width,), in place; computed in float64."""
    with torch.no_grad():
        for weight, axis in found:
            r, w = direction.double(), weight.double()
            part = (
                torch.outer(r, r @ w) if w.dim() == 2 and axis == 0 else torch.outer(w @ r, r) if w.dim() == 2 else None
            )
            weight.copy_(w - (part if part is not None else r * (r @ w)))


def share_left(found: list[Writer], direction: Tensor) -> float:
    """The largest ‖rᵀW‖/‖W‖ over the writers; 0 if none of them can write the direction."""
    r = direction.double()
    found = [Writer(w.detach(), axis) for w, axis in found]
    parts = [(r @ w.double() if axis == 0 else w.double() @ r, w) for w, axis in found]
    return max(float(p.norm() / max(float(w.double().norm()), 1e-30)) for p, w in parts)
