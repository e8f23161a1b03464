"""LoRA adapters by PEFT: attach to a plain model, merge into a plain model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from immunelab.errors import UserError
from immunelab.method import Defense, Feed, knob

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def attach(model: PreTrainedModel, *, rank: int, alpha: float, targets: str) -> PreTrainedModel:
    """The model with a fresh LoRA adapter (B = 0, no dropout) that alone trains; use what is returned.

    `targets` are names of linear layers, separated by commas, or `all-linear` (all but the output head). A UserError
    names a target that the model does not have, and those that it has.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft says int and divides
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
    """The targets as a list; a UserError names one that no layer of the model is called."""
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
    """The last names of the linear layers inside blocks, each once."""
    found = {
        name.rsplit(".", 1)[-1]: None
        for name, module in model.named_modules()
        if any(part.isdigit() for part in name.split("."))
        and (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D")
    }
    return list(found)


@dataclass(frozen=True, kw_only=True)
class Adaptable(Defense):
    """A defense that trains all weights, or (`rank` > 0) a LoRA adapter alone, merged before the model is released."""

    rank: int = knob(
        0, "rank of a LoRA adapter that trains in place of the weights; 0 trains them all", low=0, high=4096
    )
    scale: float = knob(4.0, "scale of the adapter, divided by its rank", low=1e-3, high=1e5)
    targets: str = knob("q_proj,k_proj,v_proj", "linear layers to adapt, separated by commas, or all-linear")

    @property
    def prepares(self) -> bool:
        """Only an adapter is something to prepare."""
        return self.rank > 0

    def prepare(self, model: PreTrainedModel, batches: Feed) -> PreTrainedModel:
        """The model, with a fresh adapter if one is asked for."""
        return attach(model, rank=self.rank, alpha=self.scale, targets=self.targets) if self.rank else model

    def after(self, model: PreTrainedModel) -> PreTrainedModel:
        """The plain model, the adapter merged."""
        return merge(model) if self.rank else model
