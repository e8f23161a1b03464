"""Where the shipped files lie: `data/` (Fable, showcase) and benchmarks of the clone, or what a wheel installed.

Standard library.
"""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

from immunelab.errors import UserError

CLONE = Path(__file__).resolve().parent.parent / "data"
INSTALLED = Path(sysconfig.get_path("data")) / "share" / "immunelab"  # [tool.setuptools.data-files]
SETTING = "IMMUNELAB_SHOWCASE"
ABOUT = "showcase.json"  # in a folder of recorded runs


def data() -> Path:
    """The folder that holds `fable/` and `showcase/`; a UserError where neither a clone nor a wheel brought it."""
    for folder in (CLONE, INSTALLED):
        if folder.is_dir():
            return folder
    raise UserError(f"The shipped data was found neither in {CLONE} nor in {INSTALLED}. Reinstall from a fresh clone.")


def showcase() -> Path:
    """Where the shipped runs lie, whether or not there are any. `IMMUNELAB_SHOWCASE` names another folder, as
    `immunelab showcase build --to` writes one; with `none` a new home starts empty, and need not read them first.
    """
    asked = os.environ.get(SETTING, "")
    if asked == "none":
        return Path(os.devnull)
    if asked and not (Path(asked) / ABOUT).is_file():
        raise UserError(f"{SETTING} is {asked[:200]!r}: neither none nor a folder with a {ABOUT}.")
    return Path(asked) if asked else data() / "showcase"


def measured(name: str) -> Path | None:
    """A recorded result of `benchmarks/`, if the clone or the wheel has it."""
    for folder in (CLONE.parent / "benchmarks" / "results", INSTALLED / "benchmarks"):
        if (folder / name).is_file():
            return folder / name
    return None
