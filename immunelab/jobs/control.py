"""What the app and the commands do with runs: submit, stop, resume, delete, reconcile. Reads and writes files only."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from immunelab.errors import UserError
from immunelab.jobs import failures, preflight, processes, queue, warm
from immunelab.jobs import reuse as equals
from immunelab.runs import access, journal, shipped
from immunelab.runs.journal import RunFolder, Status, folders
from immunelab.runs.spec import LABELS, RunSpec

UNSTARTED = 60.0  # seconds after which a run that no process was started for counts as interrupted
LOST = (
    "the process ended without a last word (killed, out of memory, or the machine restarted); "
    "resume goes on from the last checkpoint"
)
_ended: dict[Path, int] = {}  # status files known to say that a run has ended, with their time of change


def submit(
    specs: Sequence[RunSpec],
    home: Path | str | None = None,
    start: bool = True,
    reuse: bool = False,
    go_on: bool = False,
    command: Sequence[str] | None = None,
    begin: Callable[[Path, Sequence[RunFolder]], None] | None = None,
    ready: bool = True,
    from_warm: bool = False,
) -> list[str]:
    """Queue runs and start one detached worker that carries them out in order; returns their ids, in order.

    A spec's model may be `run:<id>`, `run:#k`, the k-th of this list counted from 0, or `showcase:<defense>-<seed>`, an
    immunized model that ships with the lab; parent, parent hash and the corpus's judge are filled in. With `reuse`, a
    spec that a finished run has already, of this home or (if `ready`) a shipped one, is not run again: that run's id is
    returned in its place. With `go_on`, an equal run that is under way is waited for, and one that has ended unfinished
    is gone on with. Where others of the list start from it, a run serves too that leaves the same weights and was
    evaluated otherwise. `command` starts another worker than ours, and `begin` hands the runs to a cluster instead.
    With `from_warm` workers come from a process that has torch loaded, which is started where there is none. A
    UserError before anything is written if a run can't be carried out.
    """
    place, specs = journal.home(home), _resolved(specs, journal.home(home))
    states = equals.states(reuse, go_on)
    have = equals.recorded(place, ready) if states else equals.Record({}, {})
    planned = _planned(specs, place, have, states)
    new = [i for i, one in enumerate(planned) if one.state in ("new", "unfinished")]
    preflight.check(specs, place, here=begin is None, new=new)
    parents = {spec.model for spec in specs}
    made: list[RunFolder] = []  # of all specs
    carried: list[RunFolder] = []  # by the worker
    created: list[RunFolder] = []
    with processes.changing(place):
        now = time.time()
        try:
            for i, spec in enumerate(specs):
                linked = _linked(spec, place, made)
                found = have.match(linked, states, f"run:#{i}" in parents)
                if found:
                    found = shipped.adopt(place, found)
                    made.append(found)
                    if found not in carried and equals.state(found) == "unfinished":
                        queue_again(found)
                        found.write_status(queued_at=now + i * 1e-5)
                        carried.append(found)
                    continue
                made.append(RunFolder.create(place, linked, queued_at=now + i * 1e-5))  # the list's order is kept
                created.append(made[-1])
                carried.append(made[-1])
            if begin and carried:
                begin(place, carried)
            elif start and carried:
                _start(place, carried, command, from_warm)
        except OSError as error:
            for folder in created:
                shutil.rmtree(folder.path, ignore_errors=True)
            raise UserError(f"No run was started. {failures.sentence(error)}") from None
    return [folder.run_id for folder in made]


def plan(
    specs: Sequence[RunSpec], home: Path | str | None = None, reuse: bool = True, go_on: bool = True
) -> list[equals.Planned]:
    """What `submit` would do with these specs, in order, without doing it."""
    place, specs = journal.home(home), _resolved(specs, journal.home(home))
    return _planned(specs, place, equals.recorded(place), equals.states(reuse, go_on))


def _resolved(specs: Sequence[RunSpec], place: Path) -> list[RunSpec]:
    """The specs with who judges them, with shipped models as runs of this home, and with weights that stay where
    others of the list start from them."""
    parents = {spec.model for spec in specs}
    needed = [s.keep == "none" and f"run:#{i}" in parents for i, s in enumerate(specs)]
    return [
        dataclasses.replace(s, model=shipped.model(s.model, place), keep="last" if stays else s.keep)
        for s, stays in zip(equals.judged(specs), needed, strict=True)
    ]


def _planned(specs: Sequence[RunSpec], place: Path, have: equals.Record, states: Sequence[str]) -> list[equals.Planned]:
    preflight.references(specs, place)
    planned: list[equals.Planned] = []
    parents = {spec.model for spec in specs}
    for i, spec in enumerate(specs):
        if spec.model.startswith("run:#"):
            parent = planned[int(spec.model.removeprefix("run:#"))].spec
            linked = dataclasses.replace(spec, parent_hash=parent.hash)
        else:
            linked = _linked(spec, place, [])
        found = have.match(linked, states, f"run:#{i}" in parents)
        if found:  # it may have been evaluated otherwise than was wished
            own = {"model": linked.model, **{label: getattr(linked, label) for label in LABELS}}
            linked = dataclasses.replace(found.spec(), **own)
        planned.append(equals.Planned(linked, equals.state(found) if found else "new", found.run_id if found else None))
    return planned


def stop(
    run_id: str,
    home: Path | str | None = None,
    force_after: float | None = 20.0,
    wait: bool = False,
    command: Sequence[str] | None = None,
) -> Status:
    """Ask a run to stop: it finishes the step, saves a checkpoint, frees the device. Returns its status.

    After `force_after` seconds the next `reconcile` (pages and commands call it) ends the process by force, and
    starts a new worker for the other runs that it carried; None never does. With `wait`, returns when it has ended.
    A run that has ended already is left as it is.
    """
    place = journal.home(home)
    folder = RunFolder.open(place, run_id)
    with processes.changing(place), failures.told():
        status = folder.status()
        if status.ended:
            return status
        elsewhere = bool(folder.spec().recorded_by)  # its process is somebody's own, and is never ended by force
        folder.request_stop(None if elsewhere else force_after)
        if processes.in_line(status) or not processes.alive(status):
            _record_end(folder)
    while wait and not folder.status().ended:
        time.sleep(0.1)
        reconcile(place, command)
    return folder.status()


def resume(run_id: str, home: Path | str | None = None, command: Sequence[str] | None = None) -> str:
    """Go on with a run that is stopped, interrupted or failed, from its last checkpoint, as its next attempt."""
    place = journal.home(home)
    folder = RunFolder.open(place, run_id)
    ours(folder)
    with processes.changing(place), failures.told():
        status = folder.status()
        if status.status == "done":
            raise UserError(f"The run {run_id} is done; duplicate it to run it again.")
        if not status.ended and processes.alive(status):
            raise UserError(f"The run {run_id} is {status.status} already.")
        queue_again(folder)
        try:
            _start(place, [folder], command)
        except OSError as error:
            folder.write_status(status="failed", error=failures.sentence(error), ended_at=time.time())
            raise UserError(f"The run could not be started. {failures.sentence(error)}") from None
    return run_id


def queue_again(folder: RunFolder) -> None:
    """Back to `queued`, as the next attempt, carried by nobody. Call it inside `changing`, for a run that has ended."""
    status = folder.recorded()
    folder.clear_stop()
    cleared: dict[str, Any] = {"pid": None, "create_time": None, "host": "", "ended_at": None, "eta_seconds": None}
    tried = status.attempt + (status.started_at is not None)  # one that never began has nothing to go on from
    folder.write_status(status="queued", attempt=tried, queued_at=time.time(), message="", error="", **cleared)


def duplicate(run_id: str, home: Path | str | None = None) -> RunSpec:
    """The spec of a run, to change and submit again."""
    return ours(RunFolder.open(journal.home(home), run_id))


def ours(folder: RunFolder) -> RunSpec:
    """The spec of a run that a lab carries out; a UserError for one that was recorded elsewhere."""
    spec = folder.spec()
    if spec.recorded_by:
        raise UserError(
            f"The run {folder.run_id} was recorded elsewhere, by {spec.recorded_by}: this lab can show it, attack what "
            "it left and compare it, and can't run it."
        )
    return spec


def delete(run_id: str, home: Path | str | None = None) -> int:
    """Delete a run with everything it wrote; returns the bytes freed. A UserError while it is not ended."""
    place = journal.home(home)
    folder = RunFolder.open(place, run_id)
    with failures.told():
        with processes.changing(place):
            _must_have_ended(folder)
            size = _size(folder.path)
            gone = folder.path.with_name(f".deleted-{run_id}")
            folder.path.rename(gone)  # it disappears at once, even if removing its files is cut short
        shutil.rmtree(gone)
    return size


def drop_checkpoints(run_id: str, home: Path | str | None = None) -> int:
    """Delete a run's checkpoints and keep its record; returns the bytes freed. It can't be attacked afterwards."""
    place = journal.home(home)
    folder = RunFolder.open(place, run_id)
    with processes.changing(place), failures.told():
        _must_have_ended(folder)
        if folder.checkpoints.is_symlink():
            raise UserError(f"The checkpoints of {run_id} are a link to another place; delete them there.")
        size = _size(folder.checkpoints)
        for checkpoint in folder.checkpoints.glob("*"):
            if checkpoint.is_dir() and not checkpoint.is_symlink():
                shutil.rmtree(checkpoint)
            else:
                checkpoint.unlink()  # a link itself, never what it points to
    return size


def reconcile(home: Path | str | None = None, command: Sequence[str] | None = None) -> list[str]:
    """Make every status true: runs whose process is gone are `interrupted` (or `stopped`, if that was asked).

    Also ends by force what was asked to stop and has used up its grace. Returns the ids of newly interrupted runs.
    Cheap where nothing runs: one stat call for each run that has ended. Does nothing where the lab may only be read.
    """
    if access.read_only():
        return []
    place = journal.home(home)
    processes.reap()
    lost = []
    for folder in folders(place):
        path = folder.path / "status.json"
        with contextlib.suppress(UserError, OSError):  # unreadable, or deleted meanwhile: nothing to make true
            changed = path.stat().st_mtime_ns
            if _ended.get(path) == changed:
                continue
            status = folder.recorded()
            if status.ended:
                _ended[path] = changed
            elif not processes.alive(status):
                if status.pid is None and time.time() - (status.queued_at or 0.0) < UNSTARTED:
                    continue
                with processes.changing(place):
                    if _record_end(folder) == "interrupted":
                        lost.append(folder.run_id)
            elif folder.overdue():
                _force(folder, place, command)
    return lost


def _start(place: Path, folders: Sequence[RunFolder], command: Sequence[str] | None, from_warm: bool = False) -> None:
    """Start workers, and put the first run of each in line: its place is that of its submission, however long the
    worker takes to come up. Call it inside `changing`, which the worker needs before it looks."""
    specs = {folder.run_id: folder.spec() for folder in folders}
    number = _side_by_side(specs)
    workers = warm.start(place, [*specs], folders[0].log_path, number) if from_warm and not command else []
    if workers:
        processes.name_carriers(folders, workers)
    else:
        workers = processes.start(place, folders, command, number)
    # What waits for another run could stand before the very run that it waits for.
    ready = [f for f in folders if not specs[f.run_id].parent or _done(place, specs[f.run_id].parent)]
    for folder, worker in zip(ready, workers, strict=False):
        with contextlib.suppress(UserError):  # what is wrong with device or parent is told when its turn comes
            device = queue.resolve_device(specs[folder.run_id].device, place)
            queue.join(place, device, folder.run_id, folder.recorded().queued_at or time.time(), worker)


def _side_by_side(specs: Mapping[str, RunSpec]) -> int:
    """How many workers a list of runs can use: as many as its devices have places, and as have something to do."""
    depth: dict[str, int] = {}
    for run_id, spec in specs.items():  # a run comes after the one that it starts from
        depth[run_id] = depth.get(spec.parent, -1) + 1
    widest = max(Counter(depth.values()).values())
    room = 0
    for wanted in {spec.device for spec in specs.values()}:
        with contextlib.suppress(UserError):
            device = queue.resolve_device(wanted)
            alike = (
                [d for d in queue.devices() if d.split(":")[0] == device.split(":")[0]]
                if wanted == "auto"
                else [device]
            )
            room += sum(queue.places(d) for d in alike)
    return max(1, min(room, widest))


def _done(place: Path, run_id: str) -> bool:
    return RunFolder.open(place, run_id).recorded().status == "done"


def _record_end(folder: RunFolder) -> str:
    """The last word on a run whose process is gone, if it is. Call it inside `changing`."""
    status = folder.recorded()
    recalled = folder.stop_requested() and processes.in_line(status)  # its job will find that it is not wanted
    if status.ended or (processes.alive(status) and not recalled):
        return ""
    if folder.stop_requested():
        end, message = "stopped", "stopped"
    elif status.pid is None:
        end, message = "interrupted", "no process was started for it; resume starts it"
    else:
        end, message = "interrupted", LOST
    folder.write_status(status=end, message=message, ended_at=status.heartbeat or time.time(), eta_seconds=None)
    folder.clear_stop()
    return end


def _force(folder: RunFolder, place: Path, command: Sequence[str] | None) -> None:
    """End a worker that did not stop in time; the other runs that it carried go to a new one."""
    with processes.changing(place):
        status = folder.recorded()
        if status.ended or not folder.overdue() or (status.host and status.host != processes.HOST):
            return
        if status.status == "queued":
            return  # it waits behind another run, and its worker lets go of it within a second
        others = [f for f in folders(place) if f.run_id != folder.run_id and _carried_by(f, status)]
        if not processes.end(status.pid, status.create_time):
            return
        if not folder.recorded().ended:
            text = "ended by force, because it did not stop in time; resume goes on from the last checkpoint"
            folder.write_status(status="stopped", message=text, ended_at=time.time(), eta_seconds=None)
            folder.clear_stop()
        others.sort(key=lambda f: f.recorded().queued_at or 0.0)
        waiting = [f for f in others if f.recorded().status == "queued"]
        if waiting:
            _start(place, waiting, command)


def _carried_by(folder: RunFolder, worker: Status) -> bool:
    try:
        status = folder.recorded()
    except UserError:
        return False
    same = (status.pid, status.create_time, status.host) == (worker.pid, worker.create_time, worker.host)
    return same and status.status == "queued"


def _linked(spec: RunSpec, place: Path, made: list[RunFolder]) -> RunSpec:
    """The spec with its parent filled in; `run:#k` becomes the k-th folder of `made`."""
    if not spec.model.startswith("run:"):
        return dataclasses.replace(spec, parent="", parent_hash="")
    if spec.model.startswith("run:#"):
        parent = made[int(spec.model.removeprefix("run:#"))]
    else:
        parent = RunFolder.open(place, spec.model.removeprefix("run:"))
    return dataclasses.replace(spec, model=f"run:{parent.run_id}", parent=parent.run_id, parent_hash=parent.spec().hash)


def _must_have_ended(folder: RunFolder) -> None:
    status = folder.status()
    if not status.ended and processes.alive(status):
        raise UserError(f"The run {folder.run_id} is {status.status}: stop it first.")


def _size(folder: Path) -> int:
    return sum(p.lstat().st_size for p in folder.rglob("*") if not p.is_dir())
