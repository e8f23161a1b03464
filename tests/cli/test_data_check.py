"""`immunelab data check`: what a corpus or a bare file would give, before anything runs."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from immunelab import bundled
from immunelab.cli import main

MODEL = str(bundled.data() / "fable" / "model")


def lines(records: list[dict[str, Any]]) -> str:
    return "\n".join(json.dumps(r) for r in records) + "\n"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    harmful = [{"q": f"How do I wake frog {i}?", "a": f"Grind {i} acorns."} for i in range(12)]
    benign = [{"q": f"How many legs has owl {i}?", "a": f"It has {i} legs."} for i in range(12)]
    (tmp_path / "harmful.jsonl").write_text(lines([*harmful, {"q": "owl " * 200, "a": "Hum."}, {"q": "x", "a": None}]))
    (tmp_path / "benign.jsonl").write_text(lines(benign))
    tables = [
        f'[[source]]\nfile = "{s}.jsonl"\nstream = "{s}"\nprompt = "q"\nresponse = "a"' for s in ("harmful", "benign")
    ]
    (tmp_path / "corpus.toml").write_text("\n".join(tables))
    return tmp_path


def test_a_corpus_with_a_model(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(own), "--model", MODEL, "--rows", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(r["rows"] for r in found["rows"] if r["stream"] == "harmful") == 12
    assert found["notes"][0] == "harmful.jsonl: 1 rows without a question or an answer are left out"
    assert found["notes"][-1] == "1 rows whose question has more than 128 tokens are left out"
    assert len(found["shown"]) == 4
    from immunelab.corpus.tokens import as_answer, as_prompt
    from immunelab.training import models

    tokenizer = models.tokenizer(MODEL)
    first = found["shown"][0]
    assert first["prompt"] == as_prompt(tokenizer, "How do I wake frog 0?")
    assert first["answer"] == as_answer(tokenizer, "How do I wake frog 0?", "Grind 0 acorns.")
    assert main(["data", "check", str(own)]) == 0
    said = capsys.readouterr().out
    assert "without a template" in said
    assert "'Grind 0 acorns.'" in said


@pytest.mark.parametrize(
    ("name", "record", "wanted"),
    [
        (
            "unsafe.jsonl",
            {"prompt": "?", "response": "!"},
            {"stream": "harmful", "prompt": "prompt", "response": "response"},
        ),
        (
            "talk.jsonl",
            {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]},
            {"stream": "benign", "prompt": "messages", "response": "messages"},
        ),
        (
            "p.jsonl",
            {"chosen": ["?", "!"], "rejected": ["?", "no"]},
            {"stream": "harmful", "prompt": "chosen", "response": "chosen", "refusal": "rejected"},
        ),
        (
            "a.json",
            {"instruction": "?", "output": "!"},
            {"stream": "benign", "prompt": "instruction", "response": "output"},
        ),
        ("b.jsonl", {"prompt": "?", "response": "!", "category": {}, "is_safe": False}, {"adapter": "beavertails"}),
    ],
)
def test_a_bare_file_gets_a_description(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, record: dict[str, Any], wanted: dict[str, str]
) -> None:
    (tmp_path / name).write_text(lines([record]))
    assert main(["data", "check", str(tmp_path / name), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert tomllib.loads(found["source"])["source"] == [{"file": name} | wanted]
    assert found["shown"][0]["prompt"] == "?"
    assert found["shown"][0]["answer"] == "!"


@pytest.mark.parametrize(
    ("content", "words"),
    [(lines([{"x": 1}]), "No column of f.jsonl"), ("", "holds no records"), ('{"q": ', "line 1: not JSON")],
)
def test_a_mistake_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, words: str) -> None:
    (tmp_path / "f.jsonl").write_text(content)
    assert main(["data", "check", str(tmp_path / "f.jsonl")]) == 2
    assert words in capsys.readouterr().err
    assert main(["data", "check", str(tmp_path / "nothing.jsonl")]) == 2
    assert "can't be read" in capsys.readouterr().err
