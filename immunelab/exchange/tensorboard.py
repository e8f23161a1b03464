"""TensorBoard: an event folder for each run, written and read with TensorBoard's own classes.

Scalars have the names that they have here; scores are `score/<metric>`. The run's settings are beside the events.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from immunelab.errors import UserError
from immunelab.exchange.chosen import Chosen
from immunelab.recording.elsewhere import Recording
from immunelab.runs.spec import RunSpec

SETTINGS = "settings.json"
NO_NAME = re.compile(r"[\x00-\x1f\x7f]")


def write(chosen: Chosen, folder: Path) -> str:
    """One folder a run, named by its id."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    count = 0
    for run in chosen.each():
        count += 1
        writer = EventFileWriter(str(folder / run.run_id))
        for step, at, values in run.traced():
            found = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
            writer.add_event(Event(step=step, wall_time=at, summary=Summary(value=found)))
        writer.close()
        (folder / run.run_id / SETTINGS).write_text(json.dumps(run.about(), indent=1), encoding="utf-8")
    return f"{count} event folders. Open them with: tensorboard --logdir"


def read(
    path: Path,
    home: Path,
    *,
    spec: RunSpec,
    harmfulness: str = "",
    utility: str = "",
) -> list[str]:
    """Every folder with events in it as one run like `spec`, named by the folder; returns the runs' ids.

    Tags keep their names. The tag `harmfulness` (or `score/harmfulness`) is recorded as the score of that name, and so
    is `utility`: shares from 0 to 1, at step 0 and later. A UserError if no folder has scalars, or a named tag nowhere.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    scores = {harmfulness: "harmfulness", utility: "utility"}
    scores = {tag: metric for tag, metric in scores.items() if tag}
    found: list[tuple[str, dict[int, dict[str, float]]]] = []
    for folder in sorted({p.parent for p in path.rglob("*tfevents*")}):
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
        events.Reload()
        rows = _scalars(events)
        if rows:
            found.append((folder.relative_to(path).as_posix(), rows))
    if not found:
        raise UserError(f"No scalars are in {path}: a TensorBoard log folder has files named …tfevents….")
    known = {name for _, rows in found for values in rows.values() for name in values}
    for tag in scores:
        if tag not in known:
            raise UserError(f"No event has the tag {tag!r}; there are {', '.join(sorted(known)[:12])}.")
    return [_record(home, spec, name, rows, scores) for name, rows in found]


def _scalars(events: Any) -> dict[int, dict[str, float]]:
    """Step → values by tag, of scalars in either form that TensorBoard has had."""
    from tensorboard.util import tensor_util

    rows: dict[int, dict[str, float]] = {}
    tags = events.Tags()
    for tag in tags["scalars"]:
        for event in events.Scalars(tag):
            rows.setdefault(max(0, int(event.step)), {})[tag] = float(event.value)
    for tag in tags["tensors"]:
        if events.SummaryMetadata(tag).plugin_data.plugin_name != "scalars":
            continue
        for event in events.Tensors(tag):
            value = tensor_util.make_ndarray(event.tensor_proto)
            if value.size == 1:
                rows.setdefault(max(0, int(event.step)), {})[tag] = float(value.item())
    return rows


def _record(
    home: Path, spec: RunSpec, name: str, rows: Mapping[int, Mapping[str, float]], scores: Mapping[str, str]
) -> str:
    title = NO_NAME.sub("", spec.name or (name if name != "." else ""))[:200]
    with Recording(dataclasses.replace(spec, name=title), home) as run:
        for step in sorted(rows):
            found = {
                scores.get(tag) or tag.removeprefix("score/"): value
                for tag, value in rows[step].items()
                if tag in scores or tag.startswith("score/")
            }
            points = {tag: v for tag, v in rows[step].items() if tag not in scores and not tag.startswith("score/")}
            if points:
                run.points(step, points)
            for metric, value in found.items():
                run.score(step, metric, value)
    return run.run_id
