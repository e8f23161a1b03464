"""Cross-entropy in the forms that the papers use. All are means over scored tokens, in nats."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from immunelab.errors import UserError
from immunelab.method import Batch, Method, Tokens
from immunelab.training import gradients as g
from immunelab.training import heads

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IGNORED = -100


class Scored(NamedTuple):
    """A minibatch, its stream, and where (rows, length) the official mask makes a token's loss the constant ln|V|."""

    tokens: Tokens
    constant: Tensor | None = None
    stream: str = ""


def scored(method: Method, batch: Batch, mask: str = "response") -> list[Scored]:
    """A minibatch of each stream that a method names, in its order.

    With mask=official the harmful rows and their refusals are scored only where they differ (`differing`).
    """
    found = dict(zip(method.streams, batch.take(method), strict=True))
    rows = {stream: Scored(tokens, stream=stream) for stream, tokens in found.items()}
    if mask == "official":
        pair = differing(found["harmful"], found["refusal"])
        rows |= {name: each._replace(stream=name) for name, each in zip(("harmful", "refusal"), pair, strict=True)}
    return list(rows.values())


def forward(model: PreTrainedModel, tokens: Tokens, *, hidden: bool = False) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Logits (rows, length, vocabulary) and, if asked for, all hidden states, the embedding output first."""
    out = output(model, tokens, hidden=hidden)
    return out.logits, tuple(out.hidden_states) if hidden else ()


def output(model: PreTrainedModel, tokens: Tokens, *, hidden: bool = False) -> Any:
    """What the model returns for a minibatch, without a cache."""
    return model(
        input_ids=tokens.input_ids,
        attention_mask=tokens.attention_mask,
        output_hidden_states=hidden,
        use_cache=False,
    )


def cross_entropy(logits: Tensor, labels: Tensor, constant: Tensor | None = None) -> Tensor:
    """Mean over the scored tokens of −log p(token | before it); logits at t−1 predict label t."""
    return scored_loss(logits[:, :-1][scored_positions(labels)], labels, constant)


def scored_positions(labels: Tensor) -> Tensor:
    """Where (rows, length − 1) a position predicts a token that is scored; a UserError if none does."""
    found = labels[:, 1:] != IGNORED
    if not bool(found.any()):
        raise UserError("No token of the batch is scored: every label is masked (an empty answer, or two equal texts).")
    return found


def scored_loss(logits: Tensor, labels: Tensor, constant: Tensor | None = None) -> Tensor:
    """As `cross_entropy`, from the logits (scored tokens, vocabulary) of the scored positions only."""
    at = scored_positions(labels)
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    if constant is None:
        return F.cross_entropy(logits, labels[:, 1:][at])
    each = F.cross_entropy(logits, labels[:, 1:][at], reduction="none")
    return torch.where(constant[:, 1:][at], each.new_tensor(math.log(logits.shape[-1])), each).mean()


def read_loss(read: Callable[[Tensor], Tensor], hidden: Tensor, scored: Scored) -> Tensor:
    """As `cross_entropy`, of hidden states (rows, length, width) that `read` turns into logits: only where a token is
    scored, because the head is the dear part, and in chunks if that was asked for.
    """
    labels = scored.tokens.labels
    at = scored_positions(labels)
    if not heads.chunk():
        return scored_loss(read(hidden[:, :-1][at]), labels, scored.constant)
    constant = None if scored.constant is None else scored.constant[:, 1:][at]
    return heads.cross_entropy(read, hidden[:, :-1][at], labels[:, 1:][at], constant)


def loss(model: PreTrainedModel, tokens: Tokens | Scored) -> Tensor:
    """Mean cross-entropy of the model on a minibatch."""
    scored = tokens if isinstance(tokens, Scored) else Scored(tokens)
    if not heads.scaled_head(model):
        try:
            head, hidden, _ = heads.before_head(model, lambda: output(model, scored.tokens))
            return read_loss(head, hidden, scored)
        except heads.ScaledHead:
            if heads.chunk():
                raise
    return cross_entropy(forward(model, scored.tokens)[0], scored.tokens.labels, scored.constant)


def value_and_gradient(
    model: PreTrainedModel, weights: Sequence[Tensor], rows: Tokens | Scored
) -> tuple[float, g.Gradient]:
    """The cross-entropy of a minibatch and its gradient at the present weights."""
    value = loss(model, rows)
    return float(value.detach()), g.gradient(value, weights)


def log_likelihoods(model: PreTrainedModel, tokens: Tokens) -> Tensor:
    """Sums of log π(answer | prompt) over each row's scored tokens: shape (rows,)."""
    logits = forward(model, tokens)[0][:, :-1].float()
    targets = tokens.labels[:, 1:]
    each = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")
    return -each.sum(dim=1)


def divergence(before: Tensor, after: Tensor, labels: Tensor) -> Tensor:
    """Mean over scored tokens of KL(p_before ‖ p_after) of next-token distributions, in nats, from logits."""
    scored = labels[:, 1:] != IGNORED
    p, q = (logits[:, :-1][scored].float().log_softmax(-1) for logits in (before, after))
    return (p.exp() * (p - q)).sum(-1).mean()


def negative_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over scored tokens of Σ p·ln p of the next-token distribution: −ln|V| if uniform, 0 if certain."""
    log_p = logits[:, :-1][scored_positions(labels)].float().log_softmax(-1)
    return (log_p.exp() * log_p).sum(-1).mean()


def drift(hidden: tuple[Tensor, ...], before: tuple[Tensor, ...], mask: Tensor, *, squared: bool) -> Tensor:
    """Mean over tokens and hidden states of ‖h − h_before‖, or of its square; `mask` is 1 where a token is no padding.

    Each hidden state is (rows, length, width), the mask (rows, length).
    """
    apart = [a[mask == 1].float() - b[mask == 1].float() for a, b in zip(hidden, before, strict=True)]
    each = [x.square().sum(-1) if squared else torch.linalg.vector_norm(x, dim=-1) for x in apart]
    return torch.stack(each).mean()


def mmd(x: Tensor, y: Tensor) -> Tensor:
    """MMD² of two samples (rows, dimensions): how far apart their distributions are, 0 if the rows are the same.

    The mean of k(x,x) + k(y,y) − k(x,y) − k(y,x) over pairs, k(a,b) = Σ_{i=0…4} exp(−‖a−b‖²/(2^i·w)), w a quarter of
    the mean ‖a−b‖² of different rows, which carries no gradient. As in the released code of arXiv:2405.14577.
    """
    both = torch.cat([x, y])
    both = both.float() if both.dtype in (torch.float16, torch.bfloat16) else both
    # Not by ‖a‖² + ‖b‖² − 2⟨a,b⟩, whose rounding would make equal rows differ.
    squared = torch.cdist(both, both, compute_mode="donot_use_mm_for_euclid_dist").square()
    n, half = len(both), len(x)
    width = squared.detach().sum() / (n * n - n) / 4
    kernel = torch.stack([torch.exp(-squared / (width * 2**i)) for i in range(5)]).sum(0)
    return kernel[:half, :half].mean() + kernel[half:, half:].mean() - 2 * kernel[:half, half:].mean()


def ascent(final: Tensor, layers: list[Tensor]) -> Tensor:
    """−log(1 + S/|H|), S = final cross-entropy + Σ of the layers', |H| = number of layers' cross-entropies.

    SEAM's and RepNoise's ascent term: grows without bound more slowly than the loss itself. With no layers it is
    −log(1 + S).
    """
    total = torch.stack([final, *layers]).sum()
    return -torch.log1p(total / max(1, len(layers)))


def differing(harmful: Tokens, refusal: Tokens) -> tuple[Scored, Scored]:
    """The released codes' mask of a pair: score only positions where the two texts' token ids differ.

    Where a position differs and the one before it does not, the official code predicts it from zeroed logits, a
    constant ln|V| without gradient; `constant` marks those. Rows are paired; lengths may differ. A UserError if a pair
    is identical, because its mask is empty.

    In the authors' texts a line break stands before the harmful answer and a space before the refusal. So that
    constant falls on the line break, the harmful answer's first token trains, and the refusal's does not. Here both
    answers follow the same prompt, and harmful rows are compared as if they had that line break: its constant is that
    of the last token of the prompt. Rows whose labels leave out no prompt are compared as they are.
    """
    alike = _same(harmful.input_ids, harmful.attention_mask, refusal)
    for tokens in (harmful, refusal):
        own = tokens.attention_mask == 1
        own[:, : alike.shape[1]] &= ~alike
        if not bool(own.any(dim=1).all()):
            raise UserError("A harmful answer and its refusal are the same text: their mask is empty. Remove the pair.")
    starts = (harmful.labels != IGNORED).int().argmax(dim=1, keepdim=True)  # of the answers; 0: no prompt, no break
    places = torch.arange(harmful.input_ids.shape[1], device=starts.device).expand_as(harmful.input_ids)
    moved = places + ((places >= starts) & (starts > 0))
    wide = harmful.input_ids.new_full((len(moved), moved.shape[1] + 1), BREAK).scatter(1, moved, harmful.input_ids)
    there = torch.ones_like(wide).scatter(1, moved, harmful.attention_mask)
    there[:, -1:][starts == 0] = 0
    same = _same(wide, there, refusal)

    keep = torch.ones_like(wide, dtype=torch.bool)
    keep[:, : same.shape[1]] = ~same
    keep &= there == 1
    constant = _opening(keep)
    back, fixed = keep.gather(1, moved), constant.gather(1, moved)
    stands_in = (places == starts - 1) & ~back  # the prompt's last token for the line break
    back, fixed = back | stands_in, fixed | stands_in
    theirs = refusal.attention_mask == 1
    theirs[:, : same.shape[1]] &= ~same
    return _masked(harmful, back, fixed), _masked(refusal, theirs, _opening(theirs))


BREAK = -1  # stands for a line break, whichever token that is: no token is the same


def _same(ids: Tensor, attention: Tensor, other: Tokens) -> Tensor:
    """Where (rows, the shorter length) both texts have a token, and the same one."""
    shortest = min(ids.shape[1], other.input_ids.shape[1])
    both = (attention[:, :shortest] == 1) & (other.attention_mask[:, :shortest] == 1)
    return both & (ids[:, :shortest] == other.input_ids[:, :shortest])


def _opening(keep: Tensor) -> Tensor:
    """Where a position is kept and the one before it is not."""
    return keep & ~torch.cat([torch.ones_like(keep[:, :1]), keep[:, :-1]], dim=1)


def _masked(tokens: Tokens, keep: Tensor, constant: Tensor) -> Scored:
    labels = torch.where(keep, tokens.input_ids, torch.full_like(tokens.labels, IGNORED))
    return Scored(tokens._replace(labels=labels), constant)
