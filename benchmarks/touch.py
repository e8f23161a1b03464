"""How long a reader waits for a figure: a slider over recorded attacks, and one let go where nobody ran.

    python benchmarks/touch.py --modes quiet busy

In headless Chromium over a home of its own with the shipped runs. `scrub`: milliseconds from the slider's input event
to the drawn chart, median of ten. `cold` and `warm`: seconds from letting the slider of the learning rate go to the
first point of a new curve on the screen, and to the whole curve of undefended and SEAM on one seed; cold is right after
the server's start, warm with the process that the first one left. Prints the numbers and records them in
`results/touch.json`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.browsing import App
from benchmarks.demo import open_browser
from benchmarks.neighbor import neighbors
from benchmarks.recording import record
from immunelab.runs.journal import folders

RESULTS = Path(__file__).parent / "results" / "touch.json"
NEW = (4.3e-4, 1.8e-4, 1.8e-3, 5.5e-5)  # learning rates that nobody ran: the first cold, the others warm
SCRUB = """async (which) => {
  const input = document.querySelectorAll('.immunelab-slider input')[0];
  const host = document.querySelector('.immunelab-figure, .immunelab-answers');
  const marks = [...input.parentElement.querySelectorAll('option')].map((o) => Number(o.value));
  const times = [];
  for (let i = 0; i < 10; i++) {
    await new Promise((r) => setTimeout(r, 1200));
    input.value = marks.length ? marks[(i + 1) % marks.length] : (i + 1) % (Number(input.max) + 1);
    const drawn = new Promise((resolve) => {
      host.addEventListener('immunelab-drawn', () => requestAnimationFrame(resolve), { once: true });
    });
    const began = performance.now();
    input.dispatchEvent(new Event('input', { bubbles: true }));
    await drawn;
    times.push(performance.now() - began);
  }
  return times;
}"""
LET_GO = """(rate) => {
  const input = document.querySelector('.immunelab-slider input');
  const marks = [...input.parentElement.querySelectorAll('option')].map((o) => Number(o.value));
  const values = JSON.parse(document.querySelector('.immunelab-sliders').immunelabSliders.made)[0].values;
  const [low, high] = [Math.log(values[0]), Math.log(values[values.length - 1])];
  input.value = Math.round((Number(input.max) * (Math.log(rate) - low)) / (high - low));
  input.dispatchEvent(new Event('input', { bubbles: true }));
  return document.querySelector('.immunelab-slider output').value;
}"""
POINTS = """(text) => {
  const drawn = document.querySelector('.immunelab-sliders')?.immunelabSliders?.drawn ?? '';
  const dimmed = document.querySelector('.immunelab-figure').classList.contains('immunelab-dimmed');
  if (dimmed || !drawn.startsWith(text + '|')) return 0;
  const lines = document.querySelector('.immunelab-figure').data.filter((t) => t.showlegend);
  return Math.min(2, lines.length) < 2 ? 0.5 : Math.min(...lines.map((t) => t.x.length));
}"""
PAGES = {"collapse": "collapse", "collapse, by intensity": "collapse?against=Intensity", "playground": "playground"}


def scrub(tab: Any, app: App) -> dict[str, float]:
    """Milliseconds from input to drawn, median of ten, on each page."""
    found = {}
    for name, page in PAGES.items():
        shown(tab, app, page)
        found[name] = round(statistics.median(tab.evaluate(SCRUB)), 1)
    return found


def shown(tab: Any, app: App, page: str) -> None:
    """Open a page and wait until it stands."""
    tab.goto(f"http://127.0.0.1:{app.port}/{page}")
    tab.wait_for_selector(".immunelab-slider input", timeout=60_000)
    tab.wait_for_selector("[data-test-script-state=notRunning]", timeout=60_000)
    tab.wait_for_timeout(1000)


def compute(tab: Any, home: Path, rate: float) -> dict[str, float]:
    """Seconds until the first point of a new intensity is drawn, and until its first seed's curves are whole."""
    before = {f.run_id for f in folders(home)}
    began = time.monotonic()
    text = tab.evaluate(LET_GO, rate).split(" ")[0]
    first = whole = 0.0
    while not whole:
        drawn = tab.evaluate(POINTS, text)
        took = time.monotonic() - began
        first = first or (took if drawn else 0.0)
        whole = took if drawn >= 7 else 0.0  # step 0 and six evaluations along sixty steps
        if took > 180:
            sys.exit(f"Nothing whole after {took:.0f} s at {text}.")
        time.sleep(0.05)
    while not all(f.status().ended for f in folders(home) if f.run_id not in before):
        time.sleep(0.2)  # the other seeds
    return {"first": round(first, 2), "whole": round(whole, 2)}


def measure(mode: str) -> dict[str, Any]:
    """All of it on a quiet machine, or beside a busy process."""
    with tempfile.TemporaryDirectory() as place, neighbors(int(mode == "busy")):
        home = Path(place) / "lab"
        home.mkdir()
        with App(home) as app, open_browser() as tab:
            shown(tab, app, "collapse")
            cold = compute(tab, home, NEW[0])
            warm = [compute(tab, home, rate) for rate in NEW[1:]]
            return {
                "mode": mode,
                "scrub, ms": scrub(tab, app),
                "cold, s": cold,
                "warm, s": {k: round(statistics.median(w[k] for w in warm), 2) for k in cold},
            }


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--modes", nargs="+", choices=("quiet", "busy"), default=["quiet", "busy"])
    parser.add_argument("--to", type=Path, default=RESULTS, help="where to record the numbers")
    args = parser.parse_args()
    for mode in args.modes:
        record(args.to, measure(mode), "mode")


if __name__ == "__main__":
    main()
