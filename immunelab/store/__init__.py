"""The store: run folders in, frames out. DuckDB in one file, all SQL in this package."""

from immunelab.store import queries
from immunelab.store.door import Busy
from immunelab.store.sync import Store

__all__ = ["Busy", "Store", "queries"]
