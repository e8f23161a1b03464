"""What a run measures: which evaluations, what the model reads when it is asked, and what goes into the journal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from immunelab.corpus import Corpus
from immunelab.corpus.tokens import as_prompt, collate, encode, pairs
from immunelab.errors import UserError
from immunelab.method import Attack, Evaluation, Method, Tokens, configure
from immunelab.runs.journal import Journal
from immunelab.runs.spec import RunSpec
from immunelab.training.generation import Measured, Subject, one_phrasing

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CACHE = "judged"  # within the lab's home: what judges replied
PROBE_ROWS = 16
AT_ONCE = ((100e6, 256), (1e9, 64))  # parameters up to which so many answers at once fit into any memory


def asked(spec: RunSpec, corpus: Corpus) -> list[Evaluation]:
    """What a run measures, as its corpus says (`Corpus.measured`)."""
    return [configure("evaluation", name, settings, preset) for name, settings, preset in corpus.measured(spec)]


def at_once(model: PreTrainedModel) -> int:
    """How many questions a model of that size answers in one batch."""
    parameters = sum(p.numel() for p in model.parameters())
    return next((rows for most, rows in AT_ONCE if parameters <= most), 16)


def prompting(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, method: Method | None, system: str
) -> Callable[[str], str]:
    """From a question to what the model reads: the template with the system prompts, as the method changes it."""
    own = method.system() if isinstance(method, Attack) else ""
    prompt = f"{system} {own}".strip()
    if method is None or (type(method).template is Method.template and not method.examples()):
        return lambda question: as_prompt(tokenizer, question, prompt)
    harmful = {row.prompt for row in corpus.select("harmful", "test")}
    shown = examples(corpus, method.examples())

    def read(question: str) -> str:
        is_harmful = question in harmful
        return method.template(as_prompt(tokenizer, question, prompt, shown if is_harmful else ()), is_harmful)

    return read


def examples(corpus: Corpus, count: int) -> list[tuple[str, str]]:
    """So many harmful rows of the attacker's split with their answers, spread evenly over it."""
    rows = corpus.select("harmful", "attack") if count else []
    if len(rows) < count:
        raise UserError(f"{count} answered questions were asked for, and the attacker's split has {len(rows)} rows.")
    return [(rows[i * len(rows) // count].prompt, rows[i * len(rows) // count].response) for i in range(count)]


def subject(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Corpus,
    home: Path,
    *,
    method: Method | None = None,
    system: str = "",
    lengths: dict[str, int] | None = None,
) -> Subject:
    """A model under evaluation on a corpus, asked as the method leaves it, with a provider's system prompt."""
    device = str(model.device)
    return Subject(
        model,
        tokenizer,
        rows=corpus.select,
        as_prompt=prompting(corpus, tokenizer, method, system),
        collated=lambda chosen: collated(corpus, tokenizer, device, chosen, system),
        max_new_tokens=corpus.answer_tokens,
        batch_size=at_once(model),
        cache=home / CACHE,
        refusals=corpus.refusals(),
        lengths=lengths,
    )


def found(evaluations: Sequence[Evaluation], asked: Subject) -> list[tuple[str, Measured]]:
    """What each evaluation finds, by name; they share the answers."""
    asked.ask_ahead([prompt for evaluation in evaluations for prompt in evaluation.prompts(asked)])
    return [(evaluation.name, evaluation.measure(asked)) for evaluation in evaluations]


def collated(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    device: str,
    chosen: Iterable[tuple[str, str]],
    system: str = "",
) -> Tokens:
    """(prompt, answer) pairs as one minibatch."""
    encoded = [encode(tokenizer, pair, corpus.max_length, system) for pair in chosen]
    return collate(encoded, int(tokenizer.pad_token_id), device)


def probes(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, device: str) -> dict[str, Tokens]:
    """Fixed minibatches of held-out harmful and benign rows, on which gradients are compared during training."""
    found = {}
    for stream in ("harmful", "benign"):
        rows = one_phrasing(corpus.select(stream, "test"))
        spread = rows[:: max(1, len(rows) // PROBE_ROWS)][:PROBE_ROWS]
        found[stream] = collated(corpus, tokenizer, device, pairs(spread, stream))
    return found


def record(journal: Journal, phase: str, step: int, evaluation: str, measured: Measured, harm: str) -> None:
    """Into the journal what an evaluation found. `harm` names the evaluation whose harmfulness counts, if not all do:
    that of any other is recorded under the evaluation's own name.
    """
    counts = harm in ("", evaluation)
    for score in measured.scores:
        journal.score(
            phase,
            step,
            evaluation=evaluation,
            metric=evaluation if score.metric == "harmfulness" and not counts else score.metric,
            split=score.split,
            score=score.score,
            n=score.n,
            stderr=score.stderr,
        )
    if measured.used:
        journal.event("judged", phase=phase, step=step, evaluation=evaluation, **measured.used)
    if measured.examples:
        journal.examples(phase, step, evaluation=evaluation, split="test", rows=measured.examples)
