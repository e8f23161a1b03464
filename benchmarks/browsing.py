"""The real app, and what a browser's session asks of it, without a browser: the same messages on the same socket."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("", "runs", "traces", "collapse")


class App:
    """`streamlit run app.py` on a free port over a home, with one session. A context manager."""

    def __init__(self, home: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = (home.parent / f"app-{self.port}.txt").open("w")
        line = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.headless", "true"]
        self.process = subprocess.Popen(
            [*line, "--server.port", str(self.port)],
            cwd=ROOT,
            env=os.environ | {"IMMUNELAB_HOME": str(home)},
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        self.socket: Any = None

    def __enter__(self) -> App:
        end = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/_stcore/health", timeout=5).close()
                break
            except OSError:
                if time.monotonic() > end or self.process.poll() is not None:
                    raise
                time.sleep(0.05)
        self.socket = self.connect(f"http://127.0.0.1:{self.port}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.socket is not None and self.process.poll() is None:
            self.socket.close()
        self.process.kill()
        self.process.wait()
        self.log.close()

    def connect(self, origin: str) -> Any:
        """A session's socket, opened by a page of this origin."""
        from websockets.sync.client import connect

        address = f"ws://127.0.0.1:{self.port}/_stcore/stream"
        return connect(
            address, subprotocols=["streamlit"], origin=origin, max_size=None, proxy=None, ping_interval=None
        )

    def ask(self, page: str, patience: float = 60.0) -> tuple[float, list[str]]:
        """Open a page; the seconds until it is whole, and the errors on it. With no patience, don't wait for it."""
        from streamlit.proto.BackMsg_pb2 import BackMsg
        from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

        began, errors = time.monotonic(), []
        message = BackMsg()
        message.rerun_script.page_name = page
        self.socket.send(message.SerializeToString())
        while patience:
            answer = ForwardMsg()
            answer.ParseFromString(self.socket.recv(timeout=patience))
            kind = answer.WhichOneof("type")
            if kind == "delta" and answer.delta.WhichOneof("type") == "new_element":
                element = answer.delta.new_element
                what = element.WhichOneof("type")
                if what == "exception":
                    errors.append(element.exception.message)
                elif what == "alert":
                    errors.append(element.alert.body)
            elif kind == "script_finished":
                break
        return time.monotonic() - began, errors
