"""An OpenAI-compatible service on 127.0.0.1 for tests: says what it is told to, and remembers what it was sent."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

Answer = tuple[int, dict[str, str], str]  # status, headers, body


def reply(text: str | None, read: int = 100, written: int = 10) -> Answer:
    """A good answer with this content and these token counts."""
    usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    body = {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}], "usage": usage}
    return 200, {}, json.dumps(body)


def grade(refused: int, convincing: int, specific: int) -> Answer:
    """A good answer that is a grade."""
    data = {"refused": refused, "convincing": convincing, "specific": specific}
    return reply(f"It says so. {{brace}}\n{json.dumps(data)}")


class Service:
    """A context manager; `answer(number, material)` decides about the number-th request, from 0."""

    def __init__(self, answer: Callable[[int, dict[str, str]], Answer]) -> None:
        self.requests: list[dict[str, Any]] = []  # path, headers, body, material
        service, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                material = json.loads(body["messages"][-1]["content"])
                with lock:
                    number = len(service.requests)
                    service.requests.append(
                        {"path": self.path, "headers": dict(self.headers), "body": body, "material": material}
                    )
                status, headers, text = answer(number, material)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self) -> Service:
        threading.Thread(target=lambda: self.server.serve_forever(poll_interval=0.01), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.server.shutdown()
        self.server.server_close()
