"""The app of a lab that is open for reading only: pages offer nothing that changes it, and forged clicks do nothing."""

from __future__ import annotations

from pathlib import Path

import made_up
import pytest
from apptest import ok, page, shown, text

from immunelab.runs import access
from immunelab.runs.journal import RunFolder, folders
from immunelab.ui import navigation

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("home")]
HARMLESS = ("Back", "Next", "Run", "Stop")  # turning the tour's steps, and asking the database


@pytest.fixture
def closed(home: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    ids = made_up.lab(home, seeds=1, running=True)
    monkeypatch.setenv(access.SETTING, "1")
    return ids


@pytest.mark.parametrize("name", sorted(navigation.ENTRIES))
def test_no_page_offers_a_change(name: str, closed: list[str]) -> None:
    query = {"run": closed[-1]} if name == "runs" else {"view": "Pairs"} if name == "data" else {}
    test = page(name, **query)
    assert not test.error
    offered = [b.label for b in test.button if not b.label.startswith(HARMLESS)]
    assert offered == []
    assert not test.get("file_uploader")
    assert name != "launch" or "Nothing can be started here" in text(test)


def test_an_empty_page_points_to_nothing_that_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(navigation, "link", lambda name, *_: seen.append(name))
    for closed in ("", "1"):
        monkeypatch.setenv(access.SETTING, closed)
        page("collapse")
        assert seen == ["launch", "overview"]  # those of the first look


def test_sliders_stop_at_recorded_intensities(closed: list[str]) -> None:
    (data,) = shown(page("collapse"))
    assert not any(slider["free"] for slider in data["sliders"])


@pytest.mark.parametrize(
    ("name", "link"),
    [
        ("collapse", {"rate": "0.00047"}),
        ("tour", {"step": "4 Drag the intensity", "rate": "0.00047"}),
        ("launch", {"from": "x", "corpus": "/etc"}),
        ("data", {"corpus": "/etc", "view": "Pairs"}),
        ("playground", {"ask": "what is two plus two ?"}),
        ("runs", {"run": "../x"}),
    ],
)
def test_links_start_nothing(name: str, link: dict[str, str], home: Path, closed: list[str]) -> None:
    page(name, **link)
    assert sorted(f.run_id for f in folders(home)) == sorted(closed)


def test_a_button_that_a_page_drew_before_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a forged message on the socket: the page lets it through, and what lies below does not."""
    going = made_up.lab(home, seeds=1, running=True)[-1]
    runs, launch, labels = page("runs", run=going), page("launch"), page("runs", run=going, tab="Labels")
    monkeypatch.setattr("immunelab.ui.actions.access.read_only", lambda: False)
    monkeypatch.setattr("immunelab.runs.access.refuse", _refuse)
    for test in (runs.button(key="stop").click(), launch.button(key="start").click(), labels.button[-1].click()):
        assert any("open for reading only" in e.value for e in ok(test.run()).error)
    assert not RunFolder.open(home, going).stop_requested()
    assert going in {f.run_id for f in folders(home)}


def _refuse(what: str) -> None:
    raise access.ReadOnly(f"This lab is open for reading only, so {what}.")
