"""Where the shipped files lie: those of the clone, or what a wheel installed. The app, `data/`, and benchmarks.

Standard library.
"""

from __future__ import annotations

import functools
import os
import sysconfig
from pathlib import Path

from immunelab.errors import UserError

CLONE = Path(__file__).resolve().parent.parent / "data"
SETTING = "IMMUNELAB_SHOWCASE"
ABOUT = "showcase.json"  # in a folder of recorded runs


@functools.cache
def installed() -> list[Path]:
    """Where a wheel may have put its data files ([tool.setuptools.data-files]): with `pip install`, and with `--user`
    or `--target`."""
    schemes = (sysconfig.get_default_scheme(), sysconfig.get_preferred_scheme("user"))
    roots = [*(Path(sysconfig.get_path("data", scheme)) for scheme in schemes), CLONE.parent]
    return [root / "share" / "immunelab" for root in roots]


def data() -> Path:
    """The folder that holds `fable/` and `showcase/`; a UserError where neither a clone nor a wheel brought it."""
    return _first([CLONE, *installed()], "fable")


def app() -> Path:
    """The folder of `app.py`, `pages/` and the app's settings; a UserError where it is missing."""
    return _first([CLONE.parent, *(folder / "app" for folder in installed())], "pages/overview.py")


def _first(folders: list[Path], holding: str) -> Path:
    for folder in folders:
        if (folder / holding).exists():
            return folder
    places = ", ".join(map(str, folders))
    raise UserError(f"ImmuneLab's {holding} was found in none of {places}. Install it again.")


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
    for folder in [CLONE.parent / "benchmarks" / "results", *(folder / "benchmarks" for folder in installed())]:
        if (folder / name).is_file():
            return folder / name
    return None
