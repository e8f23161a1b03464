"""LoRA adapters by PEFT: attach to a plain model, merge into a plain model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from immunelab.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def attach(model: PreTrainedModel, *, rank: int, alpha: float, targets: str) -> PreTrainedModel:
    """The model with a new LoRA adapter (B = 0, no dropout), which alone trains; use the returned model.

    `targets` are names of linear layers, separated by commas, or `all-linear` (all but the output head). A UserError
    names a target that the model lacks, and the ones it has.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT's type says int, but it only divides by it
        lora_dropout=0.0,
        target_modules=targets if targets == "all-linear" else list(dict.fromkeys(named(model, targets))),
        fan_in_fan_out=any(type(m).__name__ == "Conv1D" for m in model.modules()),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)  # type: ignore[return-value]  # it wraps the model and behaves like it


def merge(model: PreTrainedModel) -> PreTrainedModel:
    """The plain model with W + (α/r)·B·A in place of W, every parameter trainable; consumes the adapted one."""
    plain: PreTrainedModel = model.merge_and_unload()  # type: ignore[operator]  # typed as a tensor in transformers
    return plain.requires_grad_(True)


def named(model: nn.Module, targets: str) -> list[str]:
    """The targets as a list; a UserError names one that is not a layer of the model."""
    known = layers(model)
    wanted = [target.strip() for target in targets.split(",") if target.strip()]
    for target in wanted:
        if target not in known:
            raise UserError(
                f"No layer of {type(model).__name__} is called {target!r}. Targets for an adapter: "
                f"{', '.join(known)}, or all-linear."
            )
    if not wanted:
        raise UserError(f"An adapter needs targets: some of {', '.join(known)}, or all-linear.")
    return wanted


def layers(model: nn.Module) -> list[str]:
    """The last parts of the names of linear layers inside blocks, each once."""
    found = {
        name.rsplit(".", 1)[-1]: None
        for name, module in model.named_modules()
        if any(part.isdigit() for part in name.split("."))
        and (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D")
    }
    return list(found)


def oriented(layer: nn.Module) -> Tensor:
    """The weight of a linear layer as (out, in), as a view."""
    return upright(layer.get_parameter("weight"), layer)


def upright(weight: Tensor, layer: nn.Module) -> Tensor:
    """A tensor of a linear layer's shape as (out, in), as a view; GPT-2's layers store (in, out)."""
    return weight if isinstance(layer, nn.Linear) else weight.T
