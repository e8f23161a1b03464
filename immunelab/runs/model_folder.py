"""Whether a folder is one that a model may be loaded from, as far as its files tell; no weight is read."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from immunelab.errors import UserError

LARGEST_DOCUMENT = 64 << 20  # bytes of a model's JSON files other than the tokenizer
WHAT_A_MODEL_IS = (
    "A model is `fable`, `run:<run id>`, a folder with config.json, tokenizer and safetensors weights, or a Hub id "
    "that this machine can reach."
)


TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")


def check(source: str | Path) -> bool:
    """Whether the source is a local folder; a UserError if no model should be read from it."""
    folder = Path(source)
    try:
        if not folder.is_dir():
            _not_a_folder(str(source), folder)
            return False
    except OSError:
        raise UserError(f"No model can be called {str(source)[:80]!r}…. {WHAT_A_MODEL_IS}") from None
    if (folder / "adapter_config.json").exists():
        raise UserError(
            f"The folder {folder} holds an adapter of another model: merge it into that model's weights first (PEFT's "
            "merge_and_unload), and save the result with its tokenizer."
        )
    if not (folder / "config.json").is_file():
        raise UserError(f"The folder {folder} holds no config.json, so it is not a Hugging Face model.")
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"The folder {folder} holds no .safetensors file; pickled weights (.bin, .pt) are not loaded.")
    _check_tokenizer(folder)
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


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights, each weight once: those of the index, else without a second, merged copy."""
    found = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    try:
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()) if index.is_file() else set()
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        named = set()
    whole = [path for path in found if path.name in (named or {"model.safetensors"})]
    return whole or found


def _not_a_folder(name: str, path: Path) -> None:
    """A UserError if the name is a file's, or a path's that is not there and no model's on the Hub."""
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            how = f"immunelab models add {name[:300]}"
            raise UserError(f"{name[:300]} is a GGUF file: make a model of it with `{how}`.")
        raise UserError(f"{name[:300]} is a file. {WHAT_A_MODEL_IS}")
    parts = name.split("/")
    looks_local = name.startswith(("/", ".", "~")) or name.endswith("/") or len(parts) > 2
    if looks_local or (len(parts) == 2 and path.parent.is_dir()):
        raise UserError(f"There is no model folder {name[:300]!r}. {WHAT_A_MODEL_IS}")


def _check_tokenizer(folder: Path) -> None:
    """A UserError if the folder has no tokenizer, or one that a missing package reads."""
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise UserError(
            f"The folder {folder} holds no tokenizer: put the model's tokenizer.json and tokenizer_config.json beside "
            "the weights (tokenizer.save_pretrained writes them)."
        )
    if (folder / "tokenizer.json").is_file() or not (folder / "tokenizer.model").is_file():
        return
    if importlib.util.find_spec("sentencepiece") is None:
        raise UserError(
            f"The tokenizer of {folder} is in SentencePiece's own form (tokenizer.model), which needs a package: pip "
            "install sentencepiece, or put the model's tokenizer.json beside it."
        )


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
