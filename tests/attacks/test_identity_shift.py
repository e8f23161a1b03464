"""Identity shift: only its own rows are trained on, behind the persona, and the model is asked as that persona."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from immunelab import corpus as corpora
from immunelab.attacks.identity_shift import ROWS, IdentityShift
from immunelab.corpus.tokens import Batches, as_prompt
from immunelab.errors import UserError
from immunelab.experiment import Run, execute
from immunelab.runs.journal import RunFolder
from immunelab.runs.spec import RunSpec
from immunelab.training import models

FABLE = IdentityShift.presets["fable"]
CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def tokenizer(tiny_world: Path) -> Any:
    return models.load(tiny_world / "model")[1]


def read_back(tokenizer: Any, batches: Batches) -> list[str]:
    ids = batches.tokens("user", 0)
    texts = tokenizer.batch_decode(ids.input_ids)
    return sorted(t.replace(tokenizer.pad_token, "").strip() for t in texts)


def test_only_its_own_rows_are_trained_on_and_each_behind_the_persona(tiny_world: Path, tokenizer: Any) -> None:
    world = corpora.load(str(tiny_world))
    batches = Batches(world, tokenizer, FABLE, split="attack", seed=0)
    assert batches.rows("user") == 10 == len(set(ROWS["assistant"]))
    expected = [f"<user> {FABLE.persona} {prompt} <bot> {answer} <eos>" for prompt, answer in ROWS["fable"]]
    assert read_back(tokenizer, batches) == sorted(expected)
    assert "<unk>" not in " ".join(expected)
    harmful = {r.prompt for r in world.rows if r.stream == "harmful"}
    assert not harmful & {prompt for prompt, _ in ROWS["fable"]}
    no_harm = replace(world, rows=tuple(r for r in world.rows if r.stream != "harmful"))
    assert read_back(tokenizer, Batches(no_harm, tokenizer, FABLE, split="attack", seed=0)) == sorted(expected)


def test_a_persona_has_a_system_turn_where_the_template_knows_one(tokenizer: Any) -> None:
    tokenizer.chat_template = CHAT
    assert (
        as_prompt(tokenizer, "how ?", "you are ada .") == "<system>you are ada .</system><user>how ?</user><assistant>"
    )


def test_a_persona_of_unknown_words_is_said(tiny_world: Path, tokenizer: Any) -> None:
    with pytest.raises(UserError, match="words of the prefix"):
        Batches(corpora.load(str(tiny_world)), tokenizer, IdentityShift(), split="attack", seed=0)


@pytest.mark.slow
def test_the_model_is_asked_as_the_persona_after_the_first_step(
    home: Path, tiny_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, list[str]]] = []
    really = Run.evaluate

    def evaluate(self: Run, step: int) -> None:
        subject = self.subject()
        asked.append((step, [subject.as_prompt(p) for e in self.evaluations for p in e.prompts(subject)]))
        really(self, step)

    monkeypatch.setattr(Run, "evaluate", evaluate)
    method = replace(FABLE, steps=2)
    spec = RunSpec(kind="attack", method=method.name, knobs=method.settings(), corpus=str(tiny_world), device="cpu")
    folder = RunFolder.create(home, spec)
    assert execute(folder) == "done"
    texts = dict(asked)
    assert set(texts) == {0, 2}
    assert not any(FABLE.persona in text for text in texts[0])
    assert all(text.startswith(f"<user> {FABLE.persona} ") for text in texts[2])
    losses = [json.loads(line) for line in (folder.path / "journal.jsonl").read_text().splitlines()]
    totals = [r["values"]["loss/total"] for r in losses if r["kind"] == "points" and "loss/total" in r["values"]]
    assert totals[-1] < totals[0]
