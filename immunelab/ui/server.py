"""The web server around the pages: start-up, and the one script that charts need, served from the Plotly wheel.

`app.py` holds an `st.App` instead of calling `st.navigation` itself: on a cold server the first visit to a page's own
address would otherwise run that page by Streamlit's old discovery of `pages/`, without the router.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import plotly
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import Route

from immunelab import jobs, journal
from immunelab.ui.navigation import PLOTLY_PATH

MAIN = Path(__file__).with_name("main.py")


async def _plotly(_request: Request) -> FileResponse:
    script = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    return FileResponse(script, media_type="text/javascript", headers={"Cache-Control": "public, max-age=86400"})


@asynccontextmanager
async def lifespan(_app: Any) -> AsyncIterator[None]:
    """Before the first page."""
    # Runs whose process died while no app was open become "interrupted" before the first page shows them.
    await asyncio.to_thread(jobs.reconcile, journal.home(None))
    yield


ROUTES = [Route(PLOTLY_PATH, _plotly)]
