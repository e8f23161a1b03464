"""The residual stream: its values at a prompt's end, the weights that write to it, and how to remove a direction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn

from immunelab.errors import UserError
from immunelab.method import Tokens
from immunelab.training.gradients import LAYER
from immunelab.training.losses import IGNORED, forward
from immunelab.training.models import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Output layers of attention and MLP: Llama, Qwen, Mistral, Gemma, SmolLM · GPT-2 · GPT-NeoX, Phi · OPT
WRITERS = ("o_proj", "down_proj", "c_proj", "dense", "dense_4h_to_h", "out_proj", "fc2")
# Input layers of attention and MLP, in the same order
READERS = (
    "q_proj",
    "k_proj",
    "v_proj",
    "gate_proj",
    "up_proj",
    "c_attn",
    "c_fc",
    "query_key_value",
    "dense_h_to_4h",
    "fc1",
)
KINDS = ("attention", "mlp", "read")  # what writes from an attention or an MLP, and what reads
AFTER_WRITING = ("post_feedforward_layernorm", "post_self_attn_layernorm", "post_mlp_layernorm")  # Gemma 2, GLM-4


class Writer(NamedTuple):
    """A weight that writes to the residual stream; `axis` is the one along which it writes."""

    weight: Tensor
    axis: int


class Part(NamedTuple):
    """A matrix of a layer that writes to the residual stream or reads it, along `axis`; `depth` is 0 in the first
    layer and 1 in the last."""

    weight: Tensor
    axis: int
    kind: str  # of KINDS
    depth: float


def at_prompt_end(model: PreTrainedModel, tokens: Tokens) -> Tensor:
    """Hidden states at each row's last prompt token: (rows, layers + 1, width), the embedding output first."""
    with evaluating(model):
        hidden = forward(model, tokens, hidden=True)[1]
    last = (tokens.labels != IGNORED).int().argmax(dim=1) - 1
    rows = torch.arange(len(last), device=last.device)
    return torch.stack([h[rows, last] for h in hidden], dim=1).float()


def directions(model: PreTrainedModel, pairs: Sequence[Sequence[Tokens]], random: bool = False) -> Tensor:
    """Unit differences of means (layers, width) at prompts' ends, harmful less benign, of the outputs of layers 0
    (embedding) … last but one; `random` ones instead. A UserError where harmful and benign leave the same states.

    Source: arXiv:2406.11717.
    """
    means = [torch.cat([at_prompt_end(model, pair[k]) for pair in pairs]).mean(dim=0)[:-1] for k in range(2)]
    found = torch.randn_like(means[0]) if random else means[0] - means[1]
    if not bool((found[1:].norm(dim=1) > 0).all()):
        raise UserError("Harmful and benign prompts leave the same hidden states, so there is no direction between.")
    return found / found.norm(dim=1, keepdim=True).clamp_min(1e-30)


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


def parts(model: PreTrainedModel) -> list[Part]:
    """The matrices of all layers that write to the residual stream or read it; a UserError if the architecture is not
    known."""
    writers(model)
    count, found = max(1, int(model.config.num_hidden_layers) - 1), list[Part]()
    for name, module in model.named_modules():
        last, number = name.rsplit(".", 1)[-1], LAYER.search(f".{name}.")
        linear = isinstance(module, nn.Linear)
        if not number or not (linear or type(module).__name__ == "Conv1D"):
            continue
        kind = "read" if last in READERS else "attention" if "attn" in name or "attention" in name else "mlp"
        if kind == "read" or last in WRITERS:
            weight, output = cast(Tensor, module.weight), 0 if linear else 1
            found.append(Part(weight, 1 - output if kind == "read" else output, kind, int(number[1]) / count))
    return found


def weaken(part: Part, direction: Tensor, strength: float) -> None:
    """W ← W − s·r·rᵀW along the part's axis, r of unit length (width,), in place."""
    with torch.no_grad():
        r, w = direction.to(part.weight.dtype), part.weight
        w.sub_(torch.outer(r, r @ w) if part.axis == 0 else torch.outer(w @ r, r), alpha=strength)


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
