"""What a run measures: its model, asked as it would be served now, and what evaluations find, into the journal."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from contextlib import nullcontext
from typing import TYPE_CHECKING

from immunelab import corpus as corpora
from immunelab.corpus.tokens import as_prompt, collate, encode, pairs, readable
from immunelab.errors import UserError
from immunelab.experiment import provider as hosting
from immunelab.method import Attack, Evaluation, Method, Tokens, configure
from immunelab.runs.journal import Journal
from immunelab.runs.spec import RunSpec
from immunelab.training.generation import Measured, Subject, one_phrasing

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROBE_ROWS = 16
CACHE = "judged"  # within the lab's home: what judges replied
AT_ONCE = ((100e6, 256), (1e9, 64))  # parameters up to which so many answers at once fit into any memory


class Measuring:
    """Asks the model of a run; `method` and `host` may change what it reads, and `host` the weights that answer."""

    def __init__(
        self,
        spec: RunSpec,
        journal: Journal,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        corpus: corpora.Corpus,
        evaluations: list[Evaluation],
    ) -> None:
        self.spec, self.journal, self.tokenizer = spec, journal, tokenizer
        self.corpus, self.evaluations = corpus, evaluations
        self.subject = Subject(
            model,
            tokenizer,
            rows=corpus.select,
            as_prompt=self.as_prompt,
            collated=lambda chosen: self.collated(chosen, self.system),
            max_new_tokens=corpus.answer_tokens,
            batch_size=at_once(sum(p.numel() for p in model.parameters())),
            cache=journal.path.parents[2] / CACHE,
        )
        self.method: Method | None = None
        self.host: hosting.Host | None = None

    def evaluate(self, step: int) -> None:
        """Every evaluation on the present weights, or on what a provider would serve now, into the journal."""
        with self.host.serving(self.subject.model) if self.host else nullcontext({}) as scalars:
            self.subject.forget()
            self.subject.ask_ahead([p for e in self.evaluations for p in e.prompts(self.subject)])
            for evaluation in self.evaluations:
                self.record(step, evaluation.name, evaluation.measure(self.subject))
        if step and scalars:
            self.journal.points(self.spec.kind, step, scalars)

    def record(self, step: int, evaluation: str, measured: Measured) -> None:
        """What an evaluation found, into the journal; of several measures of harm one is called harmfulness."""
        counts = self.corpus.harm in ("", evaluation)
        for score in measured.scores:
            self.journal.score(
                self.spec.kind,
                step,
                evaluation=evaluation,
                metric=evaluation if score.metric == "harmfulness" and not counts else score.metric,
                split=score.split,
                score=score.score,
                n=score.n,
                stderr=score.stderr,
            )
        if measured.used:
            self.journal.event("judged", phase=self.spec.kind, step=step, evaluation=evaluation, **measured.used)
        if measured.examples:
            self.journal.examples(self.spec.kind, step, evaluation=evaluation, split="test", rows=measured.examples)

    def record_templates(self) -> None:
        """With a system prompt: what the model reads in training and when it is asked, and the hashes of both.

        A UserError if the tokenizer does not know its words.
        """
        if not readable(self.tokenizer, self.system):
            return
        texts = {"trained": as_prompt(self.tokenizer, "?"), "served": as_prompt(self.tokenizer, "?", self.system)}
        self.journal.event("templates", **texts, **{f"{k}_sha256": hosting.digest(v) for k, v in texts.items()})

    @property
    def system(self) -> str:
        """The system prompt that a provider serves this run's model with."""
        return self.host.defense.system() if self.host else ""

    def as_prompt(self, prompt: str) -> str:
        """What the model reads when it is asked: the question in its template, as the method leaves it."""
        own = self.method.system() if isinstance(self.method, Attack) else ""
        text = as_prompt(self.tokenizer, prompt, f"{self.system} {own}".strip())
        if self.method is None or type(self.method).template is Method.template:
            return text
        return self.method.template(text, prompt in self.harmful_prompts)

    @functools.cached_property
    def harmful_prompts(self) -> set[str]:
        """The held-out harmful questions."""
        return {row.prompt for row in self.corpus.select("harmful", "test")}

    def probes(self) -> dict[str, Tokens]:
        """Fixed minibatches of held-out harmful and benign rows, on which gradients are compared during training."""
        found = {}
        for stream in ("harmful", "benign"):
            rows = one_phrasing(self.corpus.select(stream, "test"))
            spread = rows[:: max(1, len(rows) // PROBE_ROWS)][:PROBE_ROWS]
            found[stream] = self.collated(pairs(spread, stream))
        return found

    def collated(self, chosen: Iterable[tuple[str, str]], system: str = "") -> Tokens:
        """(prompt, answer) pairs as one minibatch on the model's device."""
        encoded = [encode(self.tokenizer, pair, self.corpus.max_length, system) for pair in chosen]
        return collate(encoded, int(self.tokenizer.pad_token_id), str(self.subject.model.device))


def at_once(parameters: int) -> int:
    """How many questions a model of that size answers in one batch."""
    return next((rows for most, rows in AT_ONCE if parameters <= most), 16)


def asked(spec: RunSpec, corpus: corpora.Corpus) -> list[Evaluation]:
    """What a run measures: an `evaluate` run's own method with its knobs, else the named ones, else the corpus's, with
    the settings of its description. A UserError if the corpus is judged otherwise than when the run was made.
    """
    if spec.kind == "evaluate" and spec.method:
        return [configure("evaluation", spec.method, spec.knobs)]
    if spec.judge != corpus.judge:
        then, now = (judge or "nobody (words in common)" for judge in (spec.judge, corpus.judge))
        raise UserError(
            f"The answers of the corpus {corpus.name} were to be judged by {then} when this run was made, and its "
            f"corpus.toml now says {now}. Start a new run, or put that back."
        )
    found = []
    for name in spec.evaluations or corpus.evaluated(spec.kind):
        settings = dict(corpus.settings.get(name, {}))
        preset = str(settings.pop("preset", ""))
        found.append(configure("evaluation", name, settings, preset))
    return found
