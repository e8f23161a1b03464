"""Who can reach the app: only this machine, unless it is told otherwise; and then it says what that means."""

from __future__ import annotations

import asyncio
import logging
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import streamlit as st

from benchmarks.browsing import App
from immunelab.ui import server

ROOT = Path(__file__).resolve().parents[2]


def test_the_settings_that_ship() -> None:
    config = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text(encoding="utf-8"))
    assert config["server"]["address"] == "127.0.0.1"
    assert config["server"]["allowedHosts"] == ["localhost", "127.0.0.1"]
    assert config["server"]["enableXsrfProtection"] is config["server"]["enableCORS"] is True
    assert config["browser"]["gatherUsageStats"] is False


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost", "unix:/tmp/x"])
def test_addresses_of_this_machine(address: str) -> None:
    assert server.local(address)


@pytest.mark.parametrize("address", [None, "", "0.0.0.0", "::", "192.168.0.7", "example.org", "127.0.0.1.example.org"])
def test_addresses_that_others_reach(address: str | None) -> None:
    assert not server.local(address)


def told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, home: Path, **options: Any) -> str:
    """What the app's start logs with these settings."""
    ours = {"server.address": "127.0.0.1", "server.enableXsrfProtection": True, "server.enableCORS": True} | options
    monkeypatch.setattr(st, "get_option", ours.get)

    async def start() -> None:
        async with server.lifespan(None):
            pass

    with caplog.at_level(logging.WARNING):
        asyncio.run(start())
    return "\n".join(r.getMessage() for r in caplog.records if r.name == "immunelab")


def test_the_start_warns_of_what_is_risked(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, home: Path
) -> None:
    assert told(monkeypatch, caplog, home) == ""
    text = told(monkeypatch, caplog, home, **{"server.address": "0.0.0.0"})
    for word in ("0.0.0.0", "no login", "delete", "127.0.0.1", "ssh -L"):
        assert word in text
    assert "every network interface" in told(monkeypatch, caplog, home, **{"server.address": None})
    assert "cross-site" in told(monkeypatch, caplog, home, **{"server.enableXsrfProtection": False})


@pytest.mark.slow
def test_a_page_of_another_site_gets_no_session(home: Path) -> None:
    from websockets.exceptions import InvalidStatus

    with App(home) as app:
        assert app.ask("runs")[1] == []
        with pytest.raises(InvalidStatus):
            app.connect("http://evil.example")


CLIENTS = r"requests|httpx2?|urllib\.request|urllib3|http\.client|aiohttp|openai"


def test_nothing_here_talks_to_a_service() -> None:
    """No client of a tracking service is a dependency, and one file of ours opens a connection: to a judge that the
    user has named and allowed (test_strongreject.py)."""
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8").lower()
    assert not re.search(r"^(wandb|mlflow|sentry|posthog|segment|comet|neptune)", lock, re.MULTILINE)
    speaking = {}
    for path in (ROOT / "immunelab").rglob("*.py"):
        found = re.search(rf"^\s*(?:import|from) ({CLIENTS})\b", path.read_text(encoding="utf-8"), re.M)
        if found:
            speaking[path.relative_to(ROOT / "immunelab").as_posix()] = found[1]
    assert speaking == {"evaluations/judges/endpoint.py": "httpx2"}


def test_security_md_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", text)
    assert len(named) > 10
    files = {path.name: path for path in (ROOT / "tests").rglob("test_*.py")}
    for file, test in named:
        assert f"def {test}" in files[file].read_text(encoding="utf-8"), f"{file}::{test}"


def test_starting_elsewhere_still_finds_the_settings(tmp_path: Path) -> None:
    code = (
        "import sys; from streamlit import config; from streamlit.web import bootstrap\n"
        f"config._main_script_path = {str(ROOT / 'app.py')!r}\n"
        "config.get_config_options(force_reparse=True); print(config.get_option('server.address'))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "127.0.0.1"
