"""The rows of a result file: one a mode, the newest measurement of each."""

from __future__ import annotations

import json
import os
import platform
from datetime import date
from pathlib import Path
from typing import Any

from immunelab.jobs import queue


def record(to: Path, row: dict[str, Any], key: str) -> None:
    """Print a row and put it into the file in the place of an older one with the same `key`."""
    row = {**row, "date": date.today().isoformat()}
    print(row, flush=True)
    rows = json.loads(to.read_text())["rows"] if to.is_file() else []
    rows = [r for r in rows if r[key] != row[key]] + [row]
    about = {"cores": queue.cores(), "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"}
    to.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
