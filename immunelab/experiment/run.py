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
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from immunelab import corpus as corpora
from immunelab.corpus import pairing
from immunelab.corpus.embedding import MiniLM
from immunelab.corpus.tokens import Batches
from immunelab.errors import UserError
from immunelab.experiment import provider as hosting
from immunelab.experiment.measuring import Measuring, asked
from immunelab.method import Batch, Edit, Evaluation, Feed, Method, Provider, Service, Trained, configure
from immunelab.runs import numerics
from immunelab.runs.journal import Journal, RunFolder
from immunelab.runs.spec import KIND_OF_METHOD, RunSpec
from immunelab.training import checkpoints, loop, models

if TYPE_CHECKING:
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
    evaluations = asked(spec, corpus)
    for evaluation in evaluations:
        evaluation.check()
    method = configure(KIND_OF_METHOD[spec.kind], spec.method, spec.knobs) if spec.kind in KIND_OF_METHOD else None  # type: ignore[arg-type]
    saved = checkpoints.latest(folder.checkpoints, resumable=True) if resume else None
    found = hosting.behind(spec, folder.path.parent.parent)
    # What is not saved as it trains starts anew from where it started; its trained weights follow from the checkpoint.
    anew = saved is None or (
        isinstance(method, Trained) and (method.prepares or (found and found.defense.overrides("serving")))
    )
    source = model_source(spec, corpus, folder.path.parent) if anew or not saved else saved.path
    models.seed_everything(spec.seed)
    numerics.check(spec.dtype, spec.attention, device, spec.knobs)
    model, tokenizer = models.load(source, device, spec.dtype, spec.attention)
    models.threads(model)
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
            run.host_of(found)
        if isinstance(method, Trained):
            return run.train(method, saved)
        if isinstance(method, Edit):
            return run.edit(method)
        run.measuring.evaluate(0)
        return "done"


class Halted(Exception):
    """A stop was asked for before the first step."""


class Run:
    """What stays the same while a run trains."""

    def __init__(
        self,
        folder: RunFolder,
        spec: RunSpec,
        journal: Journal,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        corpus: corpora.Corpus,
        evaluations: list[Evaluation],
        watch: Callable[[int], None] | None = None,
    ) -> None:
        self.watch = watch
        self.folder, self.spec, self.journal, self.model, self.tokenizer = folder, spec, journal, model, tokenizer
        self.corpus, self.measuring = corpus, Measuring(spec, journal, model, tokenizer, corpus, evaluations)
        self.began, self.first, self.reported = time.monotonic(), 0, 0.0
        self.steps = 0
        self.method: Method | None = None

    def train(self, method: Trained, saved: checkpoints.Saved | None) -> str:
        """From the first step, or from a checkpoint, to the last; or to a stop request."""
        spec, device = self.spec, str(self.model.device)
        try:
            batches = self.batches(method, fresh=saved is None)
        except Halted:
            return "stopped"
        step_of = self.measuring.host.step(self.model, method.step) if self.measuring.host else None
        if method.prepares:
            self.model = self.measuring.subject.model = method.prepare(self.model, batches)
        self.method = method
        self.steps, self.first = method.steps, saved.step if saved else 0
        state = checkpoints.training_state(saved, device) if saved else None
        if state and "weights" in state:
            checkpoints.restore(self.model, state)
        if state and self.measuring.host:
            self.measuring.host.kept.update(state.get("provider", {}))
        if not saved:
            self.evaluate(0)  # the model as released, asked as anyone would
        self.measuring.method = method
        last = loop.train(
            self.model,
            method,
            batches,
            trace=self.trace,
            after=self.after,
            step_of=step_of,
            start=self.first,
            optimizer_state=state["optimizer"] if state else None,
            probes=self.measuring.probes() if spec.probe_every else None,
            probe_every=spec.probe_every,
        )
        if last < method.steps:
            return "stopped"
        if spec.kind == "immunize" and not method.prepares:
            source = model_source(spec, self.corpus, self.folder.path.parent)
            if Path(source).is_dir():  # weights on the Hub are not loaded again for this
                self.journal.points(spec.kind, last, {"norm/displacement": models.distance(self.model, Path(source))})
        self.keep(last, None)
        return "done"

    def edit(self, method: Edit) -> str:
        """Evaluate, change the weights or what the model reads, evaluate again: steps 0 and 1."""
        self.steps = 1
        self.measuring.evaluate(0)
        began = time.perf_counter()
        scalars = method.edit(self.model, self.batches(method) if method.streams else lambda index: Batch())
        for name, value in scalars.items():
            if not math.isfinite(value):
                raise loop.NonFinite(f"{method.name} left a non-finite {name} ({value}).")
        self.method = self.measuring.method = method
        if isinstance(method, Service):
            self.measuring.host = hosting.Host(method, {}, self.rows_of(method))
            self.measuring.record_templates()
        self.trace(1, scalars | {"time/step_seconds": time.perf_counter() - began})
        self.measuring.evaluate(1)
        self.progress(1)
        self.measuring.host = None  # what is kept is the model, and not how a service would serve it
        self.keep(1, None)
        return "done"

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

    def rows_of(self, defense: Method) -> Feed:
        """The provider's own minibatches, encoded when the first is asked for."""
        made = functools.cache(lambda: self.batches(defense, split="defense"))
        return lambda number: made()(number)

    def host_of(self, found: hosting.Found) -> None:
        """Put the provider behind this run, and record it."""
        kept = hosting.kept(found, str(self.model.device))
        self.measuring.host = hosting.Host(found.defense, kept, self.rows_of(found.defense), found.finished)
        self.journal.event("provider", defense=found.defense.name)
        self.measuring.record_templates()

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

    def after(self, step: int, optimizer: torch.optim.Optimizer) -> bool:
        """Evaluate and save when due, tell the progress, and say whether to stop."""
        spec, last = self.spec, step == self.steps
        if last or (spec.evaluate_every and step % spec.evaluate_every == 0):
            self.evaluate(step)
        self.progress(step)
        if last:
            return False
        if self.folder.stop_requested():
            self.keep(step, optimizer)
            return True
        if spec.checkpoint_every and step % spec.checkpoint_every == 0:
            self.keep(step, optimizer)
        return False

    def evaluate(self, step: int) -> None:
        """Every evaluation, and whoever watches looks at what it found."""
        self.measuring.evaluate(step)
        if self.watch:
            self.watch(step)

    def keep(self, step: int, optimizer: torch.optim.Optimizer | None) -> None:
        """Write a checkpoint, record it, and let older ones go."""
        model, training, host = self.model, None, self.measuring.host
        kept = self.method.kept(model) if isinstance(self.method, Provider) else None
        prepares = isinstance(self.method, Trained) and self.method.prepares
        if prepares or (host and host.serves):
            training = self.model
        if host and host.serves:
            with host.serving(self.model):
                model = copy.deepcopy(self.model)
        if isinstance(self.method, Trained) and prepares:  # at the end it is used up
            model = self.method.after(copy.deepcopy(model) if optimizer and model is training else model)
        saved = checkpoints.save(
            self.folder.checkpoints,
            step,
            model,
            self.tokenizer,
            optimizer,
            training=training,
            kept=kept,
            provider=host.kept if host else None,
        )
        path = saved.path.relative_to(self.folder.path).as_posix()
        self.journal.checkpoint(self.spec.kind, step, path=path, sha256=saved.sha256, bytes=saved.bytes)
        checkpoints.prune(self.folder.checkpoints, keep=2 if optimizer else 1)

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
