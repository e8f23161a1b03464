"""Whether a folder is one that a model may be loaded from, as far as its files tell; no weight is read."""

from __future__ import annotations

import json
from pathlib import Path

from immunelab.errors import UserError

LARGEST_DOCUMENT = 64 << 20  # bytes of a model's JSON files other than the tokenizer
WHAT_A_MODEL_IS = (
    "A model is `fable`, `run:<run id>`, a folder with config.json, tokenizer and safetensors weights, or a Hub id "
    "that this machine can reach."
)


def check(source: str | Path) -> bool:
    """Whether the source is a local folder; a UserError if no model should be read from it."""
    folder = Path(source)
    try:
        if not folder.is_dir():
            return False
    except OSError:
        raise UserError(f"No model can be called {str(source)[:80]!r}…. {WHAT_A_MODEL_IS}") from None
    if not (folder / "config.json").is_file():
        raise UserError(f"The folder {folder} holds no config.json, so it is not a Hugging Face model.")
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"The folder {folder} holds no .safetensors file; pickled weights (.bin, .pt) are not loaded.")
    if (folder / "adapter_config.json").exists():
        raise UserError(f"The folder {folder} holds an adapter of another model; merge it into the weights first.")
    whole = folder.resolve()
    # The Hub's cache is made of links from `snapshots/<commit>/` to `blobs/` beside it.
    allowed = [whole, whole.parents[1] / "blobs"] if whole.parent.name == "snapshots" else [whole]
    for path in folder.rglob("*"):
        if path.is_symlink() and not any(path.resolve().is_relative_to(place) for place in allowed):
            raise UserError(f"In the model folder {folder}, {path.name} is a link to outside of it; copy the file in.")
    for name in ("config.json", "tokenizer_config.json", "model.safetensors.index.json"):
        if (folder / name).is_file():
            _check_document(folder / name)
    return True


def _check_document(path: Path) -> None:
    """A UserError unless the file is a JSON object that names no file outside its folder."""
    try:
        if path.stat().st_size > LARGEST_DOCUMENT:
            raise ValueError("it is too large")
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise TypeError("it is not an object")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} can't be read: {error!s:.200}.") from None
    weights = data.get("weight_map", {})
    named = list(weights.values()) if isinstance(weights, dict) else [weights]
    named += [value for key, value in data.items() if key.endswith("_file") and value is not None]
    for name in named:
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{path} names a file outside of its folder: {name!r:.200}.")
