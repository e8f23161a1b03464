"""Wait for what another process does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")
PATIENCE = 300.0  # seconds; used up only where something is broken, and the machine may be slow or busy


def until(arrived: Callable[[], Found], told: Callable[[], object] = lambda: "", every: float = 0.02) -> Found:
    """The first true answer; what `told` then says fails the test if none comes."""
    end = time.monotonic() + PATIENCE
    while not (found := arrived()):
        assert time.monotonic() < end, told()
        time.sleep(every)
    return found
