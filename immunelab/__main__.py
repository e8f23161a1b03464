"""`python -m immunelab …`, the same as `immunelab …`; the workers of runs are started this way."""

import sys

from immunelab.cli import main

sys.exit(main())
