"""Safe LoRA: after a user's fine-tuning, a provider projects it onto the directions in which alignment went."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from immunelab.errors import UserError
from immunelab.method import Feed, Memory, Service, knob, register
from immunelab.training import adapters
from immunelab.training import gradients as g
from immunelab.training.adapters import oriented, upright
from immunelab.training.reference import FABLE, before_alignment

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTED = "base_model.model."  # how PEFT begins the names of the modules that it wraps


class Learned(NamedTuple):
    """What a user's fine-tuning did to one layer."""

    moved: Tensor  # the tensor that a projection changes: B of an adapter, or W as (out, in)
    start: Tensor | None  # W before the fine-tuning; None for an adapter, which starts at nothing
    delta: Tensor  # ΔW (out, in), float32


@register("defense")
@dataclass(frozen=True, kw_only=True)
class SafeLora(Service):
    """ΔW ← C·ΔW where cos(C·ΔW, ΔW) is lowest, C = V·Vᵀ/‖V‖_F, V = W_aligned − W_base, for each layer.

    "Safe LoRA: the Silver Lining of Reducing Safety Risks when Fine-tuning Large Language Models", arXiv:2405.16833.
    The user's fine-tuning is left alone; what is served has the least aligned layers projected. It defends only where
    a *provider* runs the fine-tuning and serves the result. Of an adapter B becomes C·B; of a fine-tuning of all
    weights, which the paper does not treat, the `targets` become W_aligned + C·ΔW. C is as in the paper and the
    released code: no projector (C² ≠ C), and as long as alignment went far, so that it shrinks ΔW too.
    """

    name: ClassVar[str] = "safe-lora"
    title: ClassVar[str] = "Safe LoRA (provider-side)"
    display: ClassVar[str] = "Safe LoRA"
    paper: ClassVar[str] = "arXiv:2405.16833"
    stage: ClassVar[str] = "post-fine-tuning"
    assumes: ClassVar[str] = "a provider who runs the fine-tuning, has the model before alignment, and serves the model"
    streams: ClassVar[tuple[str, ...]] = ()

    base: str = knob("", "folder or Hub id of the same model before its alignment", symbol="W_base")
    select: Literal["number", "threshold"] = knob("number", "which layers: the lowest by number, or by a threshold")
    layers: int = knob(10, "layers that are projected, if select=number", low=0, high=100_000)
    threshold: float = knob(
        0.5, "cosine up to which a layer is projected, if select=threshold", symbol="τ", low=-2, high=2
    )
    targets: str = knob("q_proj,v_proj", "layers that are looked at, separated by commas, or all-linear")

    def edit(self, model: PreTrainedModel, batches: Feed) -> dict[str, float]:
        """Nothing changes; how far alignment went in the targets. A UserError without the model before it."""
        alignment = self.alignment(model)
        length = float(g.norm(list(alignment.values())))
        if not length:
            raise UserError(f"The weights of {self.base} are the model's own: there is no alignment to project onto.")
        return {"norm/alignment": length}

    def kept(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """For each target its C (out, out), and the weight that users start from."""
        found = {}
        weights = self.looked_at(model)
        for name, v in self.alignment(model).items():
            found[f"projection/{name}"] = projection(v)
            found[f"aligned/{name}"] = oriented(weights[name]).detach().clone().contiguous()
        return found

    @contextmanager
    def serving(self, model: PreTrainedModel, memory: Memory) -> Iterator[dict[str, float]]:
        """The model with the least aligned layers projected inside."""
        kept = memory.tensors
        learned = self.learned(model, kept)
        projected = {name: kept[f"projection/{name}"].to(x.delta) @ x.delta for name, x in learned.items()}
        cosines = {name: cosine(projected[name], x.delta) for name, x in learned.items()}
        chosen = self.chosen(cosines)
        scalars = {
            "projected/layers": float(len(chosen)),
            "projected/cosine": sum(cosines.values()) / max(1, len(cosines)),
            "norm/projected": 0.0,
        }
        if not chosen:  # also in the provider's own run, before there is a user
            yield scalars
            return
        tensors = [learned[name].moved for name in chosen]
        with g.restored(tensors) as before:
            with torch.no_grad():
                for name in chosen:
                    x, c = learned[name], kept[f"projection/{name}"]
                    x.moved.copy_(c.to(x.moved) @ x.moved if x.start is None else x.start + projected[name])
                gone = list(torch._foreach_sub(tensors, before))
            yield scalars | {"norm/projected": float(g.norm(gone))}

    def chosen(self, cosines: dict[str, float]) -> list[str]:
        """The layers to project, the least aligned first."""
        order = sorted(cosines, key=lambda name: cosines[name])
        if self.select == "number":
            return order[: self.layers]
        return [name for name in order if cosines[name] <= self.threshold]

    def looked_at(self, model: PreTrainedModel) -> dict[str, nn.Module]:
        """The targets by name; a UserError names a missing one."""
        wanted = adapters.layers(model) if self.targets == "all-linear" else adapters.named(model, self.targets)
        return {
            name: module
            for name, module in model.named_modules()
            if name.split(".")[-1] in wanted and hasattr(module, "weight")
        }

    def alignment(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """V (out, in) of each target, float32."""
        modules = self.looked_at(model)
        weights = {f"{name}.weight": m.get_parameter("weight") for name, m in modules.items()}
        before = before_alignment(self.base, weights, self.title)
        moved = {name: (w.detach() - before[name].to(w)).float() for name, w in weights.items()}
        return {name: upright(moved[f"{name}.weight"], m) for name, m in modules.items()}

    def learned(self, model: PreTrainedModel, kept: dict[str, Tensor]) -> dict[str, Learned]:
        """What the fine-tuning did to each target: through an adapter where there is one."""
        modules = dict(model.named_modules())
        known = [name.removeprefix("projection/") for name in kept if name.startswith("projection/")]
        adapted = any(hasattr(m, "lora_B") for m in modules.values())
        found = {}
        for name in known:
            layer = modules.get(ADAPTED + name if adapted else name)
            if layer is None or (adapted and not hasattr(layer, "lora_B")):
                continue  # the user's adapter does not touch it
            if adapted:
                (key,) = layer.active_adapters
                a, b = layer.lora_A[key].weight, layer.lora_B[key].weight
                found[name] = Learned(b.detach(), None, layer.scaling[key] * (b @ a).detach().float())
            else:
                weight, start = oriented(layer).detach(), kept[f"aligned/{name}"]
                found[name] = Learned(weight, start.to(weight), (weight - start.to(weight)).float())
        return found


def projection(v: Tensor) -> Tensor:
    """C = V·Vᵀ/‖V‖_F (out, out) of V (out, in); zeros where alignment did not move the layer."""
    length = torch.linalg.vector_norm(v)
    return v @ v.T / length if float(length) else torch.zeros(len(v), len(v), dtype=v.dtype, device=v.device)


def cosine(a: Tensor, b: Tensor) -> float:
    """Of two matrices as vectors; 1 if one is zero, because then there is nothing to project."""
    lengths = torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b)
    return float((a * b).sum() / lengths) if float(lengths) else 1.0


# Five counts on the world of seed 0, one seed each, all weights trained at 3e-4: with up to 14 of the 28 layers it is
# broken as if nothing were there, with 20 it gives a third away, with 24 and 28 nothing; nothing of a harmless skill
# is learned by then, either.
SafeLora.presets = {
    "paper": SafeLora(),  # the released code's defaults, for 32 layers of two targets each
    "official-code-threshold": SafeLora(select="threshold"),
    "fable": SafeLora(base=FABLE, targets="all-linear", layers=24),
}
