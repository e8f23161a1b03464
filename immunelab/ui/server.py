"""The web server around the pages: start-up, and the one script that charts need, served from the Plotly wheel.

`app.py` holds an `st.App` instead of calling `st.navigation` itself: on a cold server the first visit to a page's own
address would otherwise run that page by Streamlit's old discovery of `pages/`, without the router.
"""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import plotly
import streamlit as st
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import Route

from immunelab import jobs
from immunelab.runs import access, journal
from immunelab.ui.navigation import PLOTLY_PATH

MAIN = Path(__file__).with_name("main.py")
# Pages take rows of frames all the time; of texts that are Python objects that takes half of what Arrow's take.
pd.set_option("mode.string_storage", "python")


async def _plotly(_request: Request) -> FileResponse:
    script = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    return FileResponse(script, media_type="text/javascript", headers={"Cache-Control": "public, max-age=86400"})


def risks() -> list[str]:
    """What the server's settings risk, a sentence each; none for the settings that it comes with."""
    address, found = st.get_option("server.address"), []
    if not local(address) and not access.read_only():
        found.append(
            f"The app listens on {address or 'every network interface'}, not only on this machine. Whoever can reach "
            "it can read every run, start and stop runs, and delete them: there is no login. Start it with "
            "--server.address 127.0.0.1 and reach it through a tunnel: ssh -L 8501:127.0.0.1:8501 HOST"
        )
    if not (st.get_option("server.enableXsrfProtection") and st.get_option("server.enableCORS")):
        found.append(
            "Protection against cross-site requests is off (server.enableXsrfProtection, server.enableCORS): any web "
            "page that you open in this browser can use the app in your name."
        )
    return found


def local(address: str | None) -> bool:
    """Whether only this machine can reach an address; None is every interface."""
    if address is None or address.startswith("unix:"):
        return address is not None
    try:
        return ipaddress.ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return address == "localhost"


_turn = threading.Lock()
LONGEST_WAIT = 1.5  # seconds: a page that is busy with something else must not hold up the others


@contextmanager
def in_turn() -> Iterator[None]:
    """One session's page after the other: Python computes one at a time, and pages that share it are all done late."""
    mine = _turn.acquire(timeout=LONGEST_WAIT)
    try:
        yield
    finally:
        if mine:
            _turn.release()


@st.cache_resource(show_spinner=False)
def settle() -> None:
    """After the first page: what has been loaded by now stays, and the collector need not look at it again."""
    gc.collect()
    gc.freeze()


@asynccontextmanager
async def lifespan(_app: Any) -> AsyncIterator[None]:
    """Before the first page."""
    for risk in risks():
        logging.getLogger("immunelab").warning("WARNING: %s", risk)
    # Runs whose process died while no app was open become "interrupted" before the first page shows them.
    await asyncio.to_thread(jobs.reconcile, journal.home(None))
    yield


ROUTES = [Route(PLOTLY_PATH, _plotly)]
