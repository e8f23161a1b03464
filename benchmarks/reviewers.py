"""How long ten readers of one server wait for a page, each with choices of their own, while a run goes on.

    python benchmarks/reviewers.py --sessions 1 10

Each session asks for a page each 0.5 to 2 s, by the messages that a browser sends, with a learning rate of its own on
Collapse, Overview and the Playground; an attack runs meanwhile, time after time. Counted are seconds until the page is
whole, pages with an error, and pages that showed the choice of another session. Prints the numbers and records them in
`results/reviewers.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.browsing import App
from benchmarks.recording import record
from immunelab import jobs
from immunelab.runs.journal import RunFolder
from immunelab.runs.spec import RunSpec
from immunelab.sweep import demo_specs

RESULTS = Path(__file__).parent / "results" / "reviewers.json"
RATES = ("3e-05", "0.0001", "0.0003", "0.0006", "0.001", "0.003")
CHOOSING = ("", "collapse", "playground")  # pages whose slider says what a session has chosen
PAGES = (*CHOOSING, "collapse", "collapse", "traces", "tradeoff", "runs", "gradients", "scorecard", "launch", "methods")


class Reader(threading.Thread):
    """A session that asks for one page after the other."""

    def __init__(self, app: App, number: int, until: float) -> None:
        super().__init__(daemon=True)
        self.app, self.until, self.chance = app, until, random.Random(number)
        self.rate = RATES[number % len(RATES)]
        self.took: list[tuple[str, float]] = []
        self.wrong: list[str] = []

    def run(self) -> None:
        """Until its time is over."""
        socket = self.app.connect(f"http://127.0.0.1:{self.app.port}")
        try:
            while time.monotonic() < self.until:
                page = self.chance.choice(PAGES)
                began = time.monotonic()
                self.ask(socket, page)
                self.took.append((page or "overview", time.monotonic() - began))
                time.sleep(self.chance.uniform(0.5, 2.0))
        except Exception as error:  # noqa: BLE001 - told at the end
            self.wrong.append(f"{type(error).__name__}: {error!s:.200}")
        finally:
            socket.close()

    def ask(self, socket: Any, page: str) -> None:
        """One page with this session's choice, whole."""
        from streamlit.proto.BackMsg_pb2 import BackMsg
        from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

        message = BackMsg()
        message.rerun_script.page_name = page
        message.rerun_script.query_string = f"rate={self.rate}" if page in CHOOSING else ""
        socket.send(message.SerializeToString())
        while True:
            answer = ForwardMsg()
            answer.ParseFromString(socket.recv(timeout=120))
            kind = answer.WhichOneof("type")
            if kind == "script_finished":
                return
            if kind == "delta" and answer.delta.WhichOneof("type") == "new_element":
                element = answer.delta.new_element
                what = element.WhichOneof("type")
                if what == "exception":
                    self.wrong.append(element.exception.message)
                elif what == "bidi_component" and page in CHOOSING:
                    data = json.loads(element.bidi_component.json or element.bidi_component.mixed.json or "{}")
                    if "sliders" in data and json.loads(data["sliders"])["at"][0] != self.rate:
                        self.wrong.append(f"{page}: the choice of another session")


def attacking(home: Path, over: threading.Event) -> None:
    """An attack on the undefended model, time after time."""
    spec = next(s for s in demo_specs((0,), "fable") if s.kind == "attack" and s.model == "fable")
    number = 100
    while not over.is_set():
        number += 1
        again: RunSpec = dataclasses.replace(spec, seed=number)
        (run_id,) = jobs.submit([again], home)
        while not RunFolder.open(home, run_id).status().ended and not over.is_set():
            time.sleep(0.5)
    jobs.stop(run_id, home, force_after=0)


def measure(sessions: int, seconds: float) -> dict[str, Any]:
    """So many sessions for so long."""
    with tempfile.TemporaryDirectory() as place:
        home = Path(place) / "lab"
        home.mkdir()
        over = threading.Event()
        with App(home) as app:
            for page in dict.fromkeys(PAGES):
                app.ask(page)  # a server that has been used before
            runs = threading.Thread(target=attacking, args=(home, over), daemon=True)
            runs.start()
            time.sleep(10)
            readers = [Reader(app, i, time.monotonic() + seconds) for i in range(sessions)]
            for reader in readers:
                reader.start()
            for reader in readers:
                reader.join()
            over.set()
            runs.join(60)
    took = sorted(t for reader in readers for _, t in reader.took)
    wrong = [w for reader in readers for w in reader.wrong]
    return {
        "sessions": sessions,
        "pages": len(took),
        "median, s": round(statistics.median(took), 2),
        "p95, s": round(took[int(0.95 * len(took))], 2),
        "most, s": round(took[-1], 2),
        "wrong": len(wrong),
        "first of them": wrong[:3],
    }


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", nargs="+", type=int, default=[1, 10])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--to", type=Path, default=RESULTS, help="where to record the numbers")
    args = parser.parse_args()
    for sessions in args.sessions:
        record(args.to, measure(sessions, args.seconds), "sessions")


if __name__ == "__main__":
    main()
