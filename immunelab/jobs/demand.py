"""What a run asks of a CPU: how many of its places, and how much memory. From sizes of files, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from immunelab import corpus
from immunelab.errors import UserError
from immunelab.jobs import queue
from immunelab.runs import model_folder
from immunelab.runs.journal import RunFolder
from immunelab.runs.numerics import LARGE
from immunelab.runs.spec import RunSpec

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


def _files(folder: Path) -> int | None:
    sizes = [path.stat().st_size for path in model_folder.weight_files(folder)]
    return sum(sizes) if sizes else None
