"""`immunelab …`: the calls that the app makes, from a shell. Commands: `parser.py`; nothing here imports torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from immunelab.cli.parser import parse
from immunelab.errors import UserError
from immunelab.jobs import failures


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 a run failed, 2 the user can mend it, 130 interrupted."""
    try:
        args = parse(list(sys.argv[1:] if argv is None else argv))
        code: int = args.call(args)
        sys.stdout.flush()
    except UserError as error:
        print(f"immunelab: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader (head, less) left; keep the interpreter from complaining at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in (*failures.FULL, *failures.FORBIDDEN):
            raise
        print(f"immunelab: {failures.sentence(error)}", file=sys.stderr)
        return 2
    return code
