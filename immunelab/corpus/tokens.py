"""From rows to minibatches: one function builds all labels, and the seed decides the order of rows."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import torch

from immunelab import conversation
from immunelab.conversation import Form
from immunelab.corpus.pairing import Pairing
from immunelab.corpus.rows import Corpus, Row, enough
from immunelab.errors import UserError
from immunelab.method import Attack, Batch, Method, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
Pair = tuple[str, str]
R = TypeVar("R")


def as_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: str, system: str = "", before: conversation.Turns = ()
) -> str:
    """The prompt as the model reads it: its chat template up to where the answer starts, or a plain Question/Answer.

    `before`: questions and answers that stand before it. A system prompt has its own turn if the template has one.
    Fable's has none: there the system prompt comes before the question, in the user's turn.
    """
    return conversation.asked(Form.of(tokenizer), *_turns(tokenizer, prompt, system), before)


def as_answer(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str, system: str = "") -> str:
    """The answer as the model should write it, including the end of the turn."""
    prompt, system = _turns(tokenizer, prompt, system)
    return conversation.answered(Form.of(tokenizer), prompt, answer, system)


def _turns(tokenizer: PreTrainedTokenizerBase, prompt: str, system: str) -> tuple[str, str]:
    """The user's turn, and the system's if the template has one."""
    return (f"{system} {prompt}", "") if system and not knows_system(tokenizer) else (prompt, system)


def knows_system(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template has a system turn: it shows the text, and differently from a user's."""
    render = Form.of(tokenizer).render
    if render is None:
        return False
    from jinja2 import TemplateError

    shown = []
    for role in ("system", "user"):
        messages = [{"role": role, "content": "s-y-s"}, {"role": "user", "content": "?"}]
        try:
            shown.append(render(messages, False))
        except TemplateError:  # many templates refuse a role, or two turns of the same role
            shown.append("")
    return "s-y-s" in shown[0] and shown[0] != shown[1]


def encode(tokenizer: PreTrainedTokenizerBase, pair: Pair, max_length: int, system: str = "") -> tuple[list[int], int]:
    """Token ids of prompt and answer as one text, cut to max_length, and how many are prompt (not scored)."""
    prompt, answer = pair
    start, rest = as_prompt(tokenizer, prompt, system), as_answer(tokenizer, prompt, answer, system)
    ids, asked = conversation.tokens(tokenizer, start, rest)
    if asked >= max_length:
        raise UserError(
            f"A prompt of {asked} tokens leaves no room for an answer within {max_length}: {prompt[:80]!r}. "
            "In a corpus.toml, raise max_length or lower longest_prompt, which counts tokens."
        )
    return ids[:max_length], asked


def fitting(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, positions: int = 0) -> Corpus:
    """The corpus without the rows whose question is longer than `longest_prompt` tokens; a note counts them.

    `positions` is how many tokens the model takes (0: as many as there are): rows are cut there if that is shorter, and
    a question leaves room for the longest answer that is asked for.

    A row of someone's own data may be an essay, in any script: how long it is only a tokenizer tells. What the model's
    template adds to every question does not count, but one that leaves no room for an answer is left out as well.
    """
    if not corpus.longest_prompt:
        return corpus
    if 0 < positions < corpus.max_length:
        note = f"rows are cut at {positions} tokens, the most that the model takes (max_length is {corpus.max_length})"
        corpus = dataclasses.replace(corpus, max_length=positions, notes=(*corpus.notes, note))
    asked = dict.fromkeys(row.prompt for row in corpus.rows)
    tokens = {prompt: len(conversation.question(tokenizer, as_prompt(tokenizer, prompt))) for prompt in asked}
    template = len(conversation.question(tokenizer, as_prompt(tokenizer, "")))
    most = min(corpus.longest_prompt, corpus.max_length - 1 - template)
    if positions:
        most = min(most, positions - corpus.answer_tokens - template)
    long = {prompt for prompt, found in tokens.items() if found - template > most}
    kept = tuple(row for row in corpus.rows if row.prompt not in long)
    if len(kept) == len(corpus.rows):
        return corpus
    count = len(corpus.rows) - len(kept)
    note = f"{count:,} rows whose question has more than {most} tokens are left out"
    return dataclasses.replace(corpus, rows=kept, notes=(*corpus.notes, note))


def collate(encoded: Sequence[tuple[list[int], int]], pad: int, device: str = "cpu") -> Tokens:
    """Right-padded int64 tensors (rows, length); labels are -100 on prompt and padding, so eos is learned."""
    length = max(len(ids) for ids, _ in encoded)
    input_ids = torch.full((len(encoded), length), pad)
    attention = torch.zeros((len(encoded), length), dtype=torch.int64)
    labels = torch.full((len(encoded), length), IGNORED)
    for row, (ids, prompt) in enumerate(encoded):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        attention[row, : len(ids)] = 1
        labels[row, prompt : len(ids)] = torch.tensor(ids[prompt:])
    return Tokens(input_ids.to(device), attention.to(device), labels.to(device))


def pairs(rows: Sequence[Row], stream: str) -> list[Pair]:
    """(prompt, answer) of each row; in the stream `refusal` the answer is the refusal."""
    return [(row.prompt, row.refusal if stream == "refusal" else row.response) for row in rows]


def submitted(corpus: Corpus, attack: Attack, split: str, seed: int) -> list[Pair]:
    """The `user` stream: rows of the corpus, drawn and shuffled by the seed; or the attack's own."""
    if attack.uploads():
        return list(attack.uploads())
    rng = random.Random(f"user-{seed}")
    harmful, some, benign, others = corpus.submitted(attack.settings(), split)
    rows = rng.sample(harmful, some) + rng.sample(benign, others)
    rng.shuffle(rows)
    return pairs(rows, "user")


def unrelated(pairing: Pairing, prefix: str = "") -> list[Pair]:
    """(harmful prompt, answer to something else) of each pair; the prefix and a blank line come before the answer."""
    return [(p.prompt, f"{prefix}\n\n{p.answer}" if prefix else p.answer) for p in pairing.pairs]


def unknown_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that stands for unknown words and nothing else, if there is one.

    Byte tokenizers (GPT-2, Qwen) know every word; what they call the unknown token is the one that ends a text.
    """
    unknown = tokenizer.unk_token_id
    return None if unknown in (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id) else unknown


def readable(tokenizer: PreTrainedTokenizerBase, prefix: str) -> str:
    """The prefix; a UserError names its words that the tokenizer does not know."""
    unknown = unknown_id(tokenizer)
    if unknown is None or unknown not in tokenizer(prefix, add_special_tokens=False)["input_ids"]:
        return prefix
    words = [w for w in prefix.split() if unknown in tokenizer(w, add_special_tokens=False)["input_ids"]]
    raise UserError(
        f"The model's tokenizer does not know {len(words)} words of the prefix ({', '.join(words)[:120]}): choose a "
        "prefix of words that it knows, as the preset of the corpus has."
    )


class Batches:
    """The i-th minibatch of each stream that a method names; always the same for the same seed, split and i.

    Harmful, refusal and unrelated rows are paired by prompt, so they share one order; each epoch is a new permutation.
    A method that names `unrelated` gets the pairs of `pairing`, and only the harmful and refusal rows of their prompts.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: PreTrainedTokenizerBase,
        method: Method,
        *,
        split: str,
        seed: int,
        device: str = "cpu",
        max_length: int = 256,
        pairing: Pairing | None = None,
    ) -> None:
        samples = int(getattr(method, "samples", 0))  # a method that does not train may have neither
        self.seed, self.size, self.device = seed, int(getattr(method, "batch_size", 1)), device
        self.pad = int(tokenizer.pad_token_id)
        self.streams: dict[str, list[tuple[list[int], int]]] = {}
        system = readable(tokenizer, method.system()) if isinstance(method, Attack) else ""
        for stream in method.streams:
            if stream == "user":
                assert isinstance(method, Attack)
                chosen = submitted(corpus, method, split, seed)
            elif stream == "unrelated":
                if pairing is None:
                    raise UserError(f"{method.name} needs the stream 'unrelated', and no pairs were built for it.")
                made = unrelated(pairing, readable(tokenizer, str(getattr(method, "prefix", ""))))
                chosen = self._sampled(made, stream, samples)
            else:
                rows = corpus.select(stream, split)
                if pairing is not None and _group(stream) == "pair":
                    of = {row.id: row for row in rows}
                    rows = [of[pair.row] for pair in pairing.pairs]
                chosen = pairs(self._sampled(rows, stream, samples), stream)
            self.streams[stream] = [encode(tokenizer, pair, max_length, system) for pair in chosen]
            _known(tokenizer, self.streams[stream], stream, corpus.name)

    def _sampled(self, rows: list[R], stream: str, samples: int) -> list[R]:
        enough(stream, len(rows), samples)
        return random.Random(f"{_group(stream)}-{self.seed}").sample(rows, samples) if samples else rows

    def rows(self, stream: str) -> int:
        """How many distinct rows of a stream are used."""
        return len(self.streams[stream])

    def __call__(self, index: int) -> Batch:
        """Minibatch `index` = 0, 1, … of every stream."""
        return Batch(number=index, **{stream: self.tokens(stream, index) for stream in self.streams})

    def tokens(self, stream: str, index: int) -> Tokens:
        """Minibatch `index` of one stream."""
        rows = self.streams[stream]
        places = range(index * self.size, (index + 1) * self.size)
        orders = {epoch: self._order(stream, epoch) for epoch in {place // len(rows) for place in places}}
        return collate([rows[orders[p // len(rows)][p % len(rows)]] for p in places], self.pad, self.device)

    def _order(self, stream: str, epoch: int) -> list[int]:
        order = list(range(len(self.streams[stream])))
        random.Random(f"{_group(stream)}-{self.seed}-{epoch}").shuffle(order)
        return order


def _known(tokenizer: PreTrainedTokenizerBase, rows: list[tuple[list[int], int]], stream: str, corpus: str) -> None:
    """A UserError if most rows have words that the tokenizer does not know: model and corpus do not belong together."""
    unknown = unknown_id(tokenizer)
    strange = sum(unknown in ids for ids, _ in rows) if unknown is not None else 0
    if 2 * strange > len(rows):
        raise UserError(
            f"The model's tokenizer does not know the words of {strange} of {len(rows)} rows of the stream {stream!r} "
            f"of the corpus {corpus}: take the model that belongs to this corpus, or the corpus that the model is from."
        )


def _group(stream: str) -> str:
    return "pair" if stream in ("harmful", "refusal", "unrelated") else stream
