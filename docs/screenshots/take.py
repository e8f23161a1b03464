"""Takes a picture of every page, light and dark, over the recorded showcase: `python docs/screenshots/take.py`.

Needs the `test` extra and Chromium (`apt install chromium`). With names of pages, takes only those.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from immunelab.ui.navigation import ENTRIES

HERE = Path(__file__).resolve().parent
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
WIDE, TALL = 1360, 900


def main() -> None:
    """Start the app on an empty home, visit the pages, save PNG files beside this one."""
    wanted = sys.argv[1:] or list(ENTRIES)
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        sys.exit("No Chromium here: apt install chromium")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as home:
        command = ["-m", "streamlit", "run", "app.py", "--server.headless", "true", "--server.port", str(port)]
        server = subprocess.Popen(
            [sys.executable, *command],
            cwd=HERE.parents[1],
            env={**os.environ, "IMMUNELAB_HOME": home},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait(f"{address}/_stcore/health")
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
                for theme in ("light", "dark"):
                    for name in wanted:
                        take(
                            browser,
                            f"{address}/{'' if name == 'overview' else name}",
                            theme,
                            HERE / f"{name}-{theme}.png",
                        )
                browser.close()
        finally:
            server.terminate()
            server.wait(10)


def take(browser: Browser, url: str, theme: str, path: Path) -> None:
    """One page, when its spinner is gone and nothing has moved for a second; cut at twice the window's height."""
    page = browser.new_page(viewport={"width": WIDE, "height": TALL}, color_scheme=theme)  # type: ignore[arg-type]
    page.goto(url)
    page.get_by_role("heading", level=1).first.wait_for(timeout=60_000)
    page.locator("[data-testid=stStatusWidget]").wait_for(state="detached", timeout=120_000)
    page.wait_for_timeout(2500)
    height = page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
    page.set_viewport_size({"width": WIDE, "height": int(min(max(height, TALL), 2 * TALL))})
    page.wait_for_timeout(1500)
    page.screenshot(path=path)
    page.close()
    print(path.name)


def wait(url: str) -> None:
    """Until the server answers."""
    for _ in range(300):
        try:
            urllib.request.urlopen(url, timeout=1)
            return
        except OSError:
            time.sleep(0.1)
    sys.exit("The server did not start.")


if __name__ == "__main__":
    main()
