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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import made_up
import pytest
from waiting import PATIENCE, until

from immunelab import jobs
from immunelab.runs.journal import ENDED, Journal, RunFolder, folders
from immunelab.runs.spec import RunSpec
from immunelab.ui.navigation import ENTRIES

pytestmark = [pytest.mark.browser, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
CHARTED = ("overview", "tour", "collapse", "traces", "tradeoff", "gradients")
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
    with serving(home) as running:
        yield running


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, tiny_world: Path) -> Iterator[App]:
    """The app on an empty home, with a demo of a few steps in a tiny world: every part of it is real."""
    home = tmp_path_factory.mktemp("demo") / "lab"
    home.mkdir()
    with serving(home, IMMUNELAB_DEMO_CORPUS=str(tiny_world), IMMUNELAB_DEMO_STEPS="12") as running:
        yield running
        for folder in folders(home):
            if folder.status().status not in ENDED:
                jobs.stop(folder.run_id, home, force_after=0)


@contextmanager
def serving(home: Path, **settings: str) -> Iterator[App]:
    """The app on a free port over a home."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (home / "server.txt").open("w")
    server = subprocess.Popen(
        [sys.executable, "-m", "streamlit", "run", "app.py", "--server.headless", "true", "--server.port", str(port)],
        cwd=ROOT,
        env={**os.environ, "IMMUNELAB_HOME": str(home), "IMMUNELAB_SHOWCASE": "", **settings},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        _wait(f"http://127.0.0.1:{port}/_stcore/health", server)
        yield App(home, f"http://127.0.0.1:{port}")
    finally:
        server.terminate()
        server.wait(PATIENCE)
        log.close()


def _wait(url: str, server: subprocess.Popen[bytes]) -> None:
    def healthy() -> bool:
        assert server.poll() is None, "The server did not start."
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            return False
        return True

    until(healthy, every=0.1)


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


@pytest.fixture
def demo_tab(browser: Any, small: App) -> Iterator[Any]:
    yield from _session(browser, small)


def _session(browser: Any, app: App, **options: Any) -> Iterator[Any]:
    context = browser.new_context(**{"viewport": {"width": 1300, "height": 1000}, "accept_downloads": True, **options})
    context.set_default_timeout(PATIENCE * 1000)
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


@pytest.mark.parametrize("name", ENTRIES)
def test_a_cold_link_to_any_page_works(tab: Any, app: App, name: str) -> None:
    open_page(tab, app, "" if name == "overview" else name, chart=name in CHARTED)
    assert tab.locator("h1").inner_text() == ENTRIES[name][0]
    tab.wait_for_selector('[data-testid="stSidebarNav"] >> text=Methods')
    if name in ("launch", "methods"):
        tab.wait_for_selector("text=SEAM")
    tab.set_viewport_size({"width": 420, "height": 900})  # and it fits a narrow window
    tab.wait_for_function("() => window.innerWidth === 420 && document.documentElement.scrollWidth <= 420")


def test_a_link_restores_the_slider_and_moving_it_changes_link_and_chart(tab: Any, app: App) -> None:
    open_page(tab, app, "collapse?rate=0.001")
    handle = tab.get_by_role("slider", name="Learning rate")
    assert handle.get_attribute("aria-valuetext") == "0.001"
    handle.focus()
    tab.keyboard.press("ArrowLeft")
    tab.wait_for_url("**/collapse*")
    tab.wait_for_function("() => !location.search.includes('rate=0.001')")
    # The next recorded rate, of the showcase that ships; a slider never stops where nothing is recorded.
    until(lambda: handle.get_attribute("aria-valuetext") == "0.0006")


MOVE = """(text) => {
  const input = document.querySelector('.immunelab-slider input');
  const {values, texts} = JSON.parse(document.querySelector('.immunelab-sliders').immunelabSliders.made)[0];
  const at = texts.includes(text) ? values[texts.indexOf(text)] : Number(text);
  const [low, high] = [Math.log(values[0]), Math.log(values[values.length - 1])];
  input.value = Math.round((Number(input.max) * (Math.log(at) - low)) / (high - low));
  input.dispatchEvent(new Event('input', {bubbles: true}));
}"""
DRAWN = """() => document.querySelector('.immunelab-figure').data.map(
  (t) => [t.name ?? '', [...t.x].join(), [...t.y].join()])"""


def test_a_slider_redraws_without_the_server(tab: Any, app: App) -> None:
    open_page(tab, app, "collapse?rate=0.0003")
    tab.locator(".immunelab-figure .legend .legendtoggle").first.click()  # a hidden line stays hidden
    tab.wait_for_function("() => document.querySelector('.immunelab-figure .legend .traces').style.opacity < 1")
    tab.wait_for_timeout(1000)
    tab.wait_for_selector('.stApp[data-test-script-state="notRunning"]')
    tab.context.set_offline(True)
    before = tab.evaluate(DRAWN)
    tab.evaluate(MOVE, "0.001")
    tab.wait_for_function(f"before => JSON.stringify(({DRAWN})()) !== JSON.stringify(before)", arg=before)
    moved, hidden = tab.evaluate(DRAWN), legend(tab)
    assert hidden[0].startswith("(Undefended")
    tab.context.set_offline(False)
    open_page(tab, app, "collapse?rate=0.001")
    assert tab.evaluate(DRAWN) == moved, "what a cold link to that position draws"
    assert tab.locator(".immunelab-told").inner_text().startswith("Undefended: harmfulness")


def test_the_page_to_take_away_has_the_slider(tab: Any, browser: Any, app: App, tmp_path: Path) -> None:
    open_page(tab, app, "collapse?rate=0.0003")
    with tab.expect_download() as taken:
        tab.get_by_role("button", name="HTML").first.click()
    page = tmp_path / "figure.html"
    taken.value.save_as(page)
    alone = browser.new_context(offline=True).new_page()
    asked: list[str] = []
    alone.on("request", lambda request: asked.append(request.url))
    alone.goto(page.as_uri())
    alone.wait_for_selector(CHART)
    before = alone.evaluate(DRAWN)
    handle = alone.get_by_role("slider", name="Learning rate")
    handle.focus()
    alone.keyboard.press("ArrowRight")
    alone.wait_for_function(f"before => JSON.stringify(({DRAWN})()) !== JSON.stringify(before)", arg=before)
    assert handle.get_attribute("aria-valuetext") == "0.0006"
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    alone.context.close()


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
            tab.wait_for_function(f"before => {length} !== before", arg=before)
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


def test_zoom_and_hidden_lines_go_into_the_link_and_come_from_it(tab: Any, app: App) -> None:
    open_page(tab, app, "collapse")
    tab.locator(".immunelab-figure .legend .legendtoggle").first.click()
    tab.wait_for_url("**zoom=*undefended*")
    tab.evaluate("Plotly.relayout(document.querySelector('.immunelab-figure'), {'xaxis.range': [10, 40]})")
    tab.wait_for_url("**zoom=*40*")
    address = tab.url
    tab.goto(f"{app.url}/runs")
    tab.wait_for_selector("h1")
    tab.goto(address)
    tab.wait_for_selector(CHART)
    until(lambda: legend(tab)[0].startswith("(Undefended"))
    until(lambda: tab.evaluate("document.querySelector('.immunelab-figure').layout.xaxis.range") == [10, 40])


def test_a_point_of_the_collapse_curve_opens_the_runs_of_its_seeds(tab: Any, app: App) -> None:
    open_page(tab, app, "collapse?source=This+lab")
    tab.wait_for_selector(".immunelab-figure .legend .traces")
    tab.locator(".immunelab-figure .scatterlayer .point").last.hover(force=True)
    tab.wait_for_selector(".immunelab-figure .hoverlayer .legend")
    tab.locator(".immunelab-figure .draglayer .drag").first.click()
    tab.wait_for_url("**/runs?run=*&run=*")
    tab.wait_for_selector("text=Compare")


def test_the_panels_of_a_figure_hover_together(tab: Any, app: App) -> None:
    open_page(tab, app, "collapse")
    tab.locator(".immunelab-figure .draglayer .drag").first.hover()
    layer = "document.querySelector('.immunelab-figure .hoverlayer').textContent"
    tab.wait_for_function(f"() => {layer}.split('Undefended').length === 3")  # harmfulness here, utility there


def test_arrow_keys_walk_along_the_points_and_enter_opens_the_runs(tab: Any, app: App) -> None:
    open_page(tab, app, "collapse")
    tab.locator(".immunelab-figure").focus()
    tab.keyboard.press("ArrowRight")
    said = tab.locator(".immunelab-said")
    tab.wait_for_function("() => document.querySelector('.immunelab-said').textContent.includes('Undefended')")
    before = said.text_content()
    tab.keyboard.press("ArrowRight")
    until(lambda: said.text_content() != before)
    tab.keyboard.press("Enter")
    tab.wait_for_url("**/runs?run=*")


def test_arrow_keys_walk_over_the_cells_of_a_map(tab: Any, app: App) -> None:
    open_page(tab, app, "")
    tab.wait_for_selector("text=Every defense at every rung")
    tab.wait_for_function("() => document.querySelectorAll('.immunelab-figure .heatmaplayer').length >= 1")
    place = tab.locator(".immunelab-figure").count() - 1
    tab.locator(".immunelab-figure").nth(place).focus()
    tab.keyboard.press("ArrowRight")
    said = tab.locator(".immunelab-said").nth(place)
    until(lambda: said.text_content().startswith("Undefended"))
    tab.keyboard.press("ArrowDown")
    until(lambda: said.text_content().startswith("SEAM"))
    tab.keyboard.press("Enter")
    tab.wait_for_url("**/runs?run=*")


def test_a_box_selects_runs(tab: Any, app: App) -> None:
    open_page(tab, app, "tradeoff?paths=false")
    tab.locator('.immunelab-figure [data-attr="dragmode"][data-val="select"]').click()
    box = tab.locator(".immunelab-figure .draglayer .drag").first.bounding_box()
    tab.mouse.move(box["x"] + 4, box["y"] + 4)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] - 4, box["y"] + box["height"] - 4, steps=4)
    tab.mouse.up()
    tab.wait_for_selector("text=runs selected")
    tab.wait_for_url("**selected=*")
    caught = tab.get_by_text("runs selected").text_content()
    tab.goto(tab.url)  # a new session: the link alone says what was selected
    assert tab.get_by_text("runs selected").text_content() == caught
    tab.get_by_role("link", name="Compare their settings").click()
    tab.wait_for_url("**/runs?run=*")


def test_one_switch_pauses_every_page(tab: Any, app: App) -> None:
    folder = RunFolder.open(app.home, made_up.attack(app.home, 6, 1e-3, None, until=20))
    length = "document.querySelector('.immunelab-figure').calcdata.map(line => line.length).join()"
    try:
        open_page(tab, app, f"traces?runs={folder.run_id}")
        tab.get_by_text("Live updates").click()
        tab.wait_for_timeout(1500)  # the page is drawn once more, and its clocks are gone
        tab.wait_for_selector('.stApp[data-test-script-state="notRunning"]')
        before = tab.evaluate(length)
        with Journal(folder) as journal:
            journal.points("attack", 21, {"loss/total": 1.0})
        tab.wait_for_timeout(3000)
        assert tab.evaluate(length) == before
        tab.get_by_text("Live updates").click()
        tab.wait_for_function(f"before => {length} !== before", arg=before)
    finally:
        folder.write_status(status="done", ended_at=time.time(), progress=1.0)


def test_the_live_demo_from_its_button_to_the_curve(demo_tab: Any, small: App) -> None:
    open_page(demo_tab, small, "")
    demo_tab.get_by_role("button", name="Run the live demo").click()
    demo_tab.wait_for_selector("text=runs are queued")
    open_page(demo_tab, small, "traces", chart=False)
    demo_tab.wait_for_selector(CHART)  # the newest run is drawn as soon as it has recorded something
    ids = [f.run_id for f in folders(small.home)]
    assert len(ids) == 13
    first = ids[0]
    open_page(demo_tab, small, f"traces?runs={first}", chart=False)
    demo_tab.wait_for_selector(CHART)
    until(lambda: all(RunFolder.open(small.home, i).status().status == "done" for i in ids))
    open_page(demo_tab, small, "collapse?source=This+lab&rate=0.003")
    until(lambda: [name.rsplit(" (", 1)[0] for name in legend(demo_tab)] == ["Undefended", "SEAM"])


def test_a_run_is_stopped_and_resumed_from_its_page(demo_tab: Any, small: App, tiny_world: Path) -> None:
    knobs = {"steps": 4000, "learning_rate": 1e-4}
    spec = RunSpec(kind="attack", method="harmful-sft", corpus=str(tiny_world), knobs=knobs, device="cpu")
    (run_id,) = jobs.submit([spec], small.home)
    open_page(demo_tab, small, f"traces?runs={run_id}", chart=False)
    demo_tab.wait_for_selector(CHART)
    length = "document.querySelector('.immunelab-figure').calcdata[0].length"
    before = demo_tab.evaluate(length)
    demo_tab.wait_for_function(f"before => {length} > before", arg=before)  # the curve grows
    open_page(demo_tab, small, f"runs?run={run_id}", chart=False)
    demo_tab.locator(".st-key-stop").get_by_role("button", name="Stop", exact=True).click()  # not the toolbar's
    demo_tab.wait_for_selector("text=Status: stopped")
    stopped_at = RunFolder.open(small.home, run_id).status().step
    demo_tab.get_by_role("button", name="Resume").click()
    until(lambda: RunFolder.open(small.home, run_id).status().step > stopped_at)
    demo_tab.wait_for_selector("text=Status: running")
    demo_tab.locator(".st-key-stop").get_by_role("button", name="Stop", exact=True).click()  # not the toolbar's
    demo_tab.wait_for_selector("text=Status: stopped")


def test_a_question_of_ones_own_is_answered_by_a_real_model(demo_tab: Any, small: App) -> None:
    open_page(demo_tab, small, "playground", chart=False)
    box = demo_tab.get_by_label("Your question")
    box.fill("what is two plus two ?")
    box.press("Tab")
    demo_tab.get_by_role("button", name="Ask", exact=True).click()
    run = until(lambda: next((f for f in folders(small.home) if f.spec().method == "answers"), None))
    until(lambda: run.status().status == "done")
    demo_tab.wait_for_function("() => document.body.innerText.includes('Fable, as it is shipped')")
    demo_tab.wait_for_selector('[data-testid="stCode"]')


def test_the_estimators_error_is_measured_from_its_button(demo_tab: Any, small: App) -> None:
    open_page(demo_tab, small, "gradients?view=Estimator+error", chart=False)
    demo_tab.get_by_role("button", name="Measure it").click()
    demo_tab.wait_for_selector(CHART)
    assert "smallest relative error" in demo_tab.get_attribute(".immunelab-figure", "aria-label")


def test_a_slider_let_go_where_nobody_ran_computes_it(demo_tab: Any, small: App) -> None:
    """After the demo: the curve of a new learning rate grows in the page, undefended and immunized."""
    open_page(demo_tab, small, "collapse?source=This+lab&rate=0.0003")
    known = {f.run_id for f in folders(small.home)}
    demo_tab.evaluate(MOVE, "0.00047")
    dimmed = "document.querySelector('.immunelab-figure').classList.contains('immunelab-dimmed')"
    demo_tab.wait_for_function(f"() => {dimmed}")

    def asked() -> list[RunFolder]:
        new = [f for f in folders(small.home) if f.run_id not in known]
        return [f for f in new if f.spec().knobs["learning_rate"] == 0.00047]

    until(lambda: len({f.spec().model for f in asked()}) == 2)  # their folders are made one after the other
    until(lambda: all(f.status().status == "done" for f in asked()))
    demo_tab.wait_for_function(f"() => !{dimmed}")  # the first curve is there; the others join it
    until(lambda: [name.rsplit(" (", 1)[0] for name in legend(demo_tab)] == ["Undefended", "SEAM"])
    assert demo_tab.get_by_role("slider", name="Learning rate").get_attribute("aria-valuetext") == "0.00047"
