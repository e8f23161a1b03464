"""Immunized models that ship with the lab: whole run folders, with weights, in `showcase/models` of the shipped data.

A home takes one in by copying it; from then on it is a run of that home like any other. It is taken in when something
starts from it: `--model showcase:seam` or `showcase:seam-1` (the seed), or an attack that wants an equal immunization.
Standard library.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from immunelab import bundled
from immunelab.errors import UserError, unknown
from immunelab.runs import journal
from immunelab.runs.journal import RunFolder

PREFIX = "showcase:"
HOME = "models"  # in the showcase; laid out as a home is


def folders() -> list[RunFolder]:
    """The shipped runs; none where an installation came without them, or `IMMUNELAB_SHOWCASE` is another folder."""
    return journal.folders(bundled.showcase() / HOME)


def named() -> dict[str, RunFolder]:
    """The shipped runs by the names that people use: `showcase:seam-0`, `showcase:seam-1` …"""
    found = {}
    for folder in folders():
        spec = folder.spec()
        found[f"{PREFIX}{spec.method}-{spec.seed}"] = folder
    return dict(sorted(found.items()))


def words(folder: RunFolder) -> str:
    """What a shipped model is called in a list of models."""
    spec = folder.spec()
    return f"Immunized with {spec.method}, seed {spec.seed}, as it is shipped"


def find(name: str) -> RunFolder:
    """The shipped run of that name; without a seed, that of the smallest. A UserError if there is none."""
    known = named()
    if name in known:
        return known[name]
    for other, folder in known.items():
        if other.rpartition("-")[0] == name:
            return folder
    if not known:
        raise UserError("This installation came without immunized models. Make one with: immunelab immunize seam")
    raise unknown("shipped model", name, known)


def model(text: str, home: Path) -> str:
    """A model as a spec names it: `showcase:…` becomes `run:<id>`, and is taken in; any other stays as it is."""
    return f"run:{adopt(home, find(text)).run_id}" if text.startswith(PREFIX) else text


def adopt(home: Path, folder: RunFolder) -> RunFolder:
    """A run as one of this home: a shipped one is copied there first, if it is not there yet."""
    place = home / "runs" / folder.run_id
    if place.is_dir():
        return RunFolder(place)
    draft = place.with_name(f".new-{folder.run_id}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(folder.path, draft)
        return RunFolder(draft.rename(place))
    except OSError as error:
        if place.is_dir():  # another process was faster
            return RunFolder(place)
        shutil.rmtree(draft, ignore_errors=True)
        raise UserError(f"{home} cannot take in {folder.run_id}: {error.strerror or error}.") from None
