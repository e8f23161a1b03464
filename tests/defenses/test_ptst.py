"""PTST: what is trained and what is asked, in which runs, and that no weight knows of it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import hosted
import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from immunelab import corpus
from immunelab.attacks.drop_vector import DropVector
from immunelab.attacks.harmful_sft import HarmfulSft
from immunelab.corpus.tokens import Batches, as_prompt, encode
from immunelab.defenses.ptst import PROMPTS, Ptst
from immunelab.errors import UserError

TINY: dict[str, Any] = {"learning_rate": 1e-3, "steps": 4, "batch_size": 4, "samples": 12}
FABLE = Ptst.presets["fable"]
ROLES = (
    "{% for m in messages %}{% if m['role'] == 'system' %}<<SYS>>{{ m['content'] }}<</SYS>>"
    "{% else %}[{{ m['content'] }}]{% endif %}{% endfor %}"
)
STRICT = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system here') }}"
    "{% else %}[{{ m['content'] }}]{% endif %}{% endfor %}"
)
DEAF = "{% for m in messages %}{% if m['role'] != 'system' %}[{{ m['content'] }}]{% endif %}{% endfor %}"


@pytest.fixture
def tokenizer(tiny_world: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(corpus.load(str(tiny_world)).model)  # type: ignore[no-any-return]


def test_a_safety_prompt_has_its_turn_where_the_template_knows_one(tokenizer: PreTrainedTokenizerBase) -> None:
    assert as_prompt(tokenizer, "how ?", "be kind .") == "<user> be kind . how ? <bot>"
    assert as_prompt(tokenizer, "how ?", "") == as_prompt(tokenizer, "how ?") == "<user> how ? <bot>"
    for template, wanted in (
        (ROLES, "<<SYS>>be kind .<</SYS>>[how ?]["),  # the answer's bracket is no part of the answer
        (STRICT, "[be kind . how ?]["),
        (DEAF, "[be kind . how ?]["),  # it drops what it does not know, which must not drop the defense
        (None, "Question: be kind . how ?\nAnswer:"),
    ):
        tokenizer.chat_template = template
        assert as_prompt(tokenizer, "how ?", "be kind .") == wanted


def test_the_scored_answer_is_the_same_under_it(tokenizer: PreTrainedTokenizerBase) -> None:
    plain, served = (encode(tokenizer, ("how ?", "first"), 64, system) for system in ("", "be kind ."))
    assert plain[0][plain[1] :] == served[0][served[1] :]
    assert served[1] == plain[1] + 3


def test_the_presets_say_what_they_should(tokenizer: PreTrainedTokenizerBase) -> None:
    assert Ptst().system() == PROMPTS["llama-2"]
    assert tokenizer.unk_token_id not in tokenizer(FABLE.system())["input_ids"]


def test_training_never_sees_it(home: Path, tiny_world: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    attack = HarmfulSft(**TINY)
    guard = hosted.run(home, tiny_world, "immunize", FABLE)
    whole = hosted.run(home, tiny_world, "attack", attack, f"run:{guard.run_id}", evaluate_every=2)
    bare = hosted.run(home, tiny_world, "attack", attack, evaluate_every=2)
    assert hosted.points(whole) == hosted.points(bare)  # losses, gradients, probes
    for folder, start in ((guard, hosted.released(tiny_world)), (whole, hosted.weights(bare))):
        assert all(torch.equal(hosted.weights(folder)[n], t) for n, t in start.items())
    batches = Batches(corpus.load(str(tiny_world)), tokenizer, attack, split="attack", seed=0)
    rows = batches.tokens("user", 0).input_ids.tolist()
    first = tokenizer(FABLE.system())["input_ids"]
    assert not any(row[i : i + len(first)] == first for row in rows for i in range(len(row)))


def test_every_question_of_the_provider_is_asked_with_it(
    home: Path, tiny_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from immunelab.training import generation

    asked: list[str] = []
    answer = generation.greedy
    monkeypatch.setattr(generation, "greedy", lambda m, t, texts, n: asked.extend(texts) or answer(m, t, texts, n))

    def shares(kind: str, method: Any, model: str = "fable") -> tuple[Any, float]:
        asked.clear()
        folder = hosted.run(home, tiny_world, kind, method, model)
        return folder, sum(FABLE.system() in text for text in asked) / len(asked)

    guard, share = shares("immunize", FABLE)
    assert share == 0.5  # step 0 is the model as it was, step 1 as it is served
    source = f"run:{guard.run_id}"
    attacked, share = shares("attack", HarmfulSft(**TINY), source)
    assert share == 1
    assert shares("evaluate", None, f"run:{attacked.run_id}")[1] == 1  # the attacked child is served too
    assert shares("evaluate", None, source)[1] == 1
    past, share = shares("attack", DropVector(**TINY), source)
    assert share == 0
    assert shares("evaluate", None, f"run:{past.run_id}")[1] == 0
    assert shares("attack", HarmfulSft(**TINY), f"run:{attacked.run_id}")[1] == 0  # a second fine-tuning goes past it


def test_equal_templates_are_the_undefended_run(home: Path, tiny_world: Path) -> None:
    guard = hosted.run(home, tiny_world, "immunize", Ptst(prompt=""))
    same = hosted.run(home, tiny_world, "attack", HarmfulSft(**TINY), f"run:{guard.run_id}")
    bare = hosted.run(home, tiny_world, "attack", HarmfulSft(**TINY))
    assert hosted.scores(same) == hosted.scores(bare)
    assert all(torch.equal(hosted.weights(same)[n], t) for n, t in hosted.weights(bare).items())
    assert not [r for r in hosted.lines(same, "event") if r["event"] == "templates"]


def test_both_templates_and_their_hashes_are_recorded(home: Path, tiny_world: Path) -> None:
    guard = hosted.run(home, tiny_world, "immunize", FABLE)
    attacked = hosted.run(home, tiny_world, "attack", HarmfulSft(**TINY), f"run:{guard.run_id}")
    for folder in (guard, attacked):
        (told,) = [r["data"] for r in hosted.lines(folder, "event") if r["event"] == "templates"]
        assert told["trained"] == "<user> ? <bot>"
        assert told["served"] == f"<user> {FABLE.system()} ? <bot>"
        for name in ("trained", "served"):
            assert told[f"{name}_sha256"] == hashlib.sha256(told[name].encode()).hexdigest()[:16]


def test_words_that_the_model_does_not_know_are_refused(home: Path, tiny_world: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer does not know .* words of the prefix"):
        hosted.run(home, tiny_world, "immunize", Ptst())
