"""Ray: one task for each run, on an existing cluster or on one started here for the sweep."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from immunelab.errors import UserError
from immunelab.jobs import processes
from immunelab.jobs.cluster import carrying, mail, parcels
from immunelab.runs.journal import RunFolder

STORE = 128 << 20  # bytes of a local object store; with a shared disk only names pass through it
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}  # no telemetry
PATIENCE = 60.0  # seconds that the cluster may take to answer


class Ray:
    """Tasks end with this process, so a sweep on Ray is followed to its end."""

    outlives = False

    def __init__(self, options: carrying.Options, command: Sequence[str] | None = None) -> None:
        self.ray = carrying.optional("ray", "ray")
        if options.address and options.at_once:
            raise UserError("--at-once is for a Ray that is started here; a cluster with an address has its own size.")
        self.options, self.command = options, command
        self.tasks: dict[str, tuple[RunFolder, Any]] = {}  # tasks under way, by run id
        self.ended: dict[str, carrying.Over] = {}
        self.post: Any = None  # where nodes without the home's disk send news
        self.folder = ""  # Ray's own files, if it is started here
        self.joined = False

    def begin(self, home: Path, folders: Sequence[RunFolder]) -> None:
        """A child's task takes its parent's result as an argument, so Ray reserves no slot for it until then."""
        self.join()
        wanted = {"num_cpus": self.options.cpus, "num_gpus": self.options.gpus, "max_retries": 0}
        task = self.ray.remote(**wanted)(mail.carry_apart if self.options.apart else _carry)
        sent: dict[str, Any] = {}  # finished ancestors already in the object store
        for folder in folders:
            carrying.in_line(folder, f"ray:{processes.HOST}", **_holder())
            ancestors = [a.run_id for a in folder.lineage()]
            if self.options.apart:
                known = [self._parcel(home, name, sent) for name in ancestors]
                own = self.ray.put(parcels.pack(folder))
                made = task.remote(self.post, folder.run_id, self.command, own, *filter(None, known))
            else:
                after = [self.tasks[name][1] for name in ancestors[:1] if name in self.tasks]
                made = task.remote(folder.run_id, str(home), self.command, *after)
            self.tasks[folder.run_id] = (folder, made)
            self.ended.pop(folder.run_id, None)

    def over(self, home: Path) -> list[carrying.Over]:
        """The runs whose task returned or was lost."""
        if self.tasks:
            if self.post:
                self._news(home)
            every = [task for _, task in self.tasks.values()]
            ready, _ = self.ray.wait(every, num_returns=len(every), timeout=0)
            for name, (folder, task) in list(self.tasks.items()):
                if task in ready:
                    self.ended[name] = carrying.Over(folder, self._result(home, folder, task))
                    del self.tasks[name]
        return list(self.ended.values())

    def close(self) -> None:
        """Leave the cluster; if it was started for the sweep, it ends."""
        if self.joined:
            self.ray.shutdown()
            shutil.rmtree(self.folder or os.devnull, ignore_errors=True)
            self.joined = False

    def join(self) -> None:
        """Join the cluster, or start one here; a UserError if that fails. `begin` calls it."""
        if not self.ray.is_initialized():
            address, more = self.options.address, dict[str, Any]()
            os.environ.update(QUIET)
            if not address:  # on localhost only, because everyone who reaches a Ray can run anything there
                self.folder = tempfile.mkdtemp(prefix="ray-")
                more = {
                    "include_dashboard": False,
                    "num_cpus": self.options.at_once * self.options.cpus or None,
                    "object_store_memory": None if self.options.apart else STORE,
                    "_node_ip_address": "127.0.0.1",
                    "_temp_dir": self.folder,
                }
            try:
                self.ray.init(address=address or "local", log_to_driver=False, **more)
            except (ConnectionError, RuntimeError, ValueError) as error:
                where = f"the Ray cluster {address} can't be reached" if address else "Ray can't be started here"
                raise UserError(f"No run was started: {where} ({error!s:.300}).") from None
            self.joined = True
        if self.options.apart and self.post is None:
            self.post = self.ray.remote(num_cpus=0, max_restarts=-1)(mail.Post).remote()

    def _parcel(self, home: Path, name: str, sent: dict[str, Any]) -> Any:
        """An ancestor in the object store: its task's result, or a parcel made here; None if it was deleted."""
        if name in self.tasks:
            return self.tasks[name][1]
        folder = RunFolder(home / "runs" / name)
        if name not in sent:
            sent[name] = self.ray.put(parcels.pack(folder)) if folder.path.exists() else None
        return sent[name]

    def _news(self, home: Path) -> None:
        """Tell the nodes which runs are to stop, and write down what they have sent."""
        stops = {name: mail.wish(folder) for name, (folder, _) in self.tasks.items()}
        with contextlib.suppress(self.ray.exceptions.RayError):  # the actor is down: the final parcel brings the rest
            wanted = {name: wish for name, wish in stops.items() if wish}
            letters = self.ray.get(self.post.exchange.remote(wanted), timeout=PATIENCE)
            with processes.changing(home):
                for name, news in letters.items():
                    if name in self.tasks:
                        parcels.read(self.tasks[name][0], news)

    def _result(self, home: Path, folder: RunFolder, task: Any) -> str:
        """Unpack what a task returned; returns why there is nothing, or an empty text."""
        try:
            parcel = self.ray.get(task, timeout=PATIENCE)
        except self.ray.exceptions.RayTaskError as error:
            return str(error.cause)
        except self.ray.exceptions.RayError as error:
            return str(error).strip().splitlines()[0]
        if self.options.apart:
            with processes.changing(home):
                if folder.path.exists():
                    parcels.unpack(parcel, folder)
        return ""


def _holder() -> dict[str, Any]:
    me = processes.own()
    return {"pid": me["pid"], "create_time": me["create_time"]}


def _carry(run_id: str, home: str, command: Sequence[str] | None, *after: int) -> int:
    """`after` is the parent's exit code; Ray waits for it, but how the parent ended stands in its folder."""
    return carrying.carry(run_id, home, command)
