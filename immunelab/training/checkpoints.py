"""Checkpoints that are either whole or ignored: safetensors weights, optimizer and RNG state, checksums.

A checkpoint is a folder such as `step-000120`, written under another name and renamed when complete. `manifest.json`
holds the SHA-256 of every file; a folder that does not match it is skipped for the one before.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from immunelab.errors import UserError
from immunelab.method import Memory
from immunelab.training import models

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STATE = "training.pt"
KEPT = "provider.safetensors"
T_VACCINE = "t_vaccine_"  # how buffers began in which an older version kept that method's memory


class Saved(NamedTuple):
    """One whole checkpoint on disk."""

    path: Path
    step: int
    sha256: str  # of the manifest, which lists the checksums of all files
    bytes: int


def save(
    folder: Path,
    step: int,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    optimizer: torch.optim.Optimizer | None,
    *,
    training: nn.Module | None = None,
    kept: dict[str, Tensor] | None = None,
    memory: dict[str, Tensor] | None = None,
    provider: dict[str, Tensor] | None = None,
) -> Saved:
    """Write `step-<step>` into the folder; with an optimizer, also what a run needs to continue exactly from here.

    `training` is the prepared model in training, if it differs from the plain `model` that is released. Its trainable
    weights and buffers are saved for resuming, and so are the tensors in the method's `memory` and in that of a
    `provider` behind the run. `kept` are the tensors that stay with a provider after this run. A UserError if the disk
    has less than 1.2 times the needed space; nothing is left half-written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    needed = int(weights * (1.2 if optimizer is None else 3.6)) + 2**20
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"A checkpoint takes about {needed / 2**20:.0f} MB and {folder} has {free / 2**20:.0f} MB free: "
            "free some space (`immunelab runs` shows what each run takes) and resume the run."
        )
    final = folder / f"step-{step:06d}"
    draft = folder / f".draft-{step:06d}"
    shutil.rmtree(draft, ignore_errors=True)
    try:
        models.save(model, tokenizer, draft)
        if optimizer is not None:
            state = {"step": step, "optimizer": optimizer.state_dict(), "rng": rng_state()}
            if training is not None:
                state["weights"] = {n: p.detach() for n, p in training.named_parameters() if p.requires_grad}
                state["buffers"] = dict(training.named_buffers())
            state |= {"memory": memory or {}, "provider": provider or {}}
            torch.save(state, draft / STATE)
        if kept:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in kept.items()}, draft / KEPT)
        files = {p.name: _sha256(p) for p in sorted(draft.iterdir())}
        size = sum(p.stat().st_size for p in draft.iterdir())
        manifest = json.dumps({"step": step, "files": files}, indent=1)
        (draft / "manifest.json").write_text(manifest, encoding="utf-8")
        for path in draft.iterdir():  # or a power cut could leave the final name on files that were never written
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        shutil.rmtree(final, ignore_errors=True)
        draft.rename(final)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return Saved(final, step, hashlib.sha256(manifest.encode()).hexdigest(), size)


def latest(folder: Path, *, resumable: bool = False) -> Saved | None:
    """The last checkpoint whose checksums match, or None; `resumable`: only with optimizer state."""
    for path in reversed(_in_order(folder)):
        found = verified(path)
        if found and (not resumable or (path / STATE).is_file()):
            return found
    return None


def verified(path: Path) -> Saved | None:
    """The checkpoint at a path if every file matches its checksum."""
    try:
        manifest = (path / "manifest.json").read_text(encoding="utf-8")
        data = json.loads(manifest)
        files: dict[str, str] = data["files"]
        strangers = {p.name for p in path.iterdir() if p.name[0] != "."} - set(files) - {"manifest.json"}
        whole = (
            bool(files)
            and not strangers
            and all(_sha256(path / Path(name).name) == digest for name, digest in files.items())
        )
        step = int(data["step"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # a damaged or foreign folder; the caller tries the one before
    size = sum(p.stat().st_size for p in path.iterdir())
    return Saved(path, step, hashlib.sha256(manifest.encode()).hexdigest(), size) if whole else None


def resume(
    saved: Saved, model: nn.Module, optimizer: torch.optim.Optimizer, memory: Memory, provider: Memory | None
) -> None:
    """Restore what a resumable checkpoint saved: random state, optimizer, memories, and a prepared model's weights.

    Loads tensors only, no pickled code. A UserError if the weights belong to another model.
    """
    device = next(model.parameters()).device
    state: dict[str, Any] = torch.load(saved.path / STATE, map_location=device, weights_only=True)
    restore_rng(state["rng"])
    optimizer.load_state_dict(state["optimizer"])
    if "weights" in state:
        _restore(model, state)
    buffers = state.get("buffers", {})
    older = {name.removeprefix(T_VACCINE): buffers[name] for name in buffers if name.startswith(T_VACCINE)}
    memory.tensors |= older | state.get("memory", {})
    if provider:
        provider.tensors |= state.get("provider", {})


def _restore(model: nn.Module, state: dict[str, Any]) -> None:
    mine = {name: p for name, p in model.named_parameters() if p.requires_grad}
    saved: dict[str, Tensor] = state["weights"]
    if set(mine) != set(saved):
        name = sorted(set(mine) ^ set(saved))[0]
        raise UserError(f"The checkpoint does not fit the model in training: {name} is in one of them only.")
    with torch.no_grad():
        for name, parameter in mine.items():
            parameter.copy_(saved[name])
        for name, buffer in model.named_buffers():
            if name in state.get("buffers", {}):  # checkpoints of the first version have none
                buffer.copy_(state["buffers"][name])


def kept(saved: Saved) -> dict[str, Tensor]:
    """The tensors that the provider kept beside a checkpoint's weights; a UserError if there are none."""
    if not (saved.path / KEPT).is_file():
        raise UserError(f"The checkpoint {saved.path} has no {KEPT}, which its defense needs during fine-tuning.")
    return load_file(saved.path / KEPT)


def prune(folder: Path, keep: int = 2, weights: bool = False) -> None:
    """Delete all but the last few checkpoints, and drafts that a crash left behind. `weights`: only delete what a run
    would need to go on from the others."""
    found = _in_order(folder)
    for path in found[: len(found) - keep]:
        if weights:
            _strip(path)
        else:
            shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".draft-*"):
        shutil.rmtree(path, ignore_errors=True)


def _strip(path: Path) -> None:
    """Take the optimizer's state out of a whole checkpoint."""
    if (path / STATE).is_file() and verified(path):
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        del manifest["files"][STATE]
        (path / STATE).unlink()  # cut short here, it is a damaged checkpoint, and the one after it is whole
        (path / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _in_order(folder: Path) -> list[Path]:
    """The checkpoints in order of their steps as numbers: step 1,000,000 comes after 999,999."""
    found = [(path.name.removeprefix("step-"), path) for path in folder.glob("step-*")]
    return [path for number, path in sorted((int(n), p) for n, p in found if n.isascii() and n.isdigit())]


def rng_state() -> dict[str, Any]:
    """The state of torch's generators."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def restore_rng(state: dict[str, Any]) -> None:
    """Restore a state from `rng_state`."""
    torch.set_rng_state(state["cpu"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
