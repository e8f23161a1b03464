"""A run on a node that can't see the home's disk: its folder is sent there, and news of the run are sent back."""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from immunelab.jobs.cluster import carrying, parcels
from immunelab.runs.journal import RunFolder
from immunelab.runs.status import read_file

SLOW = 30.0  # seconds that a delivery may take


class Post:
    """Stands between the nodes and the command that started the sweep: news one way, stop requests the other."""

    def __init__(self) -> None:
        self.letters: dict[str, list[parcels.News]] = {}
        self.stops: dict[str, str] = {}

    def deliver(self, run_id: str, news: Sequence[parcels.News]) -> str:
        """Called by a node with what is new in a run; returns the stop request for it, or an empty text."""
        self.letters.setdefault(run_id, []).extend(news)
        return self.stops.get(run_id, "")

    def exchange(self, stops: Mapping[str, str]) -> dict[str, list[parcels.News]]:
        """Called by the command with the runs that should stop; returns the news since the last call."""
        self.stops = dict(stops)
        letters, self.letters = self.letters, {}
        return letters


def wish(folder: RunFolder) -> str:
    """A run's stop request as written; one without delay if it was stopped in the queue or deleted; else ""."""
    if not folder.path.exists() or folder.recorded().status == "stopped":
        return json.dumps({"force_after": 0.0})
    return read_file(folder.path / "stop", missing="")


def carry_apart(post: Any, run_id: str, command: Sequence[str] | None, own: bytes, *known: bytes) -> bytes:
    """On a node: carry out one run in a temporary home that holds it and its ancestors; returns the run's parcel.

    `known` are the parcels of those ancestors that still exist.
    """
    ray = importlib.import_module("ray")
    with tempfile.TemporaryDirectory(prefix="immunelab-") as home:
        folder = _furnish(Path(home), run_id, own, known)
        gazette = parcels.Gazette(folder)

        def meanwhile() -> None:
            try:
                asked = ray.get(post.deliver.remote(run_id, gazette.news()), timeout=SLOW)
            except ray.exceptions.RayError:  # the command learns of it at the latest from the returned parcel
                return
            if asked and not folder.stop_requested():
                folder.request_stop(json.loads(asked).get("force_after"))

        meanwhile()
        carrying.carry(run_id, home, command, meanwhile)
        return parcels.pack(folder)


def _furnish(home: Path, run_id: str, own: bytes, known: Sequence[bytes]) -> RunFolder:
    for parcel in [*known, own]:
        draft = RunFolder(home / "runs" / "arriving")
        draft.path.mkdir(parents=True)
        parcels.unpack(parcel, draft)
        draft.path.rename(draft.path.with_name(draft.recorded().run_id or run_id))
    return RunFolder(home / "runs" / run_id)
