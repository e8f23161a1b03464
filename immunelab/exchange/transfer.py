"""Writing runs in a format, and reading them from one: what all formats have in common."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from immunelab.errors import UserError, unknown
from immunelab.exchange import FORMATS, Format
from immunelab.exchange.chosen import choose
from immunelab.recording.elsewhere import recordable
from immunelab.runs.drafts import new_folder

if TYPE_CHECKING:
    from immunelab.runs.spec import RunSpec
    from immunelab.store import Store


def export(
    store: Store,
    form: str,
    path: Path,
    runs: Sequence[str] = (),
    completions: bool = False,
    license: str = "",
    tell: Callable[[str], object] = lambda _: None,
) -> str:
    """Write runs into a new folder in a format; returns what was written, in words.

    `runs` are ids (empty: every finished run of this lab). Answers of models other than Fable's are left out unless
    `completions` asks for them. `license` is for a model card where the base model does not say its own. `tell` hears
    which run is next. A UserError for an unknown format, a missing package, runs that lack what the format needs, and a
    folder that exists or can't be written; nothing is half-written.
    """
    module = _module(form, FORMATS)
    chosen = choose(store, runs, completions, license, tell)
    with new_folder(path) as folder:
        written: str = module.write(chosen, folder)
    return written


def read(form: str, path: Path, home: Path, *, spec: RunSpec, harmfulness: str = "", utility: str = "") -> list[str]:
    """Take what another tool recorded into a lab, as runs that were recorded elsewhere; returns their ids.

    `spec` says what the runs are, as far as the files do not; `harmfulness` and `utility` name what is taken as these
    scores. A UserError where there is nothing that can be read.
    """
    recordable(spec)
    module = _module(form, {name: f for name, f in FORMATS.items() if f.reads})
    if not path.is_dir():
        raise UserError(f"There is no folder {path}; {form} takes {FORMATS[form].reads}.")
    found: list[str] = module.read(path, home, spec=spec, harmfulness=harmfulness, utility=utility)
    return found


def _module(form: str, known: Mapping[str, Format]) -> Any:
    if form not in known:
        raise unknown("format", form, known)
    module = importlib.import_module(f"immunelab.exchange.{form.replace('-', '_')}")
    package = known[form].package
    try:
        if package:
            importlib.import_module(package)
        return module
    except ImportError as error:
        if error.name != package:
            raise
        name = package.replace("_", "-")
        raise UserError(f"The format {form} needs the package {name}: pip install {name}") from None
