"""What the same weights scored before, asked the same questions in the same way on the same kind of machine.

Every attack of a ladder begins by evaluating the same released model. The second one takes the first one's scores and
answers, to the bit; whatever could change a number is part of the key.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from immunelab.method import Evaluation
from immunelab.runs.status import replace_file
from immunelab.training.generation import Measured, Score

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PACKAGE = Path(__file__).resolve().parents[1]
FOLDER = "scored"  # within the lab's home
MOST = 256 << 20  # bytes of weights: to hash more of them takes longer than it is worth


def key(model: PreTrainedModel, evaluations: Sequence[Evaluation], told: Mapping[str, Any]) -> str:
    """What the scores of these weights depend on, as a hash; empty where they are not kept. `told` says how the model
    is asked: corpus, tokenizer, prompts, batch, versions."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if sum(t.numel() * t.element_size() for t in tensors.values()) > MOST:
        return ""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    asked = [(e.name, dataclasses.asdict(e) if dataclasses.is_dataclass(e) else {}) for e in evaluations]
    files = {Path(inspect.getfile(type(e))) for e in evaluations} | {*PACKAGE.rglob("*.py")}
    code = [(str(p), p.stat().st_mtime_ns) for p in sorted(files)]
    how = {"threads": torch.get_num_threads(), "device": str(model.device), "machine": platform.processor()}
    how |= {"attention": str(model.config._attn_implementation), "config": model.config.to_json_string()}
    found.update(json.dumps([asked, code, how, told], sort_keys=True, default=str).encode())
    return found.hexdigest()[:32]


def recall(home: Path, key: str) -> list[tuple[str, Measured]] | None:
    """What each evaluation found for this key, by name; None if that is not known."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        known = json.loads((home / FOLDER / f"{key}.json").read_text(encoding="utf-8")) if key else []
        return [(name, Measured([Score(*s) for s in scores], rows)) for name, scores, rows in known] or None
    return None


def keep(home: Path, key: str, found: Sequence[tuple[str, Measured]]) -> None:
    """For the next run that asks. What a judge was paid for is not kept here; a full disk is no reason to fail."""
    if key and not any(measured.used for _, measured in found):
        with contextlib.suppress(OSError, TypeError):
            (home / FOLDER).mkdir(exist_ok=True)
            text = json.dumps([(name, measured.scores, measured.examples) for name, measured in found])
            replace_file(home / FOLDER / f"{key}.json", text)
