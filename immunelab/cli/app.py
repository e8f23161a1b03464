"""`app`: the app in the browser, from any folder."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from typing import Any

from immunelab import bundled
from immunelab.cli import options
from immunelab.errors import UserError
from immunelab.runs import access, journal

HERE, PORT = "127.0.0.1", 8501
HOSTS = "STREAMLIT_SERVER_ALLOWED_HOSTS"


def app(args: argparse.Namespace) -> int:
    """Serve the app until it is interrupted."""
    if not 0 < args.port < 65536:
        raise UserError(f"--port is a number from 1 to 65535, such as {PORT}, and got {args.port}.")
    os.environ["IMMUNELAB_HOME"] = str(journal.home(args.home))
    if args.read_only:
        os.environ[access.SETTING] = "1"
    if access.read_only():
        os.environ.setdefault(HOSTS, "*")  # it may be reached by any name: there is nothing to do in a reader's name
    command = [sys.executable, "-P", "-m", "streamlit", "run", str(bundled.app() / "app.py")]
    command += ["--server.headless", str(not args.browser).lower()]
    command += ["--server.address", args.address, "--server.port", str(args.port)]
    sys.stdout.flush()
    if os.name == "posix":
        os.execv(sys.executable, command)  # signals reach the server itself
    return subprocess.call(command)


def add(commands: Any) -> None:
    """Add `app`."""
    c = options.command(
        commands,
        "app",
        app,
        "open the app in the browser",
        """
        It shows the recorded runs that ship, and runs of its own in ./lab. Only this machine reaches it, unless
        --address says otherwise. Settings of Streamlit's server are read from its environment variables
        (STREAMLIT_SERVER_…).

        examples:
          immunelab app
          immunelab app --read-only --address 0.0.0.0      a demo for everyone: docs/hosting.md
        """,
    )
    c.add_argument(
        "--read-only",
        action="store_true",
        help="everything recorded can be looked at, and nothing started, changed or deleted",
    )
    c.add_argument("--address", default=HERE, metavar="A", help=f"address to listen on (default {HERE})")
    c.add_argument("--port", type=int, default=PORT, metavar="N", help=f"port to listen on (default {PORT})")
    c.add_argument("--browser", action="store_true", help="open a browser window at the start")
