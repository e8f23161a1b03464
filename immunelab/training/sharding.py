"""A model larger than one device: its weights, gradients and optimizer state in shards, one a process (FSDP2).

Every process is given the same minibatch and computes the whole gradient; what is split is memory. So a step is that
of one process, and no method needs to know that the weights it sees are shards (`gradients.py` reduces across them).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from immunelab.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedModel


def shard(model: PreTrainedModel, mesh: DeviceMesh | None = None) -> PreTrainedModel:
    """Split each weight by rows over the processes of `mesh` (None: all), in place; returns the model.

    Call it in every process of a `torchrun`, before the optimizer is made. A UserError without a process group, and
    where the processes' weights differ.
    """
    from torch.distributed.fsdp import fully_shard

    if not (dist.is_available() and dist.is_initialized()):
        raise UserError("A model can only be sharded inside a process group: start with torchrun, then init it.")
    _check_equal(model)
    options: dict[str, Any] = {} if mesh is None else {"mesh": mesh}
    for layer in _layers(model):
        fully_shard(layer, **options)
    # The root's weights (embedding, final norm, head) stay whole from a forward pass to its backward pass, so that
    # hidden states can be read through norm and head after it.
    fully_shard(model, reshard_after_forward=False, **options)
    return model


def settle(model: nn.Module) -> None:
    """Back to shards, after a forward pass that no backward pass followed; nothing to do for a model that has none.

    Until then the model shows its whole weights, and an update of the shards would not be seen.
    """
    for module in model.modules():
        reshard = getattr(module, "reshard", None)
        if callable(reshard):
            reshard()


def whole(model: nn.Module) -> dict[str, Tensor]:
    """The weights and buffers of the whole model in main memory: in the first process, and empty in the others.

    Every process has to call it. `save_pretrained(folder, state_dict=…)` makes plain Hugging Face files of it.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    settle(model)
    found: dict[str, Any] = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    return found


def sharded(parameters: Sequence[Tensor]) -> bool:
    """Whether any of them is split over processes (DTensor)."""
    return any(is_shard(p) for p in parameters)


def is_shard(tensor: Tensor) -> bool:
    """Whether it is a DTensor; asked so because not every build of torch has them."""
    return hasattr(tensor, "full_tensor")


def held(tensor: Any) -> Tensor:
    """What this process holds of a tensor, in the same memory; `_foreach_copy_` does not know DTensors."""
    mine: Tensor = tensor.to_local() if is_shard(tensor) else tensor
    return mine


def products(a: list[Tensor], b: list[Tensor], wide: torch.dtype) -> Tensor:
    """⟨a_i, b_i⟩ of each tensor, the same in every process: in one exchange for all that are split in the same way."""
    from torch.distributed.tensor import DTensor, Partial, Shard

    found: list[Any] = list(torch._foreach_mul(a, b))
    if all(is_shard(p) for p in found):
        mesh = found[0].device_mesh
        if all(p.device_mesh == mesh and all(isinstance(at, Shard) for at in p.placements) for p in found):
            mine = torch.stack([held(p).sum(dtype=wide) for p in found])
            return DTensor.from_local(mine, mesh, [Partial()] * mesh.ndim).full_tensor()
    sums = [p.sum(dtype=wide) for p in found]  # still sharded or partial
    return torch.stack([s.full_tensor() if is_shard(s) else s for s in sums])


def gradient(loss: Tensor, parameters: Sequence[Tensor], keep_graph: bool = False) -> list[Tensor]:
    """∇loss of shards; `.grad` is left alone.

    FSDP puts gradients into `.grad` by hooks of the backward pass; the graph itself never reaches the shards.
    """
    before = [p.grad for p in parameters]
    try:
        for p in parameters:
            p.grad = None
        loss.backward(retain_graph=keep_graph)
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    finally:
        for p, grad in zip(parameters, before, strict=True):
            p.grad = grad


def _layers(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder layers: the members of the longest list of modules."""
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[])


def _check_equal(model: nn.Module) -> None:
    """Each process keeps the shard of its own copy, so the copies must be one and the same."""
    with torch.no_grad():
        total = torch.stack([p.detach().double().sum() for p in model.parameters()]).sum()
    least, most = total.clone(), total.clone()
    dist.all_reduce(least, op=dist.ReduceOp.MIN)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    if not torch.equal(least, most):
        raise UserError("The processes hold different weights: load the same model, with the same seed, in each.")
