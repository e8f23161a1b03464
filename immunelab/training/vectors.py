"""Low-rank vectors that act on a model inside a `with` only and never change its weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from immunelab.errors import UserError
from immunelab.training.adapters import layers, named

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Vector(nn.Module):
    """Adds scale·B·A·x to the outputs of chosen linear layers: a LoRA adapter made of forward hooks.

    Hooks instead of PEFT, so that outside `acting` the model keeps its names and bits, and an attacker's adapter or
    full fine-tuning works beside the vector. A (rank, in) is random, B (out, rank) starts at 0.
    """

    def __init__(self, paths: Sequence[str], a: Sequence[Tensor], b: Sequence[Tensor], scale: float) -> None:
        super().__init__()
        self.paths, self.scale = tuple(paths), scale
        self.a, self.b = nn.ParameterList(a), nn.ParameterList(b)

    @classmethod
    def fresh(cls, model: PreTrainedModel, *, rank: int, alpha: float, targets: str) -> Vector:
        """A new vector for the layers in `targets` (with commas, or all-linear); a UserError names an unknown one."""
        wanted = set(layers(model) if targets == "all-linear" else named(model, targets))
        a, b, paths = [], [], []
        for path, module in model.named_modules():
            if path.rsplit(".", 1)[-1] in wanted and path not in paths and hasattr(module, "weight"):
                weight: Tensor = module.weight
                out, inside = weight.shape if isinstance(module, nn.Linear) else weight.T.shape
                a.append(torch.randn(rank, inside, device=weight.device) / inside**0.5)
                b.append(torch.zeros(out, rank, device=weight.device))
                paths.append(path)
        return cls(paths, a, b, alpha / rank)

    def tensors(self) -> dict[str, Tensor]:
        """The vector as named tensors, to save in a file."""
        found = {"scale": torch.tensor(self.scale, dtype=torch.float64)}
        for path, a, b in zip(self.paths, self.a, self.b, strict=True):
            found |= {f"{path}.A": a.detach(), f"{path}.B": b.detach()}
        return found

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> Vector:
        """A frozen vector from what `tensors` returned."""
        paths = [name.removesuffix(".A") for name in tensors if name.endswith(".A")]
        lost = {"scale", *(f"{p}.B" for p in paths)} - set(tensors)
        if lost or not paths:
            raise UserError(f"These tensors are no security vector: {', '.join(sorted(lost)) or 'a layer'} is missing.")
        a, b = [tensors[f"{p}.A"] for p in paths], [tensors[f"{p}.B"] for p in paths]
        return cls(paths, a, b, float(tensors["scale"])).requires_grad_(False)

    def places(self, model: nn.Module) -> list[nn.Module]:
        """The layers of a model that it acts on; a UserError if it belongs to another model."""
        found = []
        for path, a, b in zip(self.paths, self.a, self.b, strict=True):
            try:
                module = model.get_submodule(path)
            except AttributeError:
                raise UserError(f"The vector is for another model: {type(model).__name__} has no {path}.") from None
            weight: Tensor = module.weight  # type: ignore[assignment]
            shape = tuple(weight.shape if isinstance(module, nn.Linear) else weight.T.shape)
            if (b.shape[0], a.shape[1]) != shape:
                raise UserError(
                    f"The vector is for another model: {path} is {shape}, and its part is {(b.shape[0], a.shape[1])}."
                )
            found.append(module)
        return found

    @contextmanager
    def acting(self, places: Sequence[nn.Module]) -> Iterator[None]:
        """Inside, the vector is added to the outputs of these layers; no hook stays."""

        def adding(a: Tensor, b: Tensor):  # type: ignore[no-untyped-def]
            def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
                part = (inputs[0].to(a.dtype) @ a.T) @ b.T  # in fp32 on weights of any dtype
                return output + self.scale * part.to(output.dtype)

            return hook

        handles = [m.register_forward_hook(adding(a, b)) for m, a, b in zip(places, self.a, self.b, strict=True)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
