"""The protocol of one run, on one screen: load, evaluate, train with evaluations along the way, keep the weights.

Evaluations happen at step 0, every `evaluate_every` steps and at the last step. A stop request writes a checkpoint
with everything needed to go on, and a resumed run continues from the last whole one with the same minibatches. A
method that edits instead of training makes one step: before it and after it.
"""

from __future__ import annotations

import copy
import functools
import importlib.metadata
import math
import re
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from immunelab import corpus as corpora
from immunelab.corpus import pairing
from immunelab.corpus.embedding import MiniLM
from immunelab.corpus.tokens import Batches, fitting
from immunelab.errors import UserError
from immunelab.experiment import measuring, provider, scored
from immunelab.method import Batch, Defense, Edit, Evaluation, Memory, Method, Provider, Service, Trained, configure
from immunelab.runs import numerics
from immunelab.runs.journal import Journal, RunFolder
from immunelab.runs.spec import KIND_OF_METHOD, RunSpec
from immunelab.training import checkpoints, loop, models
from immunelab.training import gradients as g
from immunelab.training.generation import Measured, Subject

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LAYER = re.compile(r"^(.*)/layer/(\d+)$")
PACKAGES = ("torch", "transformers", "peft", "flash-attn", "lm-eval", "duckdb", "streamlit")


def execute(
    folder: RunFolder, attempt: int = 1, resume: bool = False, watch: Callable[[int], None] | None = None
) -> str:
    """Do the run in a folder; returns "done" or "stopped". A UserError says what the user can mend.

    `watch(step)` is called after each evaluation, which is in the journal by then; it may ask the run to stop.
    """
    spec = folder.spec()
    device = folder.status().device or ("cpu" if spec.device == "auto" else spec.device)
    corpus = corpora.load(spec.corpus)
    evaluations = measuring.asked(spec, corpus)
    for evaluation in evaluations:
        evaluation.check()
    method = configure(KIND_OF_METHOD[spec.kind], spec.method, spec.knobs) if spec.kind in KIND_OF_METHOD else None  # type: ignore[arg-type]
    saved = checkpoints.latest(folder.checkpoints, resumable=True) if resume else None
    found = provider.behind(spec, folder.path.parent.parent)
    # What is not saved as it trains starts anew from where it started; its trained weights follow from the checkpoint.
    anew = saved is None or (
        isinstance(method, Trained) and (method.prepares or (found and found.defense.overrides("serving")))
    )
    source = model_source(spec, corpus, folder.path.parent) if anew or not saved else saved.path
    models.seed_everything(spec.seed)
    numerics.check(spec.dtype, spec.attention, device, spec.knobs)
    model, tokenizer = models.load(source, device, spec.dtype, spec.attention)
    models.threads(model)
    corpus = fitting(corpus, tokenizer, models.positions(model))
    folder.write_status(versions=versions(), message="running")
    with Journal(folder, attempt) as journal:
        run = Run(folder, spec, journal, model, tokenizer, corpus, evaluations, watch)
        journal.event(
            "resumed" if saved else "started",
            from_step=saved.step if saved else 0,
            corpus_hash=corpus.fingerprint,
            parameters=sum(p.numel() for p in model.parameters()),
            threads=torch.get_num_threads(),
            dtype=str(model.dtype).removeprefix("torch."),
            attention=str(model.config._attn_implementation),
        )
        if corpus.made:
            journal.event("corpus", notes=list(corpus.notes), **corpus.made)
        if found:
            kept = provider.kept(found, str(model.device))
            journal.event("provider", defense=found.defense.name)
            run.served_by(found.defense, kept, found.finished)
        if isinstance(method, Trained):
            return run.train(method, saved)
        if isinstance(method, Edit):
            return run.edit(method)
        run.evaluate(0)
        return "done"


class Halted(Exception):
    """A stop was asked for before the first step."""


@dataclass
class Run:
    """One run at work. `method` and `host`, once they are in force, change what is asked, served and kept."""

    folder: RunFolder
    spec: RunSpec
    journal: Journal
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    corpus: corpora.Corpus
    evaluations: list[Evaluation]
    watch: Callable[[int], None] | None = None
    method: Method | None = None
    host: provider.Host | None = None
    steps: int = 0
    first: int = 0  # the step that it was resumed from
    began: float = field(default_factory=time.monotonic)
    reported: float = 0.0
    lengths: dict[str, int] = field(default_factory=dict)  # words of the last answer to each question

    def train(self, method: Trained, saved: checkpoints.Saved | None) -> str:
        """From the first step, or from a checkpoint, to the last; or to a stop request."""
        spec = self.spec
        try:
            batches = self.batches(method, fresh=saved is None)
        except Halted:
            return "stopped"
        direction = self.host.step(self.model, method.step) if self.host else method.step
        if method.prepares:
            self.model = method.prepare(self.model, batches)
        optimizer = loop.make_optimizer(method, g.trainable(self.model))
        self.steps, self.first = method.steps, saved.step if saved else 0
        if saved:
            theirs = self.host.memory if self.host else None
            checkpoints.resume(saved, self.model, optimizer, Memory.of(self.model), theirs)
        else:
            self.evaluate(0)  # the model as released, asked as anyone would
        self.method = method
        probes = measuring.probes(self.corpus, self.tokenizer, str(self.model.device)) if spec.probe_every else None
        for step, scalars in loop.updates(
            self.model,
            method,
            batches,
            optimizer,
            start=self.first,
            direction=direction,
            probes=probes,
            probe_every=spec.probe_every,
        ):
            self.trace(step, scalars)
            last = step == method.steps
            due = bool(spec.evaluate_every) and step % spec.evaluate_every == 0
            if last or due:
                self.evaluate(step)
            self.progress(step)
            if last:
                break
            stop = self.folder.stop_requested()
            if stop or (spec.checkpoint_every and step % spec.checkpoint_every == 0):
                self.keep(step, optimizer)
            elif due and spec.keep == "all":
                self.keep(step)
            if stop:
                return "stopped"
        if spec.kind == "immunize" and not method.prepares:
            source = model_source(spec, self.corpus, self.folder.path.parent)
            if Path(source).is_dir():  # weights on the Hub are not loaded again for this
                moved = models.distance(self.model, Path(source))
                self.journal.points(spec.kind, method.steps, {"norm/displacement": moved})
        self.keep(method.steps, last=True)
        return "done"

    def edit(self, method: Edit) -> str:
        """Evaluate, change the weights or what the model reads, evaluate again: steps 0 and 1."""
        self.steps = 1
        self.evaluate(0)
        began = time.perf_counter()
        scalars = method.edit(self.model, self.batches(method) if method.streams else lambda index: Batch())
        for name, value in scalars.items():
            if not math.isfinite(value):
                raise loop.NonFinite(f"{method.name} left a non-finite {name} ({value}).")
        self.method = method
        if isinstance(method, Service):
            self.served_by(method)
        self.trace(1, scalars | {"time/step_seconds": time.perf_counter() - began})
        self.evaluate(1)
        self.progress(1)
        self.host = None  # what is kept is the model, and not how a service would serve it
        self.keep(1, last=True)
        return "done"

    def evaluate(self, step: int) -> None:
        """Every evaluation on the present weights, or on what a provider would serve now, into the journal."""
        with self.host.serving(self.model) if self.host else nullcontext({}) as scalars:
            home, key = self.folder.path.parents[1], "" if step or self.host else self.key()
            found = scored.recall(home, key)
            if found is None:
                cuda = [self.model.device] if self.model.device.type == "cuda" else []
                # Whether it is measured or recalled, the attack goes on with the same random numbers.
                with torch.random.fork_rng(cuda, enabled=bool(key)):
                    found = self.measure()
            for name, measured in found:
                measuring.record(self.journal, self.spec.kind, step, name, measured, self.corpus.harm)
            scored.keep(home, key, found)
        if step and scalars:
            self.journal.points(self.spec.kind, step, scalars)
        if self.watch:
            self.watch(step)

    def measure(self) -> list[tuple[str, Measured]]:
        """What each evaluation finds, by name; they share the answers."""
        return measuring.found(self.evaluations, self.subject())

    def key(self) -> str:
        """Under what the scores of the attacked model are kept for other attacks on it; empty for other runs."""
        if self.spec.kind != "attack":
            return ""
        told = {
            "corpus": self.corpus.fingerprint,
            "tokens": self.corpus.answer_tokens,
            "batch": measuring.at_once(self.model),
        }
        told |= {"refusals": self.corpus.refusals(), "length": self.corpus.max_length, "versions": versions()}
        words = self.tokenizer.backend_tokenizer.to_str() if self.tokenizer.is_fast else repr(self.tokenizer)
        told |= {"tokenizer": words, "template": self.tokenizer.chat_template}
        return scored.key(self.model, self.evaluations, told)

    def subject(self) -> Subject:
        """The model as anyone would ask it now: as the method in force leaves it, with the provider's system prompt."""
        prompt = self.host.defense.system() if self.host else ""
        home = self.folder.path.parents[1]
        return measuring.subject(
            self.model, self.tokenizer, self.corpus, home, method=self.method, system=prompt, lengths=self.lengths
        )

    def keep(self, step: int, optimizer: torch.optim.Optimizer | None = None, last: bool = False) -> None:
        """Write a checkpoint, record it, and let older ones go as the spec says; with the optimizer, one to go on from.

        After the `last` step none is needed to go on from, and the model may be used up.
        """
        if last and self.spec.keep == "none":
            checkpoints.prune(self.folder.checkpoints, keep=0)
            return
        model, method, host = self.model, self.method, self.host
        kept = method.kept(model) if isinstance(method, Provider) else None
        served = host is not None and host.serves
        if host and served:
            with host.serving(model):
                model = copy.deepcopy(model)
        prepared = isinstance(method, Trained) and method.prepares
        if isinstance(method, Trained) and prepared:
            model = method.after(model if last or model is not self.model else copy.deepcopy(model))
        saved = checkpoints.save(
            self.folder.checkpoints,
            step,
            model,
            self.tokenizer,
            optimizer,
            training=self.model if prepared or served else None,
            kept=kept,
            memory=Memory.of(self.model).tensors,
            provider=host.memory.tensors if host else None,
        )
        path = saved.path.relative_to(self.folder.path).as_posix()
        self.journal.checkpoint(self.spec.kind, step, path=path, sha256=saved.sha256, bytes=saved.bytes)
        checkpoints.prune(self.folder.checkpoints, keep=1 if last else 2, weights=self.spec.keep == "all")

    def trace(self, step: int, scalars: dict[str, float]) -> None:
        """Scalars to the journal; those named …/layer/<i> as one series over layers, every `layers_every` steps."""
        layers: dict[str, list[float]] = {}
        plain = {}
        for name, value in scalars.items():
            match = LAYER.match(name)
            if not match:
                plain[name] = value
            elif self.spec.layers_every and (step - 1) % self.spec.layers_every == 0:
                layers.setdefault(match.group(1), []).append(value)
        self.journal.points(self.spec.kind, step, plain)
        if layers:
            self.journal.layers(self.spec.kind, step, layers)

    def progress(self, step: int) -> None:
        """Step, share done and time left into the run's status, at most twice a second."""
        now = time.monotonic()
        if now - self.reported < 0.5 and step < self.steps:
            return
        self.reported = now
        left = (now - self.began) / max(1, step - self.first) * (self.steps - step)
        self.folder.write_status(
            phase=self.spec.kind, step=step, steps=self.steps, progress=step / self.steps, eta_seconds=left
        )

    def served_by(
        self, defense: Defense | Service, kept: dict[str, Tensor] | None = None, finished: bool = False
    ) -> None:
        """Put a provider behind this run. Its minibatches are encoded when the first is asked for."""
        made = functools.cache(lambda: self.batches(defense, split="defense"))
        self.host = provider.Host(defense, Memory(kept or {}, lambda number: made()(number)), finished)
        if templates := self.host.templates(self.tokenizer):
            self.journal.event("templates", **templates)

    def batches(self, method: Method, fresh: bool = True, split: str = "") -> Batches:
        """The method's minibatches, from the rows that belong to its side; `fresh` records what they are made of."""
        split = split or ("defense" if self.spec.kind == "immunize" else "attack")
        paired = self.paired(method, split, fresh) if "unrelated" in method.streams else None
        return Batches(
            self.corpus,
            self.tokenizer,
            method,
            split=split,
            seed=self.spec.seed,
            device=str(self.model.device),
            max_length=self.corpus.max_length,
            pairing=paired,
        )

    def paired(self, method: Method, split: str, fresh: bool) -> pairing.Pairing:
        """The pairs of the stream `unrelated`, from the lab's cache if they were built before."""
        cache, embedder = self.folder.path.parent.parent / pairing.FOLDER, MiniLM(str(self.model.device))
        rule, seed = pairing.Rule.of(method), self.spec.seed
        found = pairing.build(
            self.corpus, rule, embedder=embedder, split=split, seed=seed, cache=cache, tell=self.preparing
        )
        self.folder.write_status(message="running")
        if fresh:
            self.journal.event("pairs", **found.statistics())
            self.journal.points(self.spec.kind, 0, found.points())
        return found

    def preparing(self, what: str, done: int, total: int, left: float) -> None:
        """What is done before the first step, into the run's status; a stop request ends it."""
        if self.folder.stop_requested():
            raise Halted
        self.folder.write_status(message=pairing.told(what, done, total, left))


def model_source(spec: RunSpec, corpus: corpora.Corpus, runs: Path) -> str | Path:
    """Where the weights are: `fable` is the corpus's own model, `run:<id>` what a run left, else a folder or Hub id."""
    if spec.model == "fable":
        folder = corpus.own_model()
        if not (folder / "config.json").is_file():
            raise UserError(f"The corpus {corpus.name} has no model at {folder}: run `immunelab fable build`.")
        return folder
    if spec.model.startswith("run:"):
        parent = RunFolder.open(runs.parent, spec.model.removeprefix("run:"))
        saved = checkpoints.latest(parent.checkpoints)
        if not saved:
            raise UserError(
                f"The run {parent.run_id} has left no checkpoint to start from: resume it, or run it again."
            )
        return saved.path
    return spec.model


def check_attention(spec: RunSpec, home: Path) -> None:
    """A UserError if the model of a run that is to be has no such attention; on the Hub, it is told by the run."""
    model = spec.model
    if model.startswith("run:") and "#" not in model:
        folder = RunFolder.open(home, model.removeprefix("run:"))
        model = folder.lineage()[-1].model if folder.lineage() else folder.spec().model
    place = corpora.load(spec.corpus).own_model() if model == "fable" else Path(model)
    if place.is_dir():
        models.check_attention(place, spec.attention)


def versions() -> dict[str, str]:
    """Versions of Python, this package and the libraries that decide numbers."""
    found = {"python": sys.version.split()[0]}
    for package in ("immunelab", *PACKAGES):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # an optional package that is not installed has no version
    return found
