"""What a run asks of a CPU: how many of its places, and how much memory. From sizes of files, without torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from immunelab import corpus, formatting
from immunelab.errors import UserError
from immunelab.jobs import queue
from immunelab.runs import model_folder, numerics
from immunelab.runs.journal import RunFolder
from immunelab.runs.numerics import LARGE
from immunelab.runs.spec import KIND_OF_METHOD, RunSpec
from immunelab.sweep.tuning import Tune, settings_of

FP32 = 4  # bytes a weight, as most checkpoints of this lab are saved
STATE = 8  # sizes of the weights that gradients, AdamW and copies take at most
PROCESS = 1 << 30  # bytes of torch, the corpus and activations


class Demand(NamedTuple):
    """Places of the CPU, and bytes of main memory beyond which a run had better not start beside others."""

    share: int
    memory: int


def demand(spec: RunSpec, home: Path) -> Demand:
    """A small model's run computes with one thread and takes one place; a large or unknown one's takes them all."""
    size = weights(spec, home)
    if size is None or size > FP32 * LARGE:
        return Demand(queue.places("cpu"), (size or 0) * STATE + PROCESS)
    return Demand(1, size * STATE + PROCESS)


def weights(spec: RunSpec, home: Path) -> int | None:
    """Bytes of the weights that a run starts from; None where it can't be known before they are loaded."""
    try:
        if spec.model.startswith("run:"):
            parent = RunFolder.open(home, spec.model.removeprefix("run:"))
            saved = sorted(parent.checkpoints.glob("step-*"))
            return _files(saved[-1]) if saved else weights(parent.spec(), home)
        folder = corpus.load(spec.corpus).own_model() if spec.model == "fable" else Path(spec.model)
        return _files(folder)
    except (UserError, OSError):
        return None  # what is wrong with it is told by the run


def left(specs: Sequence[RunSpec], places: Collection[int], home: Path) -> tuple[int, int]:
    """Bytes of weights that some runs of a list leave on the disk, and how many runs leave any; as far as the models
    that they start from are here already."""
    known: dict[tuple[str, str], int] = {}

    def start(i: int) -> int:
        spec = specs[i]
        if spec.model.startswith("run:#"):
            return start(int(spec.model.removeprefix("run:#")))
        key = spec.model, spec.corpus
        if key not in known:
            known[key] = weights(spec, home) or 0
        return known[key]

    leaving = {i: kept(specs[i]) for i in places}
    return sum(times * start(i) for i, times in leaving.items() if times), sum(map(bool, leaving.values()))


def told(specs: Sequence[RunSpec], home: Path, places: Collection[int] | None = None) -> str:
    """What had better be known of a list's runs, or of some of them, before they start: the weights that they leave on
    the disk, and arithmetic that is slow here."""
    places = range(len(specs)) if places is None else places
    size, runs = left(specs, places, home)
    weights = f"Leaves {formatting.size(size)} of weights{f' of {runs} runs' if runs > 1 else ''}." if size else ""
    asked = {(s.dtype, str(s.knobs.get("precision", "")), s.device) for s in (specs[i] for i in places)}
    auto = queue.devices()[0]
    slow = {numerics.slow(dtype, precision, auto if on == "auto" else on) for dtype, precision, on in asked}
    return " ".join(part for part in (weights, *slow) if part)


def kept(spec: RunSpec) -> int:
    """How many checkpoints of a run stay on the disk when it is done, or of a tuning lie there at once."""
    if spec.kind == "sweep":
        settings = settings_of(spec)
        return settings.checkpoints if isinstance(settings, Tune) else 0
    if spec.kind not in KIND_OF_METHOD or spec.keep == "none":
        return 0
    steps, every = int(spec.knobs.get("steps", 1)), [n for n in (spec.evaluate_every, spec.checkpoint_every) if n]
    along = {step for n in every for step in range(n, steps, n)} if spec.keep == "all" else ()
    return 1 + len(along)


def _files(folder: Path) -> int | None:
    sizes = [path.stat().st_size for path in model_folder.weight_files(folder)]
    return sum(sizes) if sizes else None
