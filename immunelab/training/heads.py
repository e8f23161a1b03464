"""The output head only where a token is scored, and inside `loss_in_chunks` on a few of these tokens at a time.

Prompts and padding need no logits, and where the vocabulary is large the head is a good part of a pass. In chunks the
head runs again in the backward pass, so that the logits of one chunk exist at a time, for vocabularies whose logits
would fill the memory. The numbers are those of the plain cross-entropy, up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from immunelab.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_size: ContextVar[int] = ContextVar("scored tokens in a chunk", default=0)
_alone: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()  # whether logits are the head's alone


@contextmanager
def loss_in_chunks(size: int) -> Iterator[None]:
    """Every loss inside is computed on at most `size` scored tokens at a time; 0: on all at once."""
    token = _size.set(size)
    try:
        yield
    finally:
        _size.reset(token)


def chunk() -> int:
    """Scored tokens in a chunk; 0: no chunks."""
    return _size.get()


class ScaledHead(UserError):
    """A model does more to its logits than its output head does, so that the head can't be read apart."""


class Head:
    """A model's output head, with its soft-capping if it has one. A UserError if there is none."""

    def __init__(self, model: PreTrainedModel) -> None:
        inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
        self.kind = type(inner).__name__
        head = inner.get_output_embeddings()
        if not isinstance(head, nn.Module):
            raise UserError(f"{self.kind} has no output head, which reading hidden states or a loss in chunks needs.")
        self.module: nn.Module = head
        self.cap: float | None = getattr(inner.config, "final_logit_softcapping", None)

    def __call__(self, normalized: Tensor) -> Tensor:
        """Logits (…, vocabulary) of hidden states (…, width) that already went through the final norm."""
        logits: Tensor = self.module(normalized)
        return torch.tanh(logits / self.cap) * self.cap if self.cap else logits

    def agrees(self, hidden: Tensor, logits: Tensor) -> bool:
        """Whether the first hidden state, through this head, gives the model's first logits, up to rounding."""
        with torch.no_grad():
            mine, its = self(hidden[:1, :1]).float(), logits[:1, :1].float()
            rounding = 1e-3 if logits.dtype in (torch.float32, torch.float64) else 2e-2
            return bool((mine - its).abs().max() <= rounding * its.abs().max())

    @contextmanager
    def caught(self, tokens: int) -> Iterator[list[Tensor]]:
        """Inside, the head reads so few tokens only; yields a list that then holds what it was to read, (…, width)."""
        original, found = self.module.forward, list[Tensor]()

        def first(hidden: Tensor) -> Tensor:
            found.append(hidden)
            logits: Tensor = original(hidden[:1, :tokens])
            return logits

        self.module.forward = first
        try:
            yield found
        finally:
            del self.module.forward


def before_head(model: PreTrainedModel, run: Callable[[], Any]) -> tuple[Head, Tensor, Any]:
    """The head, what it is given (rows, length, width) in one forward pass, and what `run` returns, without logits.

    `ScaledHead` if the model does more to logits than head and soft-capping, because whoever reads would lack it.
    """
    head = Head(model)
    known = _alone.get(model, False)
    with head.caught(0 if known else 1) as found:
        out = run()
    _alone[model] = known or (len(found) == 1 and head.agrees(found[0], out.logits))
    if not _alone[model]:
        raise ScaledHead(
            f"The output head of {head.kind} does not reproduce its logits (a scaled or factored head), so it can't be "
            "read apart from the model. Use loss_chunk=0 and ascent=final-logit."
        )
    return head, found[0], out


def scaled_head(model: PreTrainedModel) -> bool:
    """Whether the model is known to do more to logits than its head, which `before_head` finds out."""
    return not _alone.get(model, True)


def cross_entropy(
    read: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, constant: Tensor | None = None
) -> Tensor:
    """Mean of −log p(target) over scored tokens: hidden (tokens, width), targets (tokens,), both in chunks.

    Where `constant` (tokens,) is true a token costs ln|V|, as the official mask has it.
    """

    def total(hidden: Tensor, targets: Tensor, constant: Tensor | None) -> Tensor:
        logits = read(hidden)
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        each = F.cross_entropy(logits, targets, reduction="none")
        if constant is not None:
            each = torch.where(constant, each.new_tensor(math.log(logits.shape[-1])), each)
        return each.sum()

    parts = [
        x.split(chunk()) if x is not None else [None] * math.ceil(len(targets) / chunk())
        for x in (hidden, targets, constant)
    ]
    sums = [checkpoint(total, *part, use_reentrant=False) for part in zip(*parts, strict=True)]
    return torch.stack(sums).sum() / len(targets)
