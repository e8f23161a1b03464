"""How long the live demo takes: on a quiet machine, beside a busy process, and with a page open that follows it.

    python benchmarks/demo.py --modes quiet busy followed

The demo's 13 runs in a home of their own, as `immunelab demo` queues them. `followed` opens the Collapse page in a
headless Chromium over the same home, and adds how much of one core the server and the browser took while runs went.
Prints each result and records them in `results/demo.json`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.browsing import App
from benchmarks.neighbor import neighbors
from benchmarks.recording import record
from immunelab import jobs
from immunelab.runs.journal import RunFolder
from immunelab.sweep import demo_specs

RESULTS = Path(__file__).parent / "results" / "demo.json"
MODES = ("quiet", "busy", "followed")
Used = Callable[[], dict[str, float]]


def demo(home: Path, queued: Callable[[], object] = lambda: None) -> float:
    """Seconds from queueing the demo's runs, after which `queued` is called, to the end; an exit if one fails."""
    began = time.monotonic()
    ids = jobs.submit(demo_specs((0,), "fable"), home, ready=False)
    queued()
    found = [RunFolder.open(home, run_id) for run_id in ids]
    while not all(folder.status().ended for folder in found):
        time.sleep(0.5)
    failed = [f"{f.run_id}: {f.status().error}" for f in found if f.status().status != "done"]
    if failed:
        raise SystemExit("\n".join(failed))
    return time.monotonic() - began


@contextmanager
def open_browser() -> Iterator[Any]:
    """A tab in a headless Chromium."""
    from playwright.sync_api import sync_playwright

    chromium = next(filter(Path.exists, map(Path, ("/usr/bin/chromium", "/usr/bin/chromium-browser"))), None)
    with sync_playwright() as playwright:
        chrome = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield chrome.new_page(viewport={"width": 1440, "height": 900})
        chrome.close()


@contextmanager
def following(home: Path, page: str) -> Iterator[tuple[Callable[[], object], Used]]:
    """The app with a page open in Chromium; yields what loads it anew, and seconds of processor time so far."""
    with App(home) as app, open_browser() as tab:
        tab.goto(f"http://127.0.0.1:{app.port}/{page}")
        tab.get_by_role("heading", level=1).wait_for(timeout=60_000)
        server = psutil.Process(app.process.pid)

        def used() -> dict[str, float]:
            mine = [p for p in psutil.Process().children(recursive=True) if "chrom" in p.name()]
            return {"server": _seconds(server), "browser": sum(map(_seconds, mine))}

        yield tab.reload, used


def _seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def measure(mode: str) -> dict[str, Any]:
    """One demo in one mode."""
    with tempfile.TemporaryDirectory() as place:
        home = Path(place) / "lab"
        home.mkdir()
        if mode == "followed":
            with following(home, "collapse") as (reload, used):
                before = used()
                took = demo(home, reload)  # a page looks each second if runs go when it is drawn
                shares = {name: round((seconds - before[name]) / took, 3) for name, seconds in used().items()}
            return {"mode": mode, "seconds": round(took, 1), "of one core": shares}
        with neighbors(int(mode == "busy")):
            return {"mode": mode, "seconds": round(demo(home), 1)}


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--to", type=Path, default=RESULTS, help="where to record the numbers")
    args = parser.parse_args()
    for mode in args.modes:
        record(args.to, measure(mode), "mode")


if __name__ == "__main__":
    main()
