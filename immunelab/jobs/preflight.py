"""What can be known to fail before a run starts, found out before anything of it is queued or written.

`jobs.submit` calls `check`, so command line, pages, `lab`, grids and searches all say the same sentence. torch is
imported only for weights in another dtype than fp32, another attention, and evaluations that look for what they need.
"""

from __future__ import annotations

import functools
import re
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from immunelab import corpus as corpora
from immunelab.errors import UserError
from immunelab.formatting import size
from immunelab.jobs import demand, reuse
from immunelab.jobs.queue import resolve_device
from immunelab.method import catalogue, configure
from immunelab.runs import journal, model_folder, numerics
from immunelab.runs.journal import ENDED, RunFolder
from immunelab.runs.spec import KIND_OF_METHOD, RunSpec
from immunelab.sweep.plan import METHODS
from immunelab.sweep.tuning import Tune, settings_of

HUB_ID = re.compile(r"^[\w.-]{1,96}(/[\w.-]{1,96})?$", re.ASCII)
Load = Callable[[str], corpora.Corpus]


def check(
    specs: Sequence[RunSpec],
    home: Path | str | None = None,
    here: bool = True,
    data: bool = True,
    new: Collection[int] = (),
) -> None:
    """A UserError if a run of the list can't be carried out.

    `here` False: on a cluster, whose devices are not known before the run is there. `data` False: without reading
    corpora and model folders. `new` are the places of those that will be carried out, and so need room on the disk.
    """
    place, specs = journal.home(home), reuse.judged(specs)
    references(specs, place)
    load = functools.cache(corpora.load)
    for spec in _distinct(specs, ("device", "dtype", "attention", "kind", "method", "knobs", "recorded_by")):
        _numbers(spec, place, here)
        _method(spec)
    if not data:
        return
    for spec in _distinct(specs, ("model", "corpus", "attention")):
        _model(spec, load, place)
    for spec in _distinct(specs, ("kind", "method", "knobs", "corpus", "evaluations", "judge")):
        for corpus in map(load, _corpora(spec)):
            _evaluations(spec, corpus)
            _rows(spec, corpus)
    if here and new:
        _room(specs, new, place)


def _distinct(specs: Sequence[RunSpec], fields: tuple[str, ...]) -> list[RunSpec]:
    """One spec for each combination of some of their fields: grids repeat them a thousand times."""
    return list({repr([getattr(spec, field) for field in fields]): spec for spec in reversed(specs)}.values())[::-1]


def references(specs: Sequence[RunSpec], place: Path) -> None:
    """A UserError if the model of a spec refers to a run that it can't start from."""
    for i, spec in enumerate(specs):
        if spec.model.startswith("run:#"):
            number = spec.model.removeprefix("run:#")
            if not (number.isascii() and number.isdigit() and int(number) < i):
                raise UserError(
                    f"The model {spec.model!r} of spec {i} must name an earlier spec of the list, counted from 0"
                    + (f": run:#0 to run:#{i - 1}." if i else "; the first one has none before it.")
                )
        elif spec.model.startswith("run:"):
            parent = RunFolder.open(place, spec.model.removeprefix("run:"))
            status = parent.status()
            if status.status in ENDED and status.status != "done":
                raise UserError(
                    f"The run {parent.run_id} is {status.status}, so its model is not finished. Resume it first."
                )


def _corpora(spec: RunSpec) -> list[str]:
    """The corpora that a run reads: its own, and the other world of a tuning."""
    settings = settings_of(spec) if spec.kind == "sweep" else None
    return [spec.corpus, *([settings.world] if isinstance(settings, Tune) and settings.world else [])]


def _numbers(spec: RunSpec, place: Path, here: bool) -> None:
    """Device, dtype and attention; what is rounded must be of use to the method."""
    if here:
        # Every trial of a search is by AdamW.
        knobs = {"optimizer": "adamw"} if spec.kind == "sweep" else spec.knobs
        numerics.check(spec.dtype, spec.attention, resolve_device(spec.device, place), knobs)
    if spec.dtype == numerics.USUAL["dtype"] or not spec.method:
        return
    for kind, name, values in _trained(spec):
        reason = configure(METHODS[kind], name, values).in_fp32()  # type: ignore[arg-type]  # imports torch
        if reason:
            raise UserError(f"{name} does not run on weights in {spec.dtype}: {reason}")


def _trained(spec: RunSpec) -> list[tuple[str, str, Mapping[str, Any]]]:
    """The kind, method and settings that a run carries out: its own, or for a sweep those of its trials."""
    if spec.kind != "sweep":
        return [(spec.kind, spec.method, spec.knobs)]
    return [(choice.kind, choice.method, choice.knobs) for choice in settings_of(spec).trains(spec.corpus)]


def _method(spec: RunSpec) -> None:
    """The method is known, its settings fit, and it was not somebody else who ran it."""
    if spec.recorded_by:
        raise UserError(
            f"A run of {spec.method} was recorded elsewhere, by {spec.recorded_by}, and can't be run here. Take a "
            "method of the lab (immunelab methods), or leave recorded_by out if it is one."
        )
    if spec.kind == "sweep":
        settings = settings_of(spec)
        settings.trains(spec.corpus)
        if isinstance(settings, Tune):
            settings.space(spec.corpus)
    elif spec.method or spec.kind in KIND_OF_METHOD:
        catalogue.entry(METHODS[spec.kind], spec.method).settings(spec.knobs)


def _model(spec: RunSpec, load: Load, place: Path) -> None:
    """The model is there, and is one that can be loaded. On the Hub it is looked for by the run."""
    folder = _base(spec, load)
    if spec.model.startswith("run:") and "#" not in spec.model:
        parent = RunFolder.open(place, spec.model.removeprefix("run:"))
        if parent.spec().kind not in KIND_OF_METHOD:
            raise UserError(f"The run {parent.run_id} is of the kind {parent.spec().kind}, and leaves no model.")
        if parent.status().status == "done" and not any(parent.checkpoints.glob("step-*")):
            raise UserError(f"The run {parent.run_id} has left no weights to start from: run it again, with keep last.")
    elif folder and not model_folder.check(folder) and not HUB_ID.match(str(folder)):
        raise UserError(f"There is no model folder {spec.model[:300]!r}. {model_folder.WHAT_A_MODEL_IS}")
    if spec.attention != numerics.USUAL["attention"]:
        from immunelab.experiment.run import check_attention

        check_attention(spec, place)


def _base(spec: RunSpec, load: Load) -> Path | None:
    """The folder of a run's base model, if the spec says it; None where another run makes it."""
    if spec.model.startswith("run:"):
        return None
    if spec.model != "fable":
        return Path(spec.model)
    folder = load(spec.corpus).own_model()
    if not (folder / "config.json").is_file():
        raise UserError(f"The corpus {spec.corpus} has no model at {folder}: run `immunelab fable build`.")
    return folder


def _evaluations(spec: RunSpec, corpus: corpora.Corpus) -> None:
    """Each evaluation is known, its settings fit, what it needs is there and allowed, and the corpus has its rows."""
    for name, settings, preset in corpus.measured(spec):
        entry = catalogue.entry("evaluation", name)
        entry.settings(settings, preset)
        if entry.checks:
            configure("evaluation", name, settings, preset).check()  # imports torch
        for stream in entry.streams:
            corpus.select(stream, "test")


def _rows(spec: RunSpec, corpus: corpora.Corpus) -> None:
    """The corpus has the streams that a method trains on, and enough rows of them."""
    if not spec.method or spec.kind == "evaluate":
        return
    for kind, name, values in _trained(spec):
        entry = catalogue.entry(METHODS[kind], name)
        _streams(entry, entry.settings(values), corpus, "defense" if kind == "immunize" else "attack")


def _streams(entry: catalogue.Entry, knobs: Mapping[str, Any], corpus: corpora.Corpus, split: str) -> None:
    for stream in entry.streams:
        if stream == "unrelated":  # its pairs are made of these
            for needed in ("harmful", "benign"):
                corpus.select(needed, split)
        elif stream != "user":
            have = len(corpus.select(stream, split))
            if "unrelated" not in entry.streams:
                corpora.enough(stream, have, int(knobs.get("samples", 0)))
        elif not entry.uploads:
            corpus.submitted(knobs, split)


def _room(specs: Sequence[RunSpec], new: Collection[int], place: Path) -> None:
    """There is room for the weights that the runs will leave, as far as their models are here already."""
    (needed, runs), free = demand.left(specs, new, place), _free(place)
    if needed > free:
        raise UserError(
            f"The weights that {runs} runs leave take {size(needed)}, and {size(free)} are free in {place}: start them "
            "with keep none, or fewer at a time, or delete other runs or their checkpoints."
        )


def _free(place: Path) -> int:
    """Bytes that are free where a folder is, or will be."""
    return shutil.disk_usage(next(p for p in (place.absolute(), *place.absolute().parents) if p.is_dir())).free
