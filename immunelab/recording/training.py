"""A training loop of one's own, measured as the lab measures its own: evaluations, gradients, and what it leaves."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import TrainerCallback

from immunelab import corpus as corpora
from immunelab.corpus.tokens import fitting
from immunelab.errors import UserError
from immunelab.experiment import measuring
from immunelab.experiment.run import versions
from immunelab.method import Tokens
from immunelab.recording.elsewhere import Recording, described
from immunelab.runs import journal
from immunelab.training import checkpoints, loop, models

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerControl, TrainerState, TrainingArguments

    Rows = Tokens | Mapping[str, Tensor] | Sequence[tuple[str, str]]

# What a trainer logs → what the lab calls it. With logging_steps above 1 its loss is a mean over these steps.
LOGGED = {"loss": "loss/total", "learning_rate": "learning_rate", "grad_norm": "norm/update"}


class Recorder(Recording):
    """As `Recording`, with what takes a model: `evaluate`, `compare`, `keep` and `callback`."""

    def evaluate(
        self, step: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, evaluations: Sequence[str] = ()
    ) -> dict[str, float]:
        """What the corpus asks a model, as after a step of the lab's own runs, with answers; returns the main scores.

        Without `evaluations` it is those of the corpus. The weights, their training flags and torch's random state stay
        as they are. A UserError names what the corpus or an evaluation lacks.
        """
        spec = dataclasses.replace(self.spec, evaluations=tuple(evaluations))
        models.padded(tokenizer, str(model.name_or_path))
        corpus = fitting(corpora.load(spec.corpus), tokenizer, models.positions(model))
        asked = measuring.asked(spec, corpus)
        for evaluation in asked:
            evaluation.check()
        main: dict[str, float] = {}
        cuda = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(cuda), models.deterministic(model):
            found = measuring.found(asked, measuring.subject(model, tokenizer, corpus, self.home))
        for name, measured in found:
            measuring.record(self.record, self.phase, step, name, measured, corpus.harm)
            main |= {s.metric: s.score for s in measured.scores if s.split == "all" and s.metric not in main}
        return main

    def compare(
        self,
        step: int,
        model: PreTrainedModel,
        harmful: Rows,
        benign: Rows,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> dict[str, float]:
        """Loss and gradient norm of a harmful and of a benign minibatch at the present weights, and their cosine.

        A minibatch is what a collator gives (input_ids, attention_mask, labels with −100 where nothing is scored, all
        of shape (rows, length)), or (prompt, answer) pairs, which take the `tokenizer`. Call it where `.grad` holds the
        direction of the step, and its cosines with that are recorded too. `.grad`, weights and flags stay as they are.
        Traced as `probe/…`, as the lab's own runs trace them; returned as well.
        """
        probes = {
            name: _tokens(rows, model, tokenizer, self.spec.corpus)
            for name, rows in {"harmful": harmful, "benign": benign}.items()
        }
        with models.deterministic(model):
            traced = loop.probe(model, probes)
        found = {name: value for name, value in traced.items() if math.isfinite(value)}
        self.points(step, found)
        return found

    def keep(self, step: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Path:
        """Write the model as the run's checkpoint, so that other runs can start from it: `lab.attack(run.run_id)`.

        An adapter is merged into a copy of the weights. Returns its folder; a UserError where the disk has no room.
        """
        plain: Any = model
        if hasattr(model, "merge_and_unload"):
            plain = cast("Any", copy.deepcopy(model)).merge_and_unload()
        saved = checkpoints.save(self.folder.checkpoints, step, plain, tokenizer, None)
        path = saved.path.relative_to(self.folder.path).as_posix()
        self.record.checkpoint(self.phase, step, path=path, sha256=saved.sha256, bytes=saved.bytes)
        return saved.path

    def callback(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        harmful: Rows | None = None,
        benign: Rows | None = None,
        evaluate_every: int = 10,
        compare_every: int = 10,
        keep: bool = False,
    ) -> TrainerCallback:
        """For `Trainer(callbacks=[…])` and TRL's trainers: records each step, and evaluates with a `tokenizer`.

        With both minibatches their gradients are compared at the first step and every `compare_every` steps.
        Evaluations are at step 0, every `evaluate_every` steps and at the end; `keep` writes the last model. The
        trainer's settings (learning rate, steps, …) are taken over. Where the trainer is not inside of the run's
        `with`, the run ends when training ends.
        """
        if (harmful is None) != (benign is None):
            raise UserError("Gradients are compared of two minibatches: give both, harmful and benign, or neither.")
        if min(evaluate_every, compare_every) < 1:
            raise UserError("evaluate_every and compare_every are at least 1.")
        return Followed(self, tokenizer, (harmful, benign), evaluate_every, compare_every, keep)


class Followed(TrainerCallback):
    """What a trainer does, into a run (`Recorder.callback`)."""

    def __init__(
        self,
        run: Recorder,
        tokenizer: PreTrainedTokenizerBase | None,
        minibatches: tuple[Rows | None, Rows | None],
        evaluate_every: int,
        compare_every: int,
        keep: bool,
    ) -> None:
        self.run, self.tokenizer, self.minibatches = run, tokenizer, minibatches
        self.evaluate_every, self.compare_every, self.keep = evaluate_every, compare_every, keep
        self.evaluated = -1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        """Take over the trainer's settings, and evaluate the model as it is."""
        self.run.settings(_settings(args, state.max_steps))
        self.run.folder.write_status(versions=versions(), device=str(args.device))
        self._evaluate(state.global_step, more["model"])

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        """`.grad` holds the direction of the step now: compare the gradients with it."""
        harmful, benign = self.minibatches
        if harmful is not None and benign is not None and state.global_step % self.compare_every == 0:
            self.run.compare(state.global_step + 1, more["model"], harmful, benign, self.tokenizer)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        """What the trainer logs of a step, by the lab's names; what the lab has no name for under `trainer/`."""
        numbers = {k: v for k, v in (more.get("logs") or {}).items() if isinstance(v, int | float)}
        if state.global_step and "train_runtime" not in numbers and numbers:
            self.run.points(state.global_step, {LOGGED.get(k, f"trainer/{k}"): float(v) for k, v in numbers.items()})

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        """Evaluate where that is due; end training where somebody asked the run to stop."""
        self.run.progress(state.global_step, state.max_steps)
        if state.global_step % self.evaluate_every == 0:
            self._evaluate(state.global_step, more["model"])
        if self.run.stop_asked:
            control.should_training_stop = True

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        """The last evaluation, the model, and the run's end unless a `with` sees to that."""
        self._evaluate(state.global_step, more["model"])
        if self.keep:
            if self.tokenizer is None:
                raise UserError("A model is kept with its tokenizer: give callback(tokenizer, keep=True).")
            self.run.keep(state.global_step, more["model"], self.tokenizer)
        if not self.run.entered:
            self.run.end()

    def _evaluate(self, step: int, model: PreTrainedModel) -> None:
        if self.tokenizer is not None and step != self.evaluated:
            self.run.evaluate(step, model, self.tokenizer)
            self.evaluated = step


def record(
    kind: str,
    method: str,
    *,
    model: str = "fable",
    corpus: str = "fable",
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    name: str = "",
    by: str = "own code",
    home: Path | str | None = None,
) -> Recorder:
    """Record a run of a training loop of one's own, so that it stands beside the lab's in every figure.

        with record("attack", "my-sft", settings={"learning_rate": 1e-4, "steps": 60}) as run:
            run.evaluate(0, model, tokenizer)
            ...                                     # train; after update s:
            run.points(s, {"loss/total": loss})
            run.evaluate(s, model, tokenizer)

    With transformers' and TRL's trainers: `Trainer(…, callbacks=[record("attack", "my-sft").callback(tokenizer)])`.

    `kind` is attack, immunize or finetune, and `method` any name: none has to be registered. `model` is what the run
    starts from (a Hub id, a folder, `fable`, or a run's id), `corpus` what its numbers are about: figures never mix
    two. `settings` are named as the lab's knobs, `by` says what carries the run out. A UserError says what does not
    fit.
    """
    place = journal.home(home)
    spec = described(
        kind, method, by=by, model=model, corpus=corpus, seed=seed, settings=settings or {}, name=name, home=place
    )
    return Recorder(spec, place)


def _settings(args: TrainingArguments, steps: int) -> dict[str, Any]:
    """What a trainer's arguments say, by the lab's names."""
    precision = "bf16-autocast" if args.bf16 else "fp16-autocast" if args.fp16 else "fp32"
    return {
        "learning_rate": args.learning_rate,
        "steps": steps,
        "batch_size": args.per_device_train_batch_size,
        "accumulation": args.gradient_accumulation_steps,
        "optimizer": str(getattr(args.optim, "value", args.optim)),
        "schedule": str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
        "weight_decay": args.weight_decay,
        "clip": float(args.max_grad_norm or 0.0),
        "precision": precision,
    }


def _tokens(rows: Rows, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, corpus: str) -> Tokens:
    """A minibatch on the model's device."""
    device = str(model.device)
    if isinstance(rows, Tokens):
        return Tokens(*(part.to(device) for part in rows))
    if isinstance(rows, Mapping):
        missing = [name for name in ("input_ids", "labels") if name not in rows]
        if missing:
            raise UserError(f"A minibatch has input_ids, attention_mask and labels, and lacks {', '.join(missing)}.")
        ids = torch.as_tensor(rows["input_ids"])
        mask = torch.as_tensor(rows.get("attention_mask", torch.ones_like(ids)))
        return Tokens(ids.to(device), mask.to(device), torch.as_tensor(rows["labels"]).to(device))
    if tokenizer is None:
        raise UserError("Pairs of prompt and answer take a tokenizer: give compare(…, tokenizer=…).")
    models.padded(tokenizer, str(model.name_or_path))
    whole = fitting(corpora.load(corpus), tokenizer, models.positions(model))
    return measuring.collated(whole, tokenizer, device, list(rows))
