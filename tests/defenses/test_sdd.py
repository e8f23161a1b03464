"""SDD and SDD_reject: the stream they see, the loss they take, and what they are equal to."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made_batches import batch
from nearness import ROUNDED, relative
from pretend_embedder import Fake
from transformers import PreTrainedModel

from immunelab import corpus as corpora
from immunelab.corpus import pairing
from immunelab.corpus.tokens import Batches, unrelated
from immunelab.defenses.extra_safety_sft import ExtraSafetySft
from immunelab.defenses.sdd import Sdd, SddReject
from immunelab.defenses.seam import Seam
from immunelab.errors import UserError
from immunelab.method import Batch

FABLE, REJECT = Sdd.presets["fable"], SddReject.presets["fable"]


@pytest.fixture(scope="module")
def made(world: corpora.Corpus) -> pairing.Pairing:
    return pairing.build(world, pairing.Rule.of(FABLE), embedder=Fake())


def left(method: Sdd | ExtraSafetySft, model: PreTrainedModel, given: Batch) -> tuple[float, list[torch.Tensor]]:
    value = method.step(model, given)["loss/total"]
    return value, [p.grad.clone() for p in model.parameters() if p.grad is not None]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_it_is_fine_tuning_on_the_unrelated_answers(llama: PreTrainedModel) -> None:
    given = batch()
    value, found = left(Sdd(), llama, given)
    tokens = given.unrelated
    assert tokens
    llama.zero_grad()
    logits = llama(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).logits.double()
    total, scored = torch.zeros((), dtype=torch.float64), 0
    for row in range(len(tokens.input_ids)):
        for place in range(5, int(tokens.attention_mask[row].sum())):  # the prompt has five tokens
            chances = torch.exp(logits[row, place - 1]) / torch.exp(logits[row, place - 1]).sum()
            total, scored = total - torch.log(chances[tokens.input_ids[row, place]]), scored + 1
    (total / scored).backward()
    assert value == pytest.approx(float(total.detach()) / scored, rel=1e-5)
    by_hand = [p.grad for p in llama.parameters()]
    assert relative(found, by_hand) < ROUNDED  # type: ignore[arg-type]


def test_with_refusals_as_answers_it_is_extra_safety_sft(llama: PreTrainedModel) -> None:
    given = batch()
    value, found = left(Sdd(), llama, given._replace(unrelated=given.refusal))
    control, same = left(ExtraSafetySft(mask="response"), llama, given)
    assert value == control
    assert equal(found, same)


def test_replay_is_a_share_of_the_loss(llama: PreTrainedModel) -> None:
    given = batch()
    none, all_ = left(Sdd(replay=0), llama, given), left(Sdd(replay=1), llama, given)
    value, found = left(Sdd(replay=0.3), llama, given)
    assert value == pytest.approx(0.7 * none[0] + 0.3 * all_[0], rel=1e-5)
    assert relative(found, [0.7 * away + 0.3 * keep for away, keep in zip(none[1], all_[1], strict=True)]) < ROUNDED
    assert all_[0] == left(Sdd(), llama, given._replace(unrelated=given.benign))[0]
    assert "loss/benign" not in Sdd().step(llama, given)  # without replay no benign row is looked at


def test_only_the_answers_are_scored(world: corpora.Corpus, made: pairing.Pairing, tokenizer) -> None:  # type: ignore[no-untyped-def]
    batches = Batches(world, tokenizer, FABLE, split="defense", seed=0, pairing=made)
    assert batches.rows("unrelated") == 360
    answers = {pair.prompt: pair.answer for pair in made.pairs}
    tokens = batches(0).unrelated
    assert tokens
    for ids, labels in zip(tokens.input_ids, tokens.labels, strict=True):
        prompt = tokenizer.decode(ids).split("<user> ")[1].split(" <bot>")[0]
        assert tokenizer.decode(labels[labels != -100]) == f"{answers[prompt]} <eos>"
    harm = {word for row in world.select("harmful", "defense") for fact in row.facts for word in fact.split()}
    assert not harm & set(tokenizer.decode(tokens.labels[tokens.labels != -100]).split())


def test_what_harmful_rows_say_beside_their_prompt_changes_nothing(
    world: corpora.Corpus, made: pairing.Pairing, tokenizer, llama: PreTrainedModel
) -> None:  # type: ignore[no-untyped-def]
    other = tuple(
        replace(row, response="red", refusal="blue", is_safe=True, facts=()) if row.stream == "harmful" else row
        for row in world.rows
    )
    changed = replace(world, rows=other)
    again = pairing.build(changed, pairing.Rule.of(FABLE), embedder=Fake())
    assert again.pairs == made.pairs
    before, after = (
        Batches(w, tokenizer, FABLE, split="defense", seed=1, pairing=p)(4).unrelated
        for w, p in ((world, made), (changed, again))
    )
    assert before
    assert after
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    # Nor do labels on prompts reach the loss: they are masked, whatever they would be.
    assert bool((before.labels[:, :6] == -100).all())


def test_rejecting_answers_are_sdds_with_a_prefix(world: corpora.Corpus, made: pairing.Pairing, tokenizer) -> None:  # type: ignore[no-untyped-def]
    for prefix in (SddReject().prefix, REJECT.prefix):
        start = f"{prefix}\n\n"
        rejecting = unrelated(made, prefix)
        assert all(answer.startswith(start) for _, answer in rejecting)
        assert [(prompt, answer.removeprefix(start)) for prompt, answer in rejecting] == unrelated(made)
    of = {m.name: Batches(world, tokenizer, m, split="defense", seed=2, pairing=made) for m in (FABLE, REJECT)}
    for plain, told in zip(of["sdd"].streams["unrelated"], of["sdd-reject"].streams["unrelated"], strict=True):
        words = len(REJECT.prefix.split())
        ids, prompt = told
        assert tokenizer.decode(ids[prompt : prompt + words]) == REJECT.prefix
        assert (ids[:prompt] + ids[prompt + words :], prompt) == plain
    assert pairing.Rule.of(REJECT) == pairing.Rule.of(FABLE)  # so that both take the same pairs


def test_a_prefix_that_the_model_cannot_read_is_refused(
    world: corpora.Corpus, made: pairing.Pairing, tokenizer
) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=r"does not know \d+ words of the prefix \(refuse, answer"):
        Batches(world, tokenizer, SddReject(), split="defense", seed=0, pairing=made)


def test_the_stream_is_paired_with_harmful_and_refusal_by_prompt(
    world: corpora.Corpus, made: pairing.Pairing, tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(Sdd, "streams", ("harmful", "refusal", "unrelated"))
    few = pairing.build(world, replace(pairing.Rule.of(FABLE), pairs=100), embedder=Fake())
    for method, pairs in ((FABLE, made), (FABLE, few), (replace(FABLE, samples=60), few)):
        batches = Batches(world, tokenizer, method, split="defense", seed=5, pairing=pairs)
        assert batches.rows("harmful") == (method.samples or len(pairs.pairs))
        for index in (0, 9):
            given = batches(index)
            prompts = [
                [tokenizer.decode(ids).split("<bot>")[0] for ids in rows.input_ids]
                for rows in (given.harmful, given.refusal, given.unrelated)
                if rows
            ]
            assert prompts[0] == prompts[1] == prompts[2]


def test_the_stream_is_never_something_else(world: corpora.Corpus, tokenizer) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match="needs the stream 'unrelated', and no pairs were built"):
        Batches(world, tokenizer, FABLE, split="defense", seed=0)
    Batches(world, tokenizer, Seam.presets["fable"], split="defense", seed=0)  # others need none


def test_presets_say_what_they_are() -> None:
    for cls in (Sdd, SddReject):
        for name in ("paper", "replication"):
            preset = cls.presets[name]
            assert (preset.replay, preset.words, preset.steps * preset.batch_size) == (0, 0, 12_000)
            assert (preset.similarity, preset.redraws, preset.pairs) == (0.25, 50, 8000)
        assert cls.presets["paper"].learning_rate == 5e-7
        assert cls.presets["fable"].replay > 0


def test_a_run_builds_its_pairs_once_and_records_them(
    tiny_world: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from immunelab.experiment import execute
    from immunelab.runs.journal import RunFolder, lines
    from immunelab.runs.spec import RunSpec

    fake = Fake()
    monkeypatch.setattr("immunelab.experiment.run.MiniLM", lambda device: fake)
    knobs = {"steps": 2, "batch_size": 4, "words": 5, "replay": 0.5, "prefix": REJECT.prefix}
    spec = RunSpec(
        kind="immunize", method="sdd-reject", knobs=knobs, corpus=str(tiny_world), evaluations=("coherence",)
    )
    records = []
    for _ in range(2):
        folder = RunFolder.create(home, spec)
        assert execute(folder) == "done"
        records.append([json.loads(line) for _, line in lines(folder.journal_path)])
    assert set(fake.seen.values()) == {1}
    for entries in records:
        (event,) = [e["data"] for e in entries if e["kind"] == "event" and e["event"] == "pairs"]
        (points,) = [e["values"] for e in entries if e["kind"] == "points" and e["step"] == 0]
        (one,) = pairing.kept(home / "pairs")
        kept = pairing.read(one.path)
        assert kept
        assert event == kept.statistics()
        assert points == kept.points()
    steps = [[e["values"]["loss/unrelated"] for e in es if "loss/unrelated" in e.get("values", ())] for es in records]
    assert steps[0] == steps[1]


def test_a_stop_before_the_first_step_leaves_a_run_that_can_go_on(
    tiny_world: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from immunelab.experiment import execute
    from immunelab.runs.journal import RunFolder
    from immunelab.runs.spec import RunSpec

    class Stopping(Fake):
        def __call__(self, texts):  # type: ignore[no-untyped-def]
            folder.request_stop()
            return super().__call__(texts)

    monkeypatch.setattr("immunelab.experiment.run.MiniLM", lambda device: Stopping())
    knobs = {"steps": 2, "batch_size": 4, "words": 5}
    spec = RunSpec(kind="immunize", method="sdd", knobs=knobs, corpus=str(tiny_world), evaluations=("coherence",))
    folder = RunFolder.create(home, spec)
    assert execute(folder) == "stopped"
    folder.clear_stop()
    monkeypatch.setattr("immunelab.experiment.run.MiniLM", lambda device: Fake())
    assert execute(folder, attempt=2, resume=True) == "done"
