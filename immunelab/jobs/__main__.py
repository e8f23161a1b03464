"""`python -m immunelab.jobs RUN_ID… --home PATH`: the worker process. People use `immunelab run`."""

from __future__ import annotations

import argparse
import sys

from immunelab.errors import UserError
from immunelab.jobs.processes import yield_to_others
from immunelab.jobs.worker import work

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m immunelab.jobs", description=__doc__)
    parser.add_argument("run", nargs="+", metavar="RUN_ID", help="queued runs, in the order to carry them out")
    parser.add_argument("--home", help="folder of the runs (default: IMMUNELAB_HOME, or ./lab)")
    chosen = parser.parse_args()
    yield_to_others()
    try:
        sys.exit(work(chosen.run, chosen.home))
    except UserError as error:
        sys.exit(f"{error}")  # into the run's log; the status stays as it is, and reconciling finds it
