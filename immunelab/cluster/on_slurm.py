"""Slurm through submitit: one job array for the runs that wait for nothing, and one for the children of each run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from immunelab.cluster import carrying
from immunelab.errors import UserError
from immunelab.journal import RunFolder

FOLDER = "slurm"  # within the lab's home: submitit's scripts and outputs


class Slurm:
    """Job arrays on a shared disk. `cluster="local"` is submitit's own stand-in: plain processes, for tests."""

    outlives = True

    def __init__(self, options: carrying.Options, cluster: str = "slurm", command: Sequence[str] | None = None) -> None:
        self.submitit = carrying.optional("submitit", "slurm")
        if cluster == "slurm" and not shutil.which("sbatch"):
            raise UserError("There is no sbatch here: run this where jobs are submitted to Slurm, or --executor local.")
        self.options, self.cluster, self.command = options, cluster, command
        self.jobs: dict[str, tuple[RunFolder, Any]] = {}

    def begin(self, home: Path, folders: Sequence[RunFolder]) -> None:
        """Children are held back until their parent's job has ended; a parent that failed is told by the child."""
        for parent, members in carrying.by_parent(folders).items():
            after = self.jobs[parent][1].job_id if parent else ""
            try:
                n = len(members)
                made = self._executor(home, after).map_array(
                    carrying.carry, [f.run_id for f in members], [str(home)] * n, [self.command] * n
                )
            except (self.submitit.core.utils.FailedSubmissionError, self.submitit.core.utils.FailedJobError) as error:
                raise UserError(
                    f"Slurm did not take the runs: {error!s:.300}. The same command again hands over what is left."
                ) from None
            for folder, job in zip(members, made, strict=True):
                self.jobs[folder.run_id] = (folder, job)
                carrying.in_line(folder, f"slurm:{job.job_id}")

    def over(self) -> list[RunFolder]:
        """As Slurm's accounting says, which submitit asks at most every few seconds."""
        return [folder for folder, job in self.jobs.values() if job.done()]

    def close(self) -> None:
        """Nothing: the jobs are Slurm's."""

    def _executor(self, home: Path, after: str) -> Any:
        options = self.options
        made = self.submitit.AutoExecutor(folder=home / FOLDER, cluster=self.cluster)
        made.update_parameters(
            name="immunelab", timeout_min=options.minutes, cpus_per_task=options.cpus, gpus_per_node=options.gpus,
        )  # fmt: skip
        special = {"dependency": f"afterany:{after}"} if after else {}
        wanted = {
            "slurm_partition": options.partition, "slurm_array_parallelism": options.at_once,
            "slurm_additional_parameters": special,
        }  # fmt: skip
        made.update_parameters(**{name: value for name, value in wanted.items() if value})
        return made
