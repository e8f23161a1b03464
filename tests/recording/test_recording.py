"""Runs of somebody's own code in the lab: their numbers beside the lab's own, and how they end."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from made_batches import tokens
from transformers import PreTrainedModel, Trainer, TrainingArguments
from waiting import until

import immunelab
from immunelab import corpus as corpora
from immunelab import jobs, record
from immunelab.corpus.tokens import collate, encode, pairs
from immunelab.errors import UserError
from immunelab.recording.elsewhere import Recording
from immunelab.runs.journal import RunFolder
from immunelab.runs.spec import RunSpec
from immunelab.store import Store, queries
from immunelab.training import models

STEPS = 6


def entries(run_id: str, home: Path, kind: str) -> list[Mapping[str, Any]]:
    return [e for e in RunFolder.open(home, run_id).entries() if e["kind"] == kind]


class Trained:
    """A model trained by transformers' Trainer on harmful rows of the tiny world, and the run that it was recorded as.

    `around` uses the run as a context, which then ends it.
    """

    def __init__(self, world: Path, home: Path, folder: Path, around: bool = False, **options: Any) -> None:
        self.corpus = corpora.load(str(world))
        self.model, self.tokenizer = models.load(world / "model")
        self.before = copy.deepcopy(self.model)
        rows = [encode(self.tokenizer, p, 64) for p in pairs(self.corpus.select("harmful", "attack"), "harmful")]
        benign = pairs(self.corpus.select("benign", "attack"), "benign")
        self.minibatches = {
            "harmful": pairs(self.corpus.select("harmful", "test"), "harmful")[:4],
            "benign": benign[:4],
        }
        pad = int(self.tokenizer.pad_token_id)
        arguments = TrainingArguments(
            output_dir=str(folder),
            max_steps=STEPS,
            per_device_train_batch_size=4,
            learning_rate=1e-3,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        self.run = record("attack", "trainer-sft", corpus=str(world), seed=3, by="transformers", home=home, **options)
        callback = self.run.callback(self.tokenizer, **self.minibatches, evaluate_every=3, compare_every=2, keep=True)
        self.trainer = Trainer(
            model=self.model,
            args=arguments,
            train_dataset=rows,  # type: ignore[arg-type]
            data_collator=lambda chosen: collate(chosen, pad)._asdict(),
            callbacks=[callback],
        )
        if around:
            with self.run:
                self.trainer.train()
        else:
            self.trainer.train()


@pytest.fixture(scope="module")
def trained(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tiny_world, tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("trainer"))


def test_it_is_done_and_says_what_it_is(trained: Trained) -> None:
    run = queries.runs(immunelab.open(trained.run.home).store).iloc[0]
    assert (run["status"], run["kind"], run["method"], run["seed"]) == ("done", "attack", "trainer-sft", 3)
    assert (run["learning_rate"], run["steps"], run["batch_size"]) == (1e-3, STEPS, 4)
    assert (run["schedule"], run["optimizer"], run["recorded_by"]) == ("linear", "adamw_torch_fused", "transformers")
    assert run["step"] == run["total_steps"] == STEPS
    assert json.loads(run["versions"])["torch"] == torch.__version__


def test_the_losses_are_what_the_trainer_logged(trained: Trained) -> None:
    history = {e["step"]: e for e in trained.trainer.state.log_history if "loss" in e}
    points = {
        e["step"]: e["values"]
        for e in entries(trained.run.run_id, trained.run.home, "points")
        if "loss/total" in e["values"]
    }
    assert sorted(points) == sorted(history) == list(range(1, STEPS + 1))
    for step, values in points.items():
        for theirs, ours in (("loss", "loss/total"), ("grad_norm", "norm/update"), ("learning_rate", "learning_rate")):
            assert values[ours] == pytest.approx(history[step][theirs])


def test_scores_are_those_of_a_run_of_the_lab(
    trained: Trained, home: Path, tiny_world: Path, in_this_process: None
) -> None:
    """What the callback measured at the end, and what an attack of the lab measures on the kept model at its start."""
    lab = immunelab.open(trained.run.home)
    found = lab.scores(trained.run.run_id, parts=True)
    assert sorted(found["step"].unique()) == [0, 3, STEPS]
    kept = RunFolder.open(trained.run.home, trained.run.run_id).checkpoints / f"step-{STEPS:06d}"
    other = immunelab.open(home)
    again = other.attack(str(kept), corpus=str(tiny_world), steps=1, batch_size=2, samples=4)
    keys = ["evaluation", "metric", "split"]
    wanted = other.scores(again, parts=True).query("step == 0").set_index(keys)[["score", "n", "stderr"]]
    mine = found[found["step"] == STEPS].set_index(keys)[["score", "n", "stderr"]]
    assert len(mine) > 5
    torch.testing.assert_close(mine.loc[wanted.index].to_numpy(), wanted.to_numpy(), rtol=1e-6, atol=1e-6)
    rows = queries.examples(lab.store, trained.run.run_id, step=STEPS)
    assert {"fable-recall", "benign-accuracy"} <= set(rows["evaluation"])


def test_cosines_are_those_of_the_written_out_gradients(trained: Trained) -> None:
    first = next(
        e
        for e in entries(trained.run.run_id, trained.run.home, "points")
        if "probe/cosine/harmful-benign" in e["values"]
    )
    assert first["step"] == 1
    model = trained.before.double()
    flat = {}
    for name, rows in trained.minibatches.items():
        batch = collate([encode(trained.tokenizer, pair, 256) for pair in rows], int(trained.tokenizer.pad_token_id))
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels[:, 1:].flatten())
        flat[name] = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
        assert first["values"][f"probe/loss/{name}"] == pytest.approx(float(loss.detach()), rel=1e-5)
        assert first["values"][f"probe/norm/{name}"] == pytest.approx(float(flat[name].norm()), rel=1e-4)
    cosine = torch.nn.functional.cosine_similarity(flat["harmful"], flat["benign"], dim=0)
    assert first["values"]["probe/cosine/harmful-benign"] == pytest.approx(float(cosine), abs=1e-5)
    assert "probe/cosine/update-harmful" in first["values"]  # `.grad` held the direction


def test_recording_leaves_the_training_as_it_is(trained: Trained, tiny_world: Path, tmp_path: Path) -> None:
    """The same weights, bit for bit, as without the callback."""
    plain = Trained.__new__(Trained)
    Trained.__init__(plain, tiny_world, tmp_path / "lab", tmp_path / "trainer", around=True)
    model, _ = models.load(tiny_world / "model")
    alone = Trainer(
        model=model,
        args=plain.trainer.args,
        train_dataset=plain.trainer.train_dataset,
        data_collator=plain.trainer.data_collator,
    )
    alone.train()
    for mine, theirs in zip(plain.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert RunFolder.open(plain.run.home, plain.run.run_id).status().status == "done"


def test_it_stands_in_the_figures_and_can_be_attacked(
    trained: Trained, tiny_world: Path, in_this_process: None
) -> None:
    lab = immunelab.open(trained.run.home)
    curves = lab.curves([trained.run.run_id])
    assert sorted(curves["step"]) == [0, 3, STEPS]
    assert set(curves["recorded_by"]) == {"transformers"}
    assert curves[["base_harmfulness", "base_utility"]].notna().all(axis=None)
    assert lab.collapse([trained.run.run_id]).data
    spec = lab.spec("attack", "harmful-sft", model=trained.run.run_id, corpus=str(tiny_world), steps=1, samples=4)
    next_run = lab.submit([spec])[0]
    assert RunFolder.open(lab.home, next_run).lineage()[0].run_id == trained.run.run_id


def test_a_defense_of_ones_own_is_attacked_by_the_lab(tiny_world: Path, home: Path, in_this_process: None) -> None:
    model, tokenizer = models.load(tiny_world / "model")
    with record("immunize", "my-defense", corpus=str(tiny_world)) as run:
        run.evaluate(0, model, tokenizer)
        run.keep(1, model, tokenizer)
    lab = immunelab.open(home)
    attack = lab.attack(run.run_id, corpus=str(tiny_world), steps=1, batch_size=2, samples=4)
    curves = lab.curves([attack])
    assert set(curves["defense"]) == {"my-defense"}
    assert curves["base_utility"].notna().all()
    card = lab.scorecard(run.run_id)
    assert card.defense.lower().replace(" ", "-") == "my-defense"


def test_a_loop_of_ones_own(llama: PreTrainedModel, home: Path) -> None:
    with record("immunize", "my-defense", settings={"learning_rate": 1e-4, "steps": 2}, name="mine") as run:
        for step in (1, 2):
            found = run.compare(step, llama, tokens(0), tokens(1)._asdict())
            run.points(step, {"loss/total": 1.0 / step})
            run.progress(step, 2)
        run.score(0, "harmfulness", 0.1, n=50, stderr=0.04)
        run.examples(2, "own", [{"id": "a", "prompt": "?", "answer": "!", "score": 1.0}])
    assert -1 <= found["probe/cosine/harmful-benign"] <= 1
    assert "probe/cosine/update-harmful" not in found  # no direction was in `.grad`
    store = Store(home)
    store.sync(force=True)
    run_row = queries.runs(store).iloc[0]
    assert (run_row["status"], run_row["defense"], run_row["name"]) == ("done", "my-defense", "mine")
    assert (run_row["recorded_by"], run_row["progress"]) == ("own code", 1.0)
    assert queries.points(store, [run.run_id], ["loss/total"])["value"].tolist() == [1.0, 0.5]
    assert queries.examples(store, run.run_id)["answer"].tolist() == ["!"]
    with pytest.raises(UserError, match="is over, and nothing more can be recorded"):
        run.points(3, {"loss/total": 0.0})


def test_how_it_ends(home: Path) -> None:
    with pytest.raises(ZeroDivisionError), record("attack", "mine") as broken:
        broken.points(1, {"loss/total": 1 / 0})
    with pytest.raises(KeyboardInterrupt), record("attack", "mine") as interrupted:
        raise KeyboardInterrupt
    with record("attack", "mine") as asked:
        asked.points(1, {"loss/total": 1.0})
        assert not asked.stop_asked
        jobs.stop(asked.run_id, home, force_after=0.0)
        time.sleep(0.05)
        jobs.reconcile(home)  # whoever records is this very process, and is not ended by force
        assert asked.stop_asked
    found = [RunFolder.open(home, run.run_id).status() for run in (broken, interrupted, asked)]
    assert [s.status for s in found] == ["failed", "stopped", "stopped"]
    assert "ZeroDivisionError" in found[0].error
    for refused in (jobs.resume, jobs.duplicate):
        with pytest.raises(UserError, match="recorded elsewhere, by own code"):
            refused(asked.run_id, home)
    with pytest.raises(UserError, match="recorded elsewhere, by own code, and can't be run here"):
        jobs.submit([asked.spec], home, start=False)


@pytest.mark.slow
def test_a_process_that_was_killed_leaves_an_interrupted_run(home: Path) -> None:
    code = """
        import os, signal
        from immunelab.recording.elsewhere import Recording
        from immunelab.runs.spec import RunSpec
        run = Recording(RunSpec(kind="attack", method="mine", recorded_by="own code"))
        run.points(1, {"loss/total": 1.0})
        print(run.run_id, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False, env=os.environ
    )
    until(lambda: jobs.reconcile(home) or RunFolder.open(home, found.stdout.strip()).status().ended)
    assert RunFolder.open(home, found.stdout.strip()).status().status == "interrupted"
    assert len(entries(found.stdout.strip(), home, "points")) == 1


def test_a_stop_ends_the_training(
    tiny_world: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Recording, "stop_asked", True)
    run = Trained(tiny_world, home, tmp_path)
    assert run.trainer.state.global_step == 1
    assert RunFolder.open(home, run.run.run_id).status().status == "stopped"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"kind": "sweep"}, "What can be recorded is one of immunize, attack, finetune"),
        ({"kind": "atack"}, "kind of run"),
        ({"method": ""}, "which method it is"),
        ({"by": ""}, "by what it is recorded"),
        ({"model": "run:nonesuch"}, "run"),
        ({"settings": {"rate": [1]}}, "A spec's knob rate"),
    ],
)
def test_what_can_not_be_recorded_is_told_at_once(wrong: dict[str, Any], words: str, home: Path) -> None:
    given: dict[str, Any] = {"kind": "attack", "method": "mine"} | wrong
    with pytest.raises(UserError, match=words):
        record(given.pop("kind"), given.pop("method"), **given)
    assert not (home / "runs").exists()


def test_wrong_values_are_told(llama: PreTrainedModel, home: Path) -> None:
    run = record("attack", "mine")
    with pytest.raises(UserError, match="A step is a whole number from 0, and got -1"):
        run.points(-1, {"loss/total": 1.0})
    with pytest.raises(UserError, match="lacks labels"):
        run.compare(1, llama, {"input_ids": tokens(0).input_ids}, tokens(1))
    with pytest.raises(UserError, match="take a tokenizer"):
        run.compare(1, llama, [("a", "b")], [("c", "d")])
    with pytest.raises(UserError, match="give both, harmful and benign"):
        run.callback(harmful=tokens(0))
    with pytest.raises(UserError, match="at least 1"):
        run.callback(evaluate_every=0)


def test_nothing_is_recorded_where_the_lab_may_only_be_read(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMMUNELAB_READ_ONLY", "1")
    with pytest.raises(UserError, match="read"):
        record("attack", "mine").points(1, {"loss/total": 1.0})
    assert not (home / "runs").exists()


def test_a_run_of_the_lab_has_the_same_identity_as_before() -> None:
    own = RunSpec(kind="attack", method="harmful-sft")
    assert own.hash == "d54bfa283f7ed73a"
    assert RunSpec(kind="attack", method="harmful-sft", recorded_by="me").hash != own.hash
