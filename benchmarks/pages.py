"""How long each page takes to paint with 1,000 runs and 5 million points in the store: `python benchmarks/pages.py`.

The runs are written as journals and taken in by `store.sync()`, the way in which every run gets there. Then the real
server is started and each page is opened by the messages that a browser sends, on the same socket: once to warm the
server, then `--times` times. Measured is the time from the request until the page's script has ended and everything
has arrived; what a browser adds to lay it out is not in it. `--browser` measures in headless Chromium instead, from
the click in the menu until the heading and the figure stand. Results go to `benchmarks/results/pages.json`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from browsing import App

from immunelab.runs.journal import Journal, RunFolder
from immunelab.runs.spec import RunSpec
from immunelab.store import Store, queries
from immunelab.ui.navigation import ENTRIES

RESULT = Path(__file__).with_name("results") / "pages.json"
NAMES = (
    "loss/total",
    "loss/benign",
    "loss/harmful",
    "loss/refusal",
    "norm/update",
    "norm/harmful",
    "norm/benign",
    "cosine/harmful-benign",
    "learning_rate",
    "time/step_seconds",
)
DEFENSES = ("", "seam", "sdd", "booster", "tar", "vaccine", "random-noise", "security-vectors")
RATES = (3e-5, 1e-4, 3e-4, 6e-4, 1e-3, 3e-3)
ENOUGH = 1.0  # seconds


def fill(home: Path, runs: int, points: int) -> None:
    """Attacks on eight models at every rung, seed after seed, until there are enough, with equally many points each."""
    steps = max(1, round(points / runs / len(NAMES)))
    made, seed = 0, 0
    while made < runs:
        for defense in DEFENSES:
            parent = ""
            if defense and made < runs:
                parent = write(home, defense, "immunize", 3e-4, seed, steps, "")
                made += 1
            for rate in RATES:
                if made < runs:
                    write(home, defense, "attack", rate, seed, steps, parent)
                    made += 1
        seed += 1


def write(home: Path, defense: str, kind: str, rate: float, seed: int, steps: int, parent: str) -> str:
    """One finished run with every scalar at each step and seven evaluations."""
    knobs = {
        "learning_rate": rate,
        "steps": steps,
        "batch_size": 8,
        "samples": 120,
        "optimizer": "adamw",
        "schedule": "cosine",
    } | ({"harmful_share": 1.0} if kind == "attack" else {})
    lineage = {"model": f"run:{parent}", "parent": parent} if parent else {}
    method = defense if kind == "immunize" else "harmful-sft"
    spec = RunSpec(kind=kind, method=method, knobs=knobs, seed=seed, evaluate_every=10, **lineage)  # type: ignore[arg-type]
    folder = RunFolder.create(home, spec)
    wave = [math.sin(step / 20) for step in range(steps)]
    with Journal(folder) as journal:
        journal.event("started")
        for step in range(steps):
            journal.points(kind, step + 1, {name: wave[step] + k for k, name in enumerate(NAMES)})
        for k in range(7):
            share = min(1.0, k / 6 * rate * 1000)
            scores = {"harmfulness": share * (0.2 if defense else 0.9), "utility": 1 - share * 0.3}
            for metric, score in scores.items():
                journal.score(
                    kind,
                    steps * k // 6,
                    evaluation="fable",
                    metric=metric,
                    split="all",
                    score=score,
                    n=240,
                    stderr=0.02,
                )
        journal.event("done")
    now = time.time()
    folder.write_status(
        status="done",
        phase=kind,
        step=steps,
        steps=steps,
        progress=1.0,
        device="cpu",
        queued_at=now,
        started_at=now,
        ended_at=now + 5,
        seconds=5.0,
    )
    return folder.run_id


def by_socket(home: Path, times: int) -> dict[str, list[float]]:
    """Seconds until each page has arrived whole, after one opening that does not count."""
    found: dict[str, list[float]] = {name: [] for name in ENTRIES}
    with App(home) as app:
        for _ in range(times + 1):
            for name in ENTRIES:
                time.sleep(1.2)  # what is cached for a second has to be read again
                seconds, errors = app.ask("" if name == "overview" else name, patience=180)
                if errors:
                    sys.exit(f"{name}: {errors[0]}")
                found[name].append(seconds)
    return {name: seconds[1:] for name, seconds in found.items()}


def by_browser(home: Path, times: int) -> dict[str, list[float]]:
    """Seconds from the click in the menu until the page's heading stands and its script has ended."""
    import shutil

    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    found: dict[str, list[float]] = {name: [] for name in ENTRIES}
    with App(home) as app, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(f"http://127.0.0.1:{app.port}")
        for _ in range(times + 1):
            for name, (title, _, _) in ENTRIES.items():
                page.wait_for_selector("[data-test-script-state=notRunning]", timeout=180_000)
                page.wait_for_timeout(1200)
                began = time.perf_counter()
                page.locator("[data-testid=stSidebarNavLink]", has_text=title).first.click()
                page.get_by_role("heading", name=title, exact=True, level=1).wait_for(timeout=180_000)
                page.wait_for_selector("[data-test-script-state=notRunning]", timeout=180_000)
                found[name].append(time.perf_counter() - began)
        browser.close()
    return {name: seconds[1:] for name, seconds in found.items()}


def main() -> None:
    """Fill a home, or take one that is filled already, measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--points", type=int, default=5_000_000)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--home", type=Path, help="keep the lab here, and use it again")
    parser.add_argument("--browser", action="store_true", help="in headless Chromium, not on the socket")
    parser.add_argument("--note", default="", help="what else the machine was doing")
    given = parser.parse_args()
    random.seed(0)
    with tempfile.TemporaryDirectory() as folder:
        home = (given.home or Path(folder) / "lab").absolute()
        home.mkdir(parents=True, exist_ok=True)
        if not (home / "runs").exists():
            fill(home, given.runs, given.points)
        began = time.perf_counter()
        store = Store(home)
        store.sync(force=True)
        taken_in = time.perf_counter() - began
        held = {
            "runs": len(queries.runs(store, showcase=False)),
            "points": int(store.query("SELECT count(*) AS n FROM points")["n"].iloc[0]),
        }
        measured = (by_browser if given.browser else by_socket)(home, given.times)
    pages = {
        name: {"median_s": round(statistics.median(s), 3), "most_s": round(max(s), 3)} for name, s in measured.items()
    }
    for name, row in pages.items():
        print(f"{name:<12} median {row['median_s']:.2f} s, most {row['most_s']:.2f} s")
    slow = [name for name, row in pages.items() if row["median_s"] > ENOUGH]
    print(f"Above {ENOUGH:g} s: {', '.join(slow) or 'none'}.")
    record = {
        "what": __doc__.splitlines()[0].partition(":")[0] if __doc__ else "",
        "how": "headless Chromium" if given.browser else "the browser's messages on the app's socket, no layout",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "hardware": f"{os.cpu_count()} CPU cores, {platform.machine()}, {platform.system()}",
        "note": given.note,
        "versions": {name: version(name) for name in ("streamlit", "duckdb", "pandas", "plotly")}
        | {"python": platform.python_version()},
        "store": held | {"seconds_to_take_in": round(taken_in, 1), "written_as": "journals, taken in by store.sync()"},
        "times": given.times,
        "pages": pages,
    }
    RESULT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
