"""The attention and MLP modules of a model's layers: read their outputs, or shift them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from immunelab.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Llama, Qwen, Mistral, Gemma, SmolLM, OPT, Phi · GPT-2, GPT-J · GPT-NeoX · Falcon, BLOOM
ATTENTIONS = ("self_attn", "attn", "attention", "self_attention")
MLPS = ("mlp", "feed_forward", "ffn", "block_sparse_moe")


def attentions(model: PreTrainedModel) -> list[nn.Module]:
    """The attention module of each layer, in layer order; a UserError if they are not found."""
    return _of_layers(model, "attention", ATTENTIONS)


def mlps(model: PreTrainedModel) -> list[nn.Module]:
    """The MLP module of each layer, in layer order; a UserError if they are not found."""
    return _of_layers(model, "MLP", MLPS)


def _of_layers(model: PreTrainedModel, what: str, names: tuple[str, ...]) -> list[nn.Module]:
    """The modules called `layers.<i>.<name>`; a UserError unless each layer has one, lest a loss skip a layer."""
    found = [
        module
        for path, module in model.named_modules()
        if path.split(".")[-1] in names and path.split(".")[-2:-1] and path.split(".")[-2].isdigit()
    ]
    layers = int(model.config.num_hidden_layers)
    if len(found) != layers:
        raise UserError(
            f"The method needs the {what} module of each layer, and of {type(model).__name__}'s {layers} layers "
            f"{len(found)} have one under a known name ({', '.join(names)}): take another architecture or defense."
        )
    return found


def linear_weights(model: nn.Module) -> list[Tensor]:
    """The weights of linear layers, GPT-2's too, each once, as (output, input); not those that embeddings are tied to.

    GPT-2's are transposed views, so that what is written into them arrives in the model.
    """
    tied = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    found: dict[int, Tensor] = {}
    for module in model.modules():
        transposed = type(module).__name__ == "Conv1D"
        if (transposed or isinstance(module, nn.Linear)) and id(module.weight) not in tied:
            weight = module.weight
            assert isinstance(weight, Tensor)
            found[id(weight)] = weight.T if transposed else weight
    return list(found.values())


def first(output: Any) -> Tensor:
    """What a module adds to the residual stream: its output, or the first of several outputs."""
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


@contextmanager
def reading(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Yields a list that a forward pass inside fills with each module's output (rows, length, width), in order."""
    found: list[Tensor] = []

    def read(module: nn.Module, inputs: Any, output: Any) -> None:
        found.append(first(output))

    with _hooked(modules, [read] * len(modules)):
        yield found


@contextmanager
def shifting(modules: Sequence[nn.Module], by: Sequence[Tensor]) -> Iterator[None]:
    """Inside, a constant tensor is added to each module's output; no hook stays."""

    def adding(shift: Tensor) -> Callable[..., Any]:
        def add(module: nn.Module, inputs: Any, output: Any) -> Any:
            moved = first(output) + shift.to(first(output).dtype)
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        return add

    with _hooked(modules, [adding(shift) for shift in by]):
        yield


@contextmanager
def _hooked(modules: Sequence[nn.Module], hooks: Sequence[Callable[..., Any]]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module, hook in zip(modules, hooks, strict=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
