"""How many bytes of tensors live at the same time, counted on any device. Used by `seam_cost.py`.

Every operation's results are seen by a dispatch mode; a storage counts from the operation that made it until it is
freed. What a kernel allocates and frees inside one operation is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Counter(TorchDispatchMode):
    """Inside it, `peak` is the largest number of bytes alive at once, the `held` ones from the start included.

    Storages marked by `waiting` (they would be in main memory if this were a GPU) count for `peak_waiting` instead.
    """

    def __init__(self, held: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.sizes: dict[int, tuple[Any, int]] = {}
        self.apart: set[int] = set()
        self.now = self.peak = self.now_waiting = self.peak_waiting = 0
        for tensor in held:
            self.see(tensor)
        self.held = self.now

    def see(self, tensor: torch.Tensor) -> None:
        """Count the storage of a tensor, once."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.sizes or not storage.nbytes():
            return
        self.sizes[key] = (weakref.ref(storage, lambda _: self.gone(key)), storage.nbytes())
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)

    def gone(self, key: int) -> None:
        """A storage was freed."""
        _, size = self.sizes.pop(key)
        if key in self.apart:
            self.apart.discard(key)
            self.now_waiting -= size
        else:
            self.now -= size

    def waiting(self, tensor: torch.Tensor) -> None:
        """This storage would be in main memory: it stops counting as the device's."""
        key = tensor.untyped_storage()._cdata
        if key in self.sizes and key not in self.apart:
            self.apart.add(key)
            self.now -= self.sizes[key][1]
            self.now_waiting += self.sizes[key][1]
            self.peak_waiting = max(self.peak_waiting, self.now_waiting)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.see(leaf)
        return out
