"""Slurm through submitit: one job array for runs that wait for nothing, and one for the children of each run."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from immunelab.errors import UserError
from immunelab.jobs import processes
from immunelab.jobs.cluster import carrying
from immunelab.runs.journal import RunFolder, folders

FOLDER = "slurm"  # within the lab's home: submitit's scripts and outputs
LONGEST = 1000  # jobs of one array: Slurm's usual limit (MaxArraySize = 1001)


class Slurm:
    """Job arrays on a shared disk. For tests, `cluster="local"` is submitit's stand-in: plain processes."""

    outlives = True

    def __init__(self, options: carrying.Options, cluster: str = "slurm", command: Sequence[str] | None = None) -> None:
        self.submitit = carrying.optional("submitit", "slurm")
        if cluster == "slurm" and not shutil.which("sbatch"):
            raise UserError("There is no sbatch here: run this where jobs are submitted to Slurm, or --executor local.")
        self.options, self.cluster, self.command = options, cluster, command
        self.jobs: dict[str, tuple[RunFolder, Any]] | None = None  # None: earlier commands' jobs not looked up yet

    def begin(self, home: Path, folders: Sequence[RunFolder]) -> None:
        """Children wait until their parent's job has ended; if the parent failed, the child fails and names it."""
        known = self._known(home)
        for parent, members in carrying.by_parent(folders, list(known)).items():
            after = known[parent][1].job_id if parent else ""
            for first in range(0, len(members), LONGEST):
                self._array(home, members[first : first + LONGEST], after)

    def over(self, home: Path) -> list[carrying.Over]:
        """According to Slurm's accounting, which submitit asks at most every few seconds."""
        return [carrying.Over(folder, _words(job)) for folder, job in self._known(home).values() if job.done()]

    def close(self) -> None:
        """Does nothing: Slurm keeps the jobs."""

    def _array(self, home: Path, members: Sequence[RunFolder], after: str) -> None:
        n = len(members)
        errors = self.submitit.core.utils
        try:
            made = self._executor(home, after).map_array(
                carrying.carry, [f.run_id for f in members], [str(home)] * n, [self.command] * n
            )
        except (errors.FailedSubmissionError, errors.FailedJobError) as error:
            raise UserError(
                f"Slurm did not take the runs: {error!s:.300}. The same command again hands over what is left."
            ) from None
        for folder, job in zip(members, made, strict=True):
            self._known(home)[folder.run_id] = (folder, job)
            carrying.in_line(folder, f"slurm:{job.job_id}")

    def _known(self, home: Path) -> dict[str, tuple[RunFolder, Any]]:
        """The runs in Slurm's queue by their ids, including those that earlier commands put there."""
        if self.jobs is None:
            self.jobs = {}
            made = self._executor(home, "")._executor.job_class
            for folder in folders(home):
                with contextlib.suppress(UserError, OSError):  # skip what can't be read
                    status = folder.recorded()
                    where, _, job = status.host.partition(":")
                    if processes.in_line(status) and where == "slurm":
                        self.jobs[folder.run_id] = (folder, made(folder=home / FOLDER, job_id=job))
        return self.jobs

    def _executor(self, home: Path, after: str) -> Any:
        options = self.options
        made = self.submitit.AutoExecutor(folder=home / FOLDER, cluster=self.cluster)
        made.update_parameters(
            name="immunelab",
            timeout_min=options.minutes,
            cpus_per_task=options.cpus,
            gpus_per_node=options.gpus,
        )
        special = {"dependency": f"afterany:{after}"} if after else {}
        wanted = {
            "slurm_partition": options.partition,
            "slurm_array_parallelism": options.at_once,
            "slurm_additional_parameters": special,
        }
        made.update_parameters(**{name: value for name, value in wanted.items() if value})
        return made


def _words(job: Any) -> str:
    """The last line that a job wrote to its standard error, if there is one."""
    try:
        said = (job.stderr() or "").strip().splitlines()
    except (OSError, UnicodeDecodeError):
        return ""
    return said[-1] if said else ""
