"""What a run does to save memory: activations computed again, losses in chunks, tensors that wait elsewhere.

A method's knobs ask for it (those with `saving=True`), and it holds for a whole run. Only `buffers` changes numbers:
it rounds directions while they wait.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from immunelab.errors import UserError
from immunelab.method import Budget
from immunelab.training.heads import loss_in_chunks
from immunelab.training.models import recomputing
from immunelab.training.sharding import sharded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SMALLEST, LARGEST, PARTS = 1 << 20, 64 << 20, 32  # of buckets: bytes, bytes, and how many a list makes at least
EMPTY = torch.empty(0)  # stands where a tensor was, so that its memory is free


class Waiting(NamedTuple):
    """How tensors wait: rounded to `dtype` unless it is None, and in main memory if `host`."""

    dtype: torch.dtype | None = None
    host: bool = False


_waiting: ContextVar[Waiting] = ContextVar("how tensors wait", default=Waiting())  # noqa: B039  # immutable


@contextmanager
def saving(model: PreTrainedModel, method: Budget) -> Iterator[None]:
    """Inside, steps save the memory that the method's knobs ask for."""
    # Only methods that let gradients wait have the knobs `buffers` and `offload`.
    rounded = torch.bfloat16 if getattr(method, "buffers", "fp32") == "bf16" else None
    token = _waiting.set(Waiting(rounded, getattr(method, "offload", False)))
    try:
        with recomputing(model, method.recompute), loss_in_chunks(method.loss_chunk):
            yield
    finally:
        _waiting.reset(token)


def waiting() -> Waiting:
    """How tensors wait in this run."""
    return _waiting.get()


def aside(tensors: Sequence[Tensor], *, exact: bool = False) -> list[Tensor]:
    """Tensors that are not needed for a while, as the run lets them wait; `exact` ones are not rounded.

    The same tensors if nothing is saved, or if they are in main memory already. A UserError for shards in main memory.
    """
    dtype, host = waiting()
    found = [t if exact or dtype is None else t.to(dtype) for t in tensors]
    if host and sharded(tensors):
        raise UserError("Sharded weights stay on their devices: use offload=false, or one device.")
    return [_in_main_memory(t) if host and t.device.type != "cpu" else t for t in found]


def near(tensors: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """Tensors that were put aside, on the device and in the dtype of `like`; the same tensors if they are there."""
    return [t.to(device=x.device, dtype=x.dtype, non_blocking=True) for t, x in zip(tensors, like, strict=True)]


def copied(tensors: Sequence[Tensor]) -> list[Tensor]:
    """A copy of the tensors, in main memory if what waits is there."""
    if waiting().host and all(t.device.type != "cpu" for t in tensors):
        return aside([t.detach() for t in tensors], exact=True)
    return [t.detach().clone() for t in tensors]


def _in_main_memory(tensor: Tensor) -> Tensor:
    """A copy, page-locked so that it travels at the bus's full rate and beside computation."""
    there = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
    return there.copy_(tensor, non_blocking=tensor.device.type == "cuda")


def buckets(tensors: Sequence[Tensor]) -> Iterator[slice]:
    """Slices of a list of tensors, for operations that need temporary ones: of a small part of it, or one tensor.

    A part is a 32nd of the list's bytes, but at least 1 MiB and at most 64 MiB.
    """
    sizes = [t.numel() * t.element_size() for t in tensors]
    most = min(LARGEST, max(SMALLEST, sum(sizes) // PARTS))
    start, held = 0, 0
    for i, size in enumerate(sizes):
        if held and held + size > most:
            yield slice(start, i)
            start, held = i, 0
        held += size
    if sizes:
        yield slice(start, len(sizes))


def used_up(*lists: list[Tensor], like: Sequence[Tensor]) -> Iterator[tuple[slice, list[list[Tensor]]]]:
    """Bucket by bucket what waits in some lists, near; the lists let go of it, so that its memory becomes free."""
    for part in buckets(like):
        here = [near(each[part], like[part]) for each in lists]
        for each in lists:
            each[part] = [EMPTY] * len(each[part])
        yield part, here
        del here
