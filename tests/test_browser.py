"""The app in a real headless browser: what AppTest cannot see. Recorded runs are made up, the server is real."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from immunelab.journal import Journal, RunFolder
from tests import made_up

pytestmark = pytest.mark.browser
ROOT = Path(__file__).resolve().parents[1]
CHART = ".immunelab-figure .main-svg"
# Streamlit probes for its own address under each page's path; the answer 404 is expected and logged by the browser.
EXPECTED = re.compile(r"Failed to load resource.*404")


class App:
    """A running server over a home of its own."""

    def __init__(self, home: Path, url: str) -> None:
        self.home = home
        self.url = url


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    home = tmp_path_factory.mktemp("browser") / "lab"
    made_up.lab(home, rates=(3e-4, 1e-3))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (home / "server.txt").open("w")
    server = subprocess.Popen(
        [sys.executable, "-m", "streamlit", "run", "app.py", "--server.headless", "true", "--server.port", str(port)],
        cwd=ROOT, env={**os.environ, "IMMUNELAB_HOME": str(home)}, stdout=log, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        _wait(f"http://127.0.0.1:{port}/_stcore/health", server)
        yield App(home, f"http://127.0.0.1:{port}")
    finally:
        server.terminate()
        server.wait(10)
        log.close()


def _wait(url: str, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=1)
        except OSError:
            time.sleep(0.1)
        else:
            return
    pytest.fail("The server did not start.")


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    with sync_playwright() as playwright:
        chrome = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield chrome
        chrome.close()


@pytest.fixture
def tab(browser: Any, app: App) -> Iterator[Any]:
    """A fresh session; at its end no request has left this machine and nothing went wrong in the page."""
    yield from _session(browser, app)


def _session(browser: Any, app: App, **options: Any) -> Iterator[Any]:
    context = browser.new_context(**{"viewport": {"width": 1300, "height": 1000}, "accept_downloads": True, **options})
    tab = context.new_page()
    outside: list[str] = []
    wrong: list[str] = []
    local = (app.url, app.url.replace("http", "ws"), "data:", "blob:")
    tab.on("request", lambda r: None if r.url.startswith(local) else outside.append(r.url))
    tab.on("pageerror", lambda e: wrong.append(str(e)))
    tab.on("console", lambda m: wrong.append(m.text) if m.type == "error" and not EXPECTED.search(m.text) else None)
    yield tab
    boxes = [b.inner_text() for b in tab.query_selector_all('[data-testid="stException"]')]
    context.close()
    assert not outside, outside
    assert not wrong, wrong
    assert not boxes, boxes


def open_page(tab: Any, app: App, address: str, chart: bool = True) -> None:
    tab.goto(f"{app.url}/{address}")
    tab.wait_for_selector("h1")
    if chart:
        tab.wait_for_selector(CHART)


def legend(tab: Any) -> list[str]:
    """The legend's entries, hidden ones in parentheses."""
    return tab.eval_on_selector_all(
        ".immunelab-figure .legend .traces",
        "rows => rows.map(r => (r.style.opacity < 1 ? '(' + r.textContent + ')' : r.textContent))",
    )


@pytest.mark.parametrize(
    "name", ["overview", "collapse", "traces", "runs", "launch", "methods", "data", "query", "playground"]
)
def test_a_cold_link_to_any_page_works(tab: Any, app: App, name: str) -> None:
    open_page(tab, app, "" if name == "overview" else name, chart=name in ("overview", "collapse", "traces"))
    assert tab.locator("h1").inner_text() == name.capitalize()
    tab.wait_for_selector('[data-testid="stSidebarNav"] >> text=Methods')
    if name in ("launch", "methods"):
        tab.wait_for_selector("text=SEAM", timeout=60_000)


def test_a_link_restores_the_slider_and_moving_it_changes_link_and_chart(tab: Any, app: App) -> None:
    open_page(tab, app, "collapse?rate=0.001")
    handle = tab.get_by_role("slider", name="Learning rate")
    assert handle.get_attribute("aria-valuetext") == "0.001"
    handle.focus()
    tab.keyboard.press("ArrowLeft")
    tab.wait_for_url("**/collapse*")
    tab.wait_for_function("() => !location.search.includes('rate=0.001')")
    # The next recorded rate, of the showcase that ships; a slider never stops where nothing is recorded.
    assert handle.get_attribute("aria-valuetext") == "0.0006"


def test_the_chart_is_labelled_for_screen_readers(tab: Any, app: App) -> None:
    open_page(tab, app, "collapse")
    label = tab.get_attribute(".immunelab-figure", "aria-label")
    assert "Undefended: harmfulness" in label


def test_zoom_and_hidden_lines_survive_live_updates(tab: Any, app: App) -> None:
    run_id = made_up.attack(app.home, 5, 1e-3, None, until=20)
    folder = RunFolder.open(app.home, run_id)
    other = next(f.name for f in sorted((app.home / "runs").glob("*-harmful-sft-*")))
    try:
        open_page(tab, app, f"traces?runs={run_id}&runs={other}")
        tab.wait_for_function("() => document.querySelectorAll('.immunelab-figure .legend .traces').length === 2")
        tab.locator(".immunelab-figure .legend .legendtoggle").first.click()
        tab.wait_for_function("() => document.querySelector('.immunelab-figure .legend .traces').style.opacity < 1")
        tab.evaluate("Plotly.relayout(document.querySelector('.immunelab-figure'), {'xaxis.range': [5, 12]})")
        hidden = legend(tab)
        length = "document.querySelector('.immunelab-figure').calcdata.map(line => line.length).join()"
        for step in (21, 22):
            before = tab.evaluate(length)
            with Journal(folder) as journal:
                journal.points("attack", step, {"loss/total": 1.0})
            tab.wait_for_function(f"before => {length} !== before", arg=before, timeout=15_000)
        assert legend(tab) == hidden
        span = tab.evaluate("document.querySelector('.immunelab-figure').layout.xaxis.range")
        assert [round(v) for v in span] == [5, 12]
    finally:
        folder.write_status(status="done", ended_at=time.time(), progress=1.0)


def test_downloads(tab: Any, app: App) -> None:
    open_page(tab, app, "collapse")
    for button, start in (("CSV", "step,"), ("HTML", "<!doctype html>")):
        with tab.expect_download() as download:
            tab.get_by_role("button", name=button, exact=True).click()
        assert Path(download.value.path()).read_text(encoding="utf-8").lower().startswith(("run_id", start))
    for name, magic in (("PNG", b"\x89PNG"), ("SVG", b"<svg")):
        with tab.expect_download() as download:
            tab.locator(f'[data-title="Download {name}"], [aria-label="Download {name}"]').first.click()
        assert Path(download.value.path()).read_bytes().startswith(magic)


def test_a_click_on_a_line_opens_its_run(tab: Any, app: App) -> None:
    open_page(tab, app, "traces")
    tab.locator(".immunelab-figure .draglayer .drag").first.click()
    tab.wait_for_url("**/runs?run=*")
    tab.wait_for_selector("text=Status: done")


def test_a_click_on_a_point_of_the_trade_off_opens_its_run(tab: Any, app: App) -> None:
    open_page(tab, app, "tradeoff?paths=false")
    point = tab.locator(".immunelab-figure .scatterlayer .point").last
    box = point.bounding_box()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.wait_for_selector(".immunelab-figure .hoverlayer .hovertext")
    tab.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.wait_for_url("**/runs?run=*")
    tab.wait_for_selector("text=Status: done")


def test_a_figure_is_taken_away_as_a_notebook(tab: Any, app: App) -> None:
    open_page(tab, app, "tradeoff")
    with tab.expect_download() as download:
        tab.get_by_role("button", name="Open as notebook").click()
    assert download.value.suggested_filename == "immunelab-tradeoff.ipynb"
    assert json.loads(Path(download.value.path()).read_text(encoding="utf-8"))["nbformat"] == 4


def test_deleting_a_run_asks_first_and_tells_what_it_freed(tab: Any, app: App) -> None:
    run_id = made_up.attack(app.home, 9, 1e-3, None)
    open_page(tab, app, f"runs?run={run_id}", chart=False)
    tab.get_by_role("button", name="Delete").click()
    tab.get_by_role("dialog").get_by_role("button", name="Delete").click()
    tab.wait_for_selector("text=of disk freed")
    assert not (app.home / "runs" / run_id).exists()


@pytest.mark.parametrize(("scheme", "width"), [("dark", 1300), ("light", 420), ("dark", 420)])
def test_dark_and_narrow(browser: Any, app: App, scheme: str, width: int) -> None:
    options = {"color_scheme": scheme, "viewport": {"width": width, "height": 900}}
    for tab in _session(browser, app, **options):
        open_page(tab, app, "collapse")
        paper = tab.evaluate("document.querySelector('.immunelab-figure').layout.template.layout.paper_bgcolor")
        back = tab.evaluate("getComputedStyle(document.querySelector('.stApp')).backgroundColor")
        assert tuple(int(paper[i : i + 2], 16) for i in (1, 3, 5)) == tuple(map(int, re.findall(r"\d+", back)[:3]))
        wide = tab.evaluate("document.documentElement.scrollWidth")
        assert wide <= width
