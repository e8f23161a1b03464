"""Takes a picture of every page, light and dark, over the recorded showcase: `python docs/screenshots/take.py`.

Needs the `test` extra and Chromium (`apt install chromium`). With names of pictures, takes only those. Options are for
looking, not for the record: `--home FOLDER` shows another lab, `--to FOLDER` writes elsewhere, `--width 480` is narrow.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from immunelab.ui.navigation import ENTRIES

HERE = Path(__file__).resolve().parent
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
WIDE, TALL, MOST = 1280, 860, 1700  # pixels: width, least and largest height
BYTES = 150_000  # a picture that is larger gets fewer colors
# Pictures beside the pages' own first views: name → address.
VIEWS = {
    "collapse-intensity": "collapse?against=Intensity",
    "tour-again": "tour?step=3+Attack+again",
    "tradeoff-budget": "tradeoff?show=Attacker%27s+budget",
    "tradeoff-search": "tradeoff?show=Attacker%27s+search&beside=SEAM&beside=RepNoise&beside=Lisa",
    "gradients-layers": "gradients?view=By+layer",
    "data-overlap": "data?view=Overlap",
}


def main() -> None:
    """Start the app on an empty home, visit the pages, save PNG files beside this one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="pages or views; all of them if none is named")
    parser.add_argument("--home", type=Path, help="a lab to show, in place of an empty one")
    parser.add_argument("--to", type=Path, default=HERE, help="the folder for the pictures")
    parser.add_argument("--width", type=int, default=WIDE)
    parser.add_argument("--theme", choices=("light", "dark"), action="append")
    given = parser.parse_args()
    addresses = {name: "" if name == "overview" else name for name in ENTRIES} | VIEWS
    unknown = set(given.names) - set(addresses)
    if unknown:
        sys.exit(f"No such picture: {', '.join(sorted(unknown))}. There are {', '.join(addresses)}.")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        sys.exit("No Chromium here: apt install chromium")
    given.to.mkdir(parents=True, exist_ok=True)
    with app(given.home) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        for name in given.names or addresses:
            for theme in given.theme or ("light", "dark"):
                take(browser, f"{url}/{addresses[name]}", theme, given.to / f"{name}-{theme}.png", given.width)
        browser.close()


@contextmanager
def app(home: Path | None) -> Iterator[str]:
    """The app on a free port over a home, an empty one if none is given: its address."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as empty:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        command = ["-m", "streamlit", "run", "app.py", "--server.headless", "true", "--server.port", str(port)]
        server = subprocess.Popen(
            [sys.executable, *command],
            cwd=HERE.parents[1],
            env={**os.environ, "IMMUNELAB_HOME": str(home or empty)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait(f"http://127.0.0.1:{port}/_stcore/health")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(10)


def take(browser: Browser, url: str, theme: str, path: Path, width: int) -> None:
    """One page, as high as it is up to a limit, when its script has run and its figures are drawn."""
    page = browser.new_page(viewport={"width": width, "height": TALL}, color_scheme=theme)  # type: ignore[arg-type]
    page.goto(url)
    page.get_by_role("heading", level=1).first.wait_for(timeout=120_000)
    settle(page)
    height = page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
    page.set_viewport_size({"width": width, "height": int(min(max(height, TALL), MOST))})
    settle(page)
    if page.locator("[data-testid=stException]").count():
        sys.exit(f"{url} shows an exception: no picture is taken of it.")
    small(page.screenshot(), path)
    page.close()
    print(f"{path.name}: {path.stat().st_size // 1000} kB", flush=True)


def settle(page) -> None:  # type: ignore[no-untyped-def]
    """Until the script is not running, no skeleton stands in, and the page has looked the same twice."""
    page.locator("[data-test-script-state=running]").wait_for(state="detached", timeout=180_000)
    page.locator("[data-testid=stSkeleton]").first.wait_for(state="detached", timeout=60_000)
    before = b""
    for _ in range(20):
        page.wait_for_timeout(700)
        now = page.screenshot()
        if now == before:
            return
        before = now


def small(picture: bytes, path: Path) -> None:
    """A PNG with a palette, of at most `BYTES` where 32 colors or more allow it."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    for colors in (256, 128, 64, 32):
        image.quantize(colors, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size <= BYTES:
            return


def wait(url: str) -> None:
    """Until the server answers."""
    for _ in range(600):
        try:
            urllib.request.urlopen(url, timeout=1)
            return
        except OSError:
            time.sleep(0.1)
    sys.exit("The server did not start.")


if __name__ == "__main__":
    main()
