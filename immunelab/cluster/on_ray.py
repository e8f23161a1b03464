"""Ray: one task for each run, on a cluster that is there already or on one started here for the sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from immunelab.cluster import carrying
from immunelab.errors import UserError
from immunelab.journal import RunFolder


class Ray:
    """Tasks live as long as this process, so a sweep on Ray is followed to its end."""

    outlives = False

    def __init__(self, options: carrying.Options, command: Sequence[str] | None = None) -> None:
        self.ray = carrying.optional("ray", "ray")
        self.options, self.command = options, command
        self.tasks: dict[str, tuple[RunFolder, Any]] = {}
        self.joined = False

    def begin(self, home: Path, folders: Sequence[RunFolder]) -> None:
        """A child's task takes its parent's result, so Ray holds it back without holding a slot for it."""
        self._join()
        task = self.ray.remote(num_cpus=self.options.cpus, num_gpus=self.options.gpus, max_retries=0)(_carry)
        for folder in folders:
            parent = folder.spec().parent
            after = self.tasks[parent][1] if parent in self.tasks else None
            self.tasks[folder.run_id] = (folder, task.remote(after, folder.run_id, str(home), self.command))
            carrying.in_line(folder, "ray:task")

    def over(self) -> list[RunFolder]:
        """Those whose task returned or was lost."""
        if not self.tasks:
            return []
        every = [task for _, task in self.tasks.values()]
        ready, _ = self.ray.wait(every, num_returns=len(every), timeout=0)
        return [folder for folder, task in self.tasks.values() if task in ready]

    def close(self) -> None:
        """Leave the cluster; one that was started for the sweep ends with it."""
        if self.joined:
            self.ray.shutdown()
            self.joined = False

    def _join(self) -> None:
        if self.ray.is_initialized():
            return
        address, more = self.options.address, dict[str, Any]()
        if not address:
            more = {"include_dashboard": False, "num_cpus": self.options.at_once * self.options.cpus or None}
        try:
            self.ray.init(address=address or "local", log_to_driver=False, **more)
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = f"the Ray cluster {address} can't be reached" if address else "Ray can't be started here"
            raise UserError(f"No run was started: {where} ({error!s:.300}).") from None
        self.joined = True


def _carry(after: int | None, run_id: str, home: str, command: Sequence[str] | None) -> int:
    """`after` is the parent's exit code, waited for and not read: how the parent ended is told by its folder."""
    return carrying.carry(run_id, home, command)
