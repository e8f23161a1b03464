"""`immunelab pairs`: what it builds is what runs take, and a mistake is a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pretend_embedder import Fake

from immunelab.cli import main
from immunelab.corpus import embedding, pairing
from immunelab.defenses.sdd import Sdd


@pytest.fixture(autouse=True)
def fake(home: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """No model is loaded."""
    made = Fake()
    monkeypatch.setattr(embedding, "MiniLM", lambda device: made)
    return made


def test_it_builds_what_a_run_takes(home: Path, fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pairs", "build", "--seed", "3", "--json"]) == 0
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert "embedding texts: 256 of 495, " in printed.err
    from immunelab import corpus

    method = Sdd.presets["fable"]
    calls = fake.calls
    same = pairing.build(
        corpus.load("fable"), pairing.Rule.of(method), embedder=fake, seed=3, cache=home / pairing.FOLDER
    )
    assert fake.calls == calls  # a run finds it
    assert same.statistics() == told
    assert main(["pairs", "build", "--seed", "3"]) == 0
    assert f"immunelab pairs show {same.key}" in capsys.readouterr().out


def test_it_shows_what_was_built(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pairs", "show"]) == 0
    assert "No pairs in this home yet" in capsys.readouterr().out
    main(["pairs", "build", "--similarity", "-0.9", "--redraws", "1"])
    main(["pairs", "build", "--pairs", "30", "--words", "1"])
    capsys.readouterr()
    main(["pairs", "show", "--json"])
    newest, first = json.loads(capsys.readouterr().out)
    assert (newest["pairs"], newest["words"], first["similarity"], first["redraws"]) == (30, 1, -0.9, 1)
    assert main(["pairs", "show", first["key"][:9], "--limit", "4"]) == 0
    text = capsys.readouterr().out
    assert "fallbacks   3" in text
    assert text.count("fallback ") >= 3
    main(["pairs", "show", "last", "--json", "--limit", "0"])
    told = json.loads(capsys.readouterr().out)
    assert (told["key"], len(told["rows"])) == (newest["key"], 30)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("build --similarity 1.5", "similarity takes a number from -1 to 1, and got '1.5'"),
        ("build --redraws few", "redraws takes a whole number"),
        ("build --pairs 0", "pairs takes a whole number from 1"),
        ("build --seed -1", "--seed is at least 0; got -1"),
        ("build --split tset", "Did you mean 'test'"),
        ("build --preset fabel", "Did you mean 'fable'"),
        ("build --corpus nowhere", "There is no corpus 'nowhere'"),
        ("build --words 50", "has no benign answer of 50 words or more"),
        ("show abc", "There is no pairing called 'abc'"),
    ],
)
def test_a_mistake_is_a_sentence(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pairs", *line.split()]) == 2
    assert message in capsys.readouterr().err


def test_files_that_cannot_be_read_are_named(tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "world.jsonl").write_text('{"id": "a", "prompt": "p"}\n')
    assert main(["pairs", "build", "--corpus", str(tmp_path)]) == 2
    assert "world.jsonl, line 1: no field 'response'" in capsys.readouterr().err
    main(["pairs", "build"])
    (file,) = (home / pairing.FOLDER).glob("*.jsonl")
    file.write_text("\n".join(file.read_text().splitlines()[:9]))
    assert main(["pairs", "show", "last"]) == 2
    assert "is broken. Build the pairs again with: immunelab pairs build" in capsys.readouterr().err
    main(["pairs", "build"])
    assert main(["pairs", "show", "last"]) == 0
