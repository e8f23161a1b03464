"""`python -m immunelab.method TARGET`: what only the classes can say, for processes that do not import torch.

Written into the file TARGET: the catalogue, or, after `configure KIND NAME SETTINGS`, nothing but why the class refuses
these settings (exit code 2). Without TARGET the catalogue that ships is written anew.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from immunelab.errors import UserError
from immunelab.method import registry
from immunelab.method.catalogue import SHIPPED


def main(target: Path, what: str = "catalogue", *rest: str) -> int:
    """Write what was asked for into a file; 2 if the class refuses."""
    try:
        if what == "configure":
            kind, name, settings = rest
            registry.configure(kind, name, json.loads(settings))  # type: ignore[arg-type]
        text = registry.catalogue() if what == "catalogue" else "good"
    except UserError as error:
        target.write_text(str(error), encoding="utf-8")
        return 2
    target.write_text(text, encoding="utf-8", newline="\n")
    return 0


sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else SHIPPED, *sys.argv[2:]))
