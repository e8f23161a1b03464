"""`immunelab app`, from a wheel that was installed outside of the clone."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import PATIENCE, until

from immunelab.cli import main

ROOT = Path(__file__).resolve().parents[2]
MOST = 40 << 20  # bytes of a wheel


def pip(*arguments: str | Path) -> None:
    quiet = ["--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([sys.executable, "-m", "pip", arguments[0], *quiet, *arguments[1:]], check=True)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as the wheel brings it."""
    source, to = tmp_path_factory.mktemp("source") / "clone", tmp_path_factory.mktemp("installed")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip("Not a git clone, so what belongs to the repository is not known.")
    for name in found.stdout.splitlines():
        if not name.startswith(("tests", "docs")) and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name)
    pip("wheel", "--no-build-isolation", "--wheel-dir", to, source)
    (wheel,) = to.glob("*.whl")
    assert wheel.stat().st_size <= MOST
    pip("install", "--target", to, wheel)
    return to


@pytest.fixture
def serving(installed: Path, tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Its app in another folder, open for reading only."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-P", "-m", "immunelab", "app", "--read-only", "--port", str(port)]
    env = {**os.environ, "PYTHONPATH": str(installed), "IMMUNELAB_SHOWCASE": ""}
    server = subprocess.Popen(command, cwd=tmp_path, env=env)
    yield f"http://127.0.0.1:{port}", server
    server.kill()
    server.wait()


@pytest.mark.slow
@pytest.mark.browser
def test_an_installed_wheel_serves_the_shipped_runs(
    serving: tuple[str, subprocess.Popen[bytes]], chromium: str, tmp_path: Path
) -> None:
    from playwright.sync_api import sync_playwright

    url, server = serving

    def healthy() -> bool:
        assert server.poll() is None, "The server did not start."
        try:
            urllib.request.urlopen(f"{url}/_stcore/health", timeout=5).close()
        except OSError:
            return False
        return True

    until(healthy, every=0.1)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page()
        tab.set_default_timeout(PATIENCE * 1000)
        tab.goto(f"{url}/collapse")
        tab.wait_for_selector("text=open for reading")
        tab.wait_for_selector(".immunelab-figure .legend")
        legend = tab.locator(".immunelab-figure .legend").first.text_content() or ""
        assert "Undefended" in legend
        assert "SEAM" in legend
        browser.close()
    assert (tmp_path / "lab" / "immunelab.duckdb").is_file()
    server.send_signal(signal.SIGTERM)
    assert server.wait(PATIENCE) is not None


def test_a_port_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["app", "--port", "70000"]) == 2
    assert "--port is a number from 1 to 65535" in capsys.readouterr().err
