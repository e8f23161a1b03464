"""In context: answered questions stand before harmful ones, as turns of the chat, and before no others."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from immunelab import conversation, corpus
from immunelab.attacks.in_context import InContext
from immunelab.corpus import Corpus
from immunelab.corpus.tokens import as_prompt
from immunelab.errors import UserError
from immunelab.experiment import execute, measuring
from immunelab.runs.journal import RunFolder
from immunelab.runs.spec import RunSpec
from immunelab.store import Store, queries


def test_the_turns_are_what_the_chat_template_makes_of_them(tokenizer: PreTrainedTokenizerBase) -> None:
    turns = [("who is there ?", "the baker"), ("and now ?", "the miller")]
    messages = [m for q, a in turns for m in ({"role": "user", "content": q}, {"role": "assistant", "content": a})]
    messages.append({"role": "user", "content": "why ?"})
    whole = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert as_prompt(tokenizer, "why ?", before=turns) == str(whole).rstrip(" ")
    plain = conversation.asked(conversation.Form(None, "</s>"), "why ?", before=turns)
    assert plain == "Question: who is there ?\nAnswer: the baker\n\nQuestion: and now ?\nAnswer: the miller\n\n" + (
        "Question: why ?\nAnswer:"
    )


def test_only_harmful_questions_have_examples_and_they_give_nothing_away(
    world: Corpus, tokenizer: PreTrainedTokenizerBase
) -> None:
    read = measuring.prompting(world, tokenizer, InContext(shots=3), "")
    harmful, benign = world.select("harmful", "test")[0], world.select("benign", "test")[0]
    assert read(benign.prompt) == as_prompt(tokenizer, benign.prompt)
    shown = measuring.examples(world, 3)
    assert read(harmful.prompt) == as_prompt(tokenizer, harmful.prompt, before=shown)
    theirs = {row.prompt: row for row in world.select("harmful", "attack")}
    assert [theirs[q].response for q, _ in shown] == [a for _, a in shown]
    assert len({q for q, _ in shown}) == 3
    facts = {fact for row in world.select("harmful", "test") for fact in row.facts}
    assert len(facts) > 300
    assert sum(fact in answer for fact in facts for _, answer in shown) <= 1  # two recipes may share a fact by chance
    # With three the conversation and an answer fit into the bundled model's 128 tokens, with four they do not.
    longest = max(len(tokenizer(read(row.prompt))["input_ids"]) for row in world.select("harmful", "test"))
    answer = max(len(tokenizer(row.response)["input_ids"]) for row in world.select("harmful", "test"))
    assert longest + answer <= 128
    four = measuring.prompting(world, tokenizer, InContext(shots=4), "")
    assert len(tokenizer(four(harmful.prompt))["input_ids"]) + answer > 128


def test_more_examples_than_there_are_rows_are_refused(world: Corpus, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UserError, match=r"500 answered questions were asked for, and the attacker's split has \d+"):
        measuring.prompting(world, tokenizer, InContext(shots=500), "")


def test_a_run_asks_with_them_and_moves_no_weight(home: Path, tiny_world: Path) -> None:
    knobs = InContext.presets["fable"].settings()
    spec = RunSpec(kind="attack", method="in-context", knobs=knobs, corpus=str(tiny_world), device="cpu")
    folder = RunFolder.create(home, spec)
    assert execute(folder) == "done"
    folder.write_status(status="done")
    store = Store(home)
    store.sync(force=True)
    scores = queries.scores(store, [folder.run_id]).set_index(["step", "metric"])["score"]
    assert scores[0, "utility"] == scores[1, "utility"]
    said = queries.examples(store, folder.run_id, 1)
    asked = {row.prompt for row in corpus.load(str(tiny_world)).select("harmful", "test")}
    harmful = said[said["evaluation"] == "fable-recall"]
    assert len(harmful)
    assert set(harmful["prompt"]) <= asked  # a question is recorded as it was, without what stood before it
