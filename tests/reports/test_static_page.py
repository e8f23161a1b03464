"""The page to take away: it opens from disk without a network, moves, restores its link, and leaks nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import made_up
import pytest

from immunelab.cli import main
from immunelab.errors import UserError
from immunelab.reports import static_page
from immunelab.reports.static_page import Choice
from immunelab.store import Store

DRAWN = (
    """() => document.querySelector('#collapse .immunelab-figure').data.map((t) => [t.name ?? '', [...t.y].join()])"""
)


def parts(text: str) -> dict[str, Any]:
    """What the page's script draws, by part."""
    found = re.search(r"const told = (.*);\nconst link", text)
    assert found
    return dict(json.loads(found[1]))


def test_it_holds_what_is_recorded_and_nothing_else(home: Path) -> None:
    made_up.lab(home)
    text = static_page.page(Store(home))
    told = parts(text)
    assert list(told) == ["overview", "collapse", "outcomes", "tradeoff", "gradients", "playground"]
    frames = json.loads(told["collapse"]["sliders"])["frames"]
    assert list(frames) == ["0.0001", "0.0003", "0.001", "0.003"]
    curves = static_page.queries.attack_curves(Store(home))
    recorded = curves[(curves["learning_rate"] == 1e-3) & (curves["defense"] == "undefended") & (curves["step"] == 60)]
    (line,) = [t for t in frames["0.001"]["data"] if t.get("name", "").startswith("Undefended") and t["yaxis"] == "y"]
    assert line["y"][-1] == pytest.approx(recorded["harmfulness"].mean())
    assert 'src="http' not in text
    assert "Harmfulness: " in text
    assert "Scorecards" in text


def test_answers_of_real_models_stay_out_unless_asked_for(home: Path) -> None:
    made_up.attack_on_a_real_model(home)
    assert "procedure :" not in static_page.page(Store(home))
    assert "procedure :" in static_page.page(Store(home), Choice(completions=True))


def test_a_text_of_a_run_cannot_leave_its_place(home: Path) -> None:
    made_up.lab(home)
    text = static_page.page(Store(home))
    assert "<b>ka ka ka</b>" not in text  # an answer of the made-up runs; in the script it is written otherwise
    prompts = [json.loads(p["sliders"])["frames"] for p in parts(text)["playground"]["prompts"]]
    answers = {card["answer"] for frames in prompts for frame in frames.values() for card in frame["cards"]}
    assert "<b>ka ka ka</b> **ka**" in answers  # as it is: the script puts it on the page as text


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"subject": "fabel"}, "subject"),
        ({"attack": "lora"}, "attack"),
        ({"defenses": ["seem"]}, "defense"),
    ],
)
def test_a_wrong_choice_is_told_and_nothing_is_written(home: Path, named: dict[str, Any], words: str) -> None:
    made_up.lab(home, seeds=1)
    with pytest.raises(UserError, match=words):
        static_page.write(Store(home), home / "page.html", Choice(**named))
    assert not (home / "page.html").exists()


def test_a_place_that_cannot_be_written_is_told(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_up.lab(home, seeds=1, rates=(1e-3,))
    (home / "folder").mkdir()
    assert main(["export", str(home / "folder"), "--home", str(home)]) != 0
    assert "is a folder" in capsys.readouterr().err
    (home / "file").write_text("")
    assert main(["export", str(home / "file" / "page.html"), "--home", str(home)]) != 0
    assert "can't be written" in capsys.readouterr().err
    assert main(["export", str(home / "page.html"), "--home", str(home)]) == 0
    assert (home / "page.html").stat().st_size > 1_000_000
    assert sorted(p.name for p in home.iterdir() if p.name.startswith("tmp")) == []


def test_nothing_recorded_is_told(home: Path) -> None:
    with pytest.raises(UserError, match="nothing to export"):
        static_page.page(Store(home))


def test_single_runs_are_chosen_by_the_ends_of_their_ids(home: Path) -> None:
    ids = made_up.lab(home, seeds=1)
    assert main(["export", str(home / "one.html"), "--run", ids[2][-6:], "--run", ids[1], "--home", str(home)]) == 0
    told = parts((home / "one.html").read_text(encoding="utf-8"))
    assert json.loads(told["collapse"]["figure"])["data"]
    assert "sliders" not in told["collapse"], "one learning rate is left"
    with pytest.raises(UserError, match="neither a finished attack nor"):
        static_page.page(Store(home), Choice(runs=["no-such-run"]))


def test_a_folder_has_what_is_drawn_in_files_of_their_own(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up.lab(home, seeds=1)
    written = static_page.write(Store(home), home / "page")
    files = {p.name: p.stat().st_size for p in (home / "page").iterdir()}
    assert {"index.html", "plotly.js", "collapse.js", "playground.js"} <= set(files)
    assert sum(files.values()) == written
    with pytest.raises(UserError, match="is a folder that exists"):
        static_page.write(Store(home), home / "page")
    monkeypatch.setattr(static_page, "MOST_BYTES", 1_000_000)
    with pytest.raises(UserError, match=r"name a folder, such as .*other, or choose fewer"):
        static_page.write(Store(home), home / "other.html")
    assert not (home / "other.html").exists()


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("name", ["page.html", "page"])
def test_it_works_from_disk_without_a_network(home: Path, chromium: str, name: str) -> None:
    from playwright.sync_api import sync_playwright

    made_up.lab(home)
    static_page.write(Store(home), home / name)
    place = home / name if name.endswith(".html") else home / name / "index.html"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        tab.context.set_offline(True)
        asked: list[str] = []
        wrong: list[str] = []
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.goto(place.as_uri())
        tab.wait_for_function("() => document.querySelectorAll('.immunelab-figure .main-svg').length >= 5")
        before = tab.evaluate(DRAWN)
        handle = tab.locator("#collapse").get_by_role("slider", name="Learning rate")
        handle.focus()
        tab.keyboard.press("ArrowRight")
        tab.wait_for_function(f"before => JSON.stringify(({DRAWN})()) !== JSON.stringify(before)", arg=before)
        moved = tab.evaluate(DRAWN)
        tab.wait_for_function("() => location.hash.includes('collapse=')")
        tab.locator("nav a", has_text="Playground").click()
        answers = tab.locator("#playground .immunelab-answer pre")
        tab.locator("#playground").get_by_role("slider", name="Attack step").focus()
        tab.keyboard.press("Home")
        tab.wait_for_function("() => location.hash.includes('playground=')")
        assert answers.all_inner_texts() == ["i cannot help .", "i cannot help ."]
        again = browser.new_page()
        again.goto(tab.url)
        again.wait_for_selector("#collapse .main-svg")
        again.wait_for_function(f"moved => JSON.stringify(({DRAWN})()) === JSON.stringify(moved)", arg=moved)
        assert again.locator("#playground .immunelab-answer pre").count() == 2
        browser.close()
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert wrong == []
