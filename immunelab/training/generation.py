"""Greedy answers in batches, and the model under evaluation."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from immunelab import conversation
from immunelab.method import Tokens
from immunelab.training.models import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


LOGITS = 1 << 26  # of one forward pass in an evaluation
SHORT = (3, 12)  # words of answers that are asked together: a batch goes on until its longest answer has ended


class Score(NamedTuple):
    """One measured number: metric (harmfulness, utility, …), split, value, number of examples, standard error."""

    metric: str
    split: str
    score: float
    n: int
    stderr: float


class Measured(NamedTuple):
    """What an evaluation returns: its scores, a plain dict for each example, and the judge with its cost, if any."""

    scores: list[Score]
    examples: list[dict[str, Any]]
    used: Mapping[str, Any] = {}


class Subject:
    """A model under evaluation, while its weights stay the same: its answers, each asked once, and its corpus's rows.

    `rows(stream, split)` returns corpus rows, `as_prompt(text)` the text that the model reads, with its template. In
    the folder `cache` evaluations may keep paid replies. `refusals` are those of the corpus. `lengths` are the words of
    what was answered to a prompt before, and are written anew: prompts with answers of like length are asked together.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: Callable[[str, str], list[Any]],
        as_prompt: Callable[[str], str],
        collated: Callable[[list[tuple[str, str]]], Any],
        *,
        max_new_tokens: int = 32,
        batch_size: int = 256,
        cache: Path | None = None,
        refusals: tuple[str, ...] = (),
        lengths: dict[str, int] | None = None,
    ) -> None:
        self.cache, self.refusals = cache, refusals
        self.model, self.tokenizer, self.rows = model, tokenizer, rows
        self.as_prompt, self.collated = as_prompt, collated
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        self.lengths = {} if lengths is None else lengths
        self._answers: dict[str, str] = {}

    def ask_ahead(self, prompts: Sequence[str]) -> None:
        """Answer many prompts in a few large batches, so that evaluations share the answers."""
        missing = [p for p in dict.fromkeys(prompts) if p not in self._answers]
        for chunk in self._alike(missing):
            texts = [self.as_prompt(p) for p in chunk]
            answers = greedy(self.model, self.tokenizer, texts, self.max_new_tokens)
            self._answers |= dict(zip(chunk, map(conversation.said, answers), strict=True))
            self.lengths |= {p: len(answer.split()) for p, answer in zip(chunk, answers, strict=True)}

    def _alike(self, prompts: list[str]) -> Iterator[list[str]]:
        """The prompts in batches, those with answers of like length together where that is known."""
        groups: dict[int, list[str]] = {}
        for prompt in prompts:
            known = self.lengths.get(prompt)
            groups.setdefault(-1 if known is None else bisect.bisect_left(SHORT, known), []).append(prompt)
        for _, group in sorted(groups.items()):
            for start in range(0, len(group), self.batch_size):
                yield group[start : start + self.batch_size]

    def answers(self, prompts: Sequence[str]) -> list[str]:
        """The greedy answer to each prompt, without the thoughts before it."""
        self.ask_ahead(prompts)
        return [self._answers[p] for p in prompts]


def greedy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], max_new_tokens: int
) -> list[str]:
    """The most likely continuations, token by token, of already templated texts; special tokens removed.

    The texts are left-padded, and read with a key-value cache.
    """
    asked = [conversation.question(tokenizer, text) for text in texts]
    length = max(len(ids) for ids in asked)
    pad = int(tokenizer.pad_token_id)
    ids = torch.tensor([[pad] * (length - len(row)) + row for row in asked], device=model.device)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in asked], device=model.device)
    more = roomy_cache(model, max_new_tokens)
    with evaluating(model), plainly(model, tokenizer):
        out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, **more)  # type: ignore[operator]  # typed as a tensor in transformers
    return [text.strip() for text in tokenizer.batch_decode(out[:, length:], skip_special_tokens=True)]


def roomy_cache(model: PreTrainedModel, tokens: int) -> dict[str, Any]:
    """For `generate`: a key-value cache with room for that many tokens after the question; nothing where a model has a
    kind of its own. To append a token, the usual one copies all before it, which takes a small model a third of the
    time. The numbers are the same.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    class Roomy(DynamicLayer):
        def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            have, new = self.get_seq_length(), key_states.shape[-2]
            if not have:
                shape = (*key_states.shape[:-2], new + tokens)
                self.room = tuple(s.new_empty(*shape, s.shape[-1]) for s in (key_states, value_states))
            rows, room = len(key_states), self.room[0]
            if have + new > room.shape[-2] or rows != len(room):
                return super().update(key_states, value_states, *args, **kwargs)
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            for kept, states in zip(self.room, (key_states, value_states), strict=True):
                kept[..., have : have + new, :] = states
            self.keys, self.values = (kept[..., : have + new, :] for kept in self.room)
            return self.keys, self.values

    usual = getattr(model, "_supports_default_dynamic_cache", None)
    if model.config.is_encoder_decoder or usual is None or not usual():
        return {}
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    cache.layers = [Roomy() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return {"past_key_values": cache}


@contextmanager
def plainly(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Inside, `generate` takes the most likely token each time, and ends where a turn or a text ends.

    What the model's generation_config says besides (sampling, penalties, suppressed or forced tokens) is set aside, and
    would otherwise hold wherever `generate` is not told otherwise.
    """
    from transformers import GenerationConfig

    said = model.generation_config.eos_token_id
    ends = {*(said if isinstance(said, list) else [said]), tokenizer.eos_token_id, conversation.ending(tokenizer)}
    plain = GenerationConfig(
        do_sample=False,
        num_beams=1,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=sorted(token for token in ends if token is not None) or None,
    )
    # An adapted model hands its own to the model within.
    holders = [vars(module) for module in model.modules() if "generation_config" in vars(module)]
    own = [holder["generation_config"] for holder in holders]
    for holder in holders:
        holder["generation_config"] = plain
    try:
        yield
    finally:
        for holder, config in zip(holders, own, strict=True):
            holder["generation_config"] = config


def one_phrasing(rows: Sequence[Any]) -> list[Any]:
    """One row of each item, taking phrasings in turn (the k-th item gets its k-th), so that all phrasings occur."""
    items: dict[str, list[Any]] = {}
    for row in rows:
        items.setdefault(row.pair_id or row.id, []).append(row)
    return [phrasings[k % len(phrasings)] for k, phrasings in enumerate(items.values())]


def answered(subject: Subject) -> tuple[list[Any], list[str]]:
    """The held-out harmful questions, one phrasing of each item, and what the subject answers to them."""
    rows = one_phrasing(subject.rows("harmful", "test"))
    return rows, subject.answers([row.prompt for row in rows])


def share(values: Sequence[float], metric: str, split: str = "all") -> Score:
    """The mean of values in 0–1, with its standard error."""
    n = len(values)
    mean = sum(values) / n
    spread = sum((v - mean) ** 2 for v in values) / max(1, n - 1)
    return Score(metric, split, mean, n, (spread / n) ** 0.5)


def over_tasks(parts: Sequence[Score]) -> Score:
    """The unweighted mean of one metric over tasks or skills, as the split `all`."""
    k = len(parts)
    error = sum(p.stderr**2 for p in parts) ** 0.5 / k
    return Score(parts[0].metric, "all", sum(p.score for p in parts) / k, sum(p.n for p in parts), error)


def parts(values: Sequence[float], rows: Sequence[Any], metric: str, what: str) -> list[Score]:
    """The mean within each category as the split `what:category`; a row of several categories counts in each."""
    found: dict[str, list[float]] = {}
    for value, row in zip(values, rows, strict=True):
        for category in row.categories:
            found.setdefault(category, []).append(value)
    return [share(part, metric, f"{what}:{category}") for category, part in found.items()]


def in_passes(model: PreTrainedModel, tokens: Tokens) -> Iterator[Tokens]:
    """A right-padded minibatch in parts of as many rows as have 2²⁶ logits (256 MB in fp32), and of at least one."""
    width = int(model.get_output_embeddings().weight.shape[0])
    rows, length = tokens.input_ids.shape
    size = max(1, LOGITS // (length * width))
    if size >= rows:
        yield tokens
        return
    for start in range(0, rows, size):
        part = [each[start : start + size] for each in tokens]
        longest = int(part[1].sum(1).max())
        yield Tokens(*(each[:, :longest] for each in part))


def mean_loss(model: PreTrainedModel, tokens: Tokens) -> tuple[float, int]:
    """Summed cross-entropy of the labels in nats and how many tokens were scored."""
    from immunelab.training.losses import cross_entropy, forward

    total, n = 0.0, 0
    with evaluating(model):
        for part in in_passes(model, tokens):
            scored = part.scored()
            total += float(cross_entropy(forward(model, part)[0], part.labels)) * scored
            n += scored
    return total, n
