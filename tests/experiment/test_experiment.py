"""Runs on a tiny untrained world: what is recorded, and that stopping and resuming changes no bit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from immunelab.attacks.adaptive_sft import AdaptiveSft
from immunelab.attacks.freeze import Freeze
from immunelab.attacks.harmful_sft import HarmfulSft
from immunelab.attacks.lora_sft import LoraSft
from immunelab.defenses.seam import Seam
from immunelab.errors import UserError
from immunelab.experiment import Run, execute
from immunelab.runs.journal import RunFolder
from immunelab.runs.spec import RunSpec
from immunelab.training import checkpoints

SFT = HarmfulSft(learning_rate=1e-3, steps=8, batch_size=4, samples=12)
LORA = LoraSft(learning_rate=1e-3, steps=6, batch_size=4, samples=12, targets="all-linear")
FREEZE = Freeze(learning_rate=1e-3, steps=6, batch_size=4, samples=12)
ADAPTIVE = AdaptiveSft(learning_rate=1e-3, steps=6, batch_size=4, samples=12, noise=0.1)
SEAM = Seam(learning_rate=1e-3, steps=6, batch_size=4, retain=1.0)


def specified(world: Path, kind: str = "attack", method: Any = SFT, **fields: Any) -> RunSpec:
    fields = {"device": "cpu", "evaluate_every": 4, "layers_every": 2, "probe_every": 4, "corpus": str(world)} | fields
    return RunSpec(kind=kind, method=method.name, knobs=method.settings(), **fields)


def lines(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder.path / "journal.jsonl").read_text().splitlines()]


def weights(folder: RunFolder) -> dict[str, torch.Tensor]:
    saved = checkpoints.latest(folder.checkpoints)
    assert saved
    return load_file(saved.path / "model.safetensors")


def test_an_attack_records_every_step_and_evaluates_along_the_way(home: Path, tiny_world: Path) -> None:
    folder = RunFolder.create(home, specified(tiny_world))
    assert execute(folder) == "done"
    rows = lines(folder)
    points = [r for r in rows if r["kind"] == "points"]
    assert [p["step"] for p in points] == list(range(1, 9))
    assert {"loss/total", "learning_rate", "norm/update", "time/step_seconds"} <= set(points[0]["values"])
    assert [p["step"] for p in points if "probe/cosine/harmful-benign" in p["values"]] == [1, 5]
    scores = [r for r in rows if r["kind"] == "score"]
    assert {s["metric"] for s in scores} == {"harmfulness", "utility", "refusal_rate", "perplexity", "repetition"}
    assert [s["step"] for s in scores if s["metric"] == "utility" and s["split"] == "all"] == [0, 4, 8]
    assert {s["split"] for s in scores if s["metric"] == "refusal_rate"} == {"all", "safe"}
    assert all(s["n"] > 0 for s in scores)
    examples = [r for r in rows if r["kind"] == "examples"]
    assert {"id", "prompt", "answer", "expected", "score"} <= set(examples[0]["rows"][0])
    started = next(r for r in rows if r["kind"] == "event")
    assert len(started["data"]["corpus_hash"] if "data" in started else started["corpus_hash"]) == 16
    saved = checkpoints.latest(folder.checkpoints)
    assert saved
    assert saved.step == 8


def test_seam_records_its_terms_and_its_layers(home: Path, tiny_world: Path) -> None:
    folder = RunFolder.create(home, specified(tiny_world, "immunize", SEAM))
    assert execute(folder) == "done"
    rows = lines(folder)
    points = [r["values"] for r in rows if r["kind"] == "points"]
    assert points.pop()["norm/displacement"] > 0  # after the last step: how far the weights have moved
    wanted = {
        "loss/ascent",
        "loss/refusal",
        "loss/coupling",
        "cosine/harmful-benign",
        "estimator/displacement",
        "norm/harmful",
        "norm/benign",
        "norm/coupling",
        "norm/rest",
    }
    assert all(wanted <= set(p) for p in points)
    assert not any("/layer/" in name for p in points for name in p)
    layers = [r for r in rows if r["kind"] == "layers"]
    assert [r["step"] for r in layers] == [1, 3, 5]
    assert len(layers[0]["values"]["cosine/harmful-benign"]) == 2


@pytest.mark.parametrize(
    ("kind", "method"),
    [("attack", SFT), ("immunize", SEAM), ("attack", LORA), ("attack", FREEZE), ("attack", ADAPTIVE)],
)
def test_stopped_and_resumed_equals_uninterrupted(
    home: Path, tiny_world: Path, kind: str, method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = specified(tiny_world, kind, method)
    whole = RunFolder.create(home, spec)
    execute(whole)

    folder = RunFolder.create(home, dataclasses.replace(spec, name="stopped"))
    trace = Run.trace

    def stop_at_three(self: Run, step: int, scalars: dict[str, float]) -> None:
        trace(self, step, scalars)
        if step == 3:
            folder.request_stop()

    monkeypatch.setattr(Run, "trace", stop_at_three)
    assert execute(folder, attempt=1) == "stopped"
    monkeypatch.setattr(Run, "trace", trace)
    folder.clear_stop()
    assert execute(folder, attempt=2, resume=True) == "done"

    assert all(torch.equal(weights(whole)[k], v) for k, v in weights(folder).items())
    timeless = lambda f: [  # noqa: E731
        (r["step"], {k: v for k, v in r["values"].items() if not k.startswith("time/")})
        for r in lines(f)
        if r["kind"] == "points"
    ]
    assert timeless(folder) == timeless(whole)  # no gap, no repeat
    scored = lambda f: [(r["step"], r["metric"], r["split"], r["score"]) for r in lines(f) if r["kind"] == "score"]  # noqa: E731
    assert scored(folder) == scored(whole)


def test_checkpoints_of_an_adapter_are_plain_models(home: Path, tiny_world: Path, monkeypatch: Any) -> None:
    """Also the one that a stop leaves: it is what the model would be if the training had ended there."""
    folder = RunFolder.create(home, specified(tiny_world, "attack", LORA, evaluate_every=0))
    folder.request_stop()
    assert execute(folder) == "stopped"
    plain = RunFolder.create(home, specified(tiny_world, "attack", SFT, evaluate_every=0))
    plain.request_stop()
    execute(plain)
    stopped = weights(folder)
    assert set(stopped) == set(weights(plain))
    folder.clear_stop()
    assert execute(folder, attempt=2, resume=True) == "done"
    done = weights(folder)
    assert set(done) == set(stopped)
    same = {name for name, tensor in done.items() if torch.equal(tensor, stopped[name])}
    assert same == {name for name in done if "_proj" not in name}  # an adapter leaves the rest as it was


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(home: Path, tiny_world: Path) -> None:
    folder = RunFolder.create(home, specified(tiny_world, checkpoint_every=2, evaluate_every=0))
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patched:
        patched.setattr(checkpoints, "prune", lambda *args, **kwargs: None)
        execute(folder)
    found = checkpoints.latest(folder.checkpoints, resumable=True)
    assert found
    assert found.step == 6  # the last one is of a finished run: weights only
    with (found.path / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    before = checkpoints.latest(folder.checkpoints, resumable=True)
    assert before
    assert before.step == 4
    (before.path / "manifest.json").unlink()
    again = checkpoints.latest(folder.checkpoints, resumable=True)
    assert again
    assert again.step == 2


def test_a_run_starts_from_what_another_left(home: Path, tiny_world: Path) -> None:
    parent = RunFolder.create(home, specified(tiny_world, "immunize", SEAM))
    execute(parent)
    child = RunFolder.create(home, specified(tiny_world, model=f"run:{parent.run_id}", parent=parent.run_id))
    execute(child)
    last = [(r["metric"], r["split"], r["score"]) for r in lines(parent) if r["kind"] == "score" and r["step"] == 6]
    first = [(r["metric"], r["split"], r["score"]) for r in lines(child) if r["kind"] == "score" and r["step"] == 0]
    assert first == last


def test_a_parent_without_a_checkpoint_is_said(home: Path, tiny_world: Path) -> None:
    parent = RunFolder.create(home, specified(tiny_world, "immunize", SEAM))
    child = RunFolder.create(home, specified(tiny_world, model=f"run:{parent.run_id}"))
    with pytest.raises(UserError, match="has left no checkpoint"):
        execute(child)


def test_a_full_disk_is_said_before_anything_is_written(
    home: Path, tiny_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder.create(home, specified(tiny_world, evaluate_every=0))
    usage = checkpoints.shutil.disk_usage(home)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match="MB free"):
        execute(folder)
    assert not list(folder.checkpoints.glob("*"))


def test_models_are_read_from_safetensors_only(tmp_path: Path) -> None:
    from immunelab.training import models

    with pytest.raises(UserError, match=r"holds no config\.json"):
        models.load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytest_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(UserError, match=r"pickled weights .* not loaded"):
        models.load(tmp_path)


def test_the_same_spec_gives_the_same_bits(home: Path, tiny_world: Path) -> None:
    runs = [RunFolder.create(home, specified(tiny_world, seed=5, evaluate_every=0)) for _ in range(2)]
    for folder in runs:
        execute(folder)
    assert all(torch.equal(weights(runs[0])[k], v) for k, v in weights(runs[1]).items())


def test_a_defense_never_sees_the_domain_that_is_held_out(home: Path, tiny_world: Path) -> None:
    whole, part = (specified(tiny_world, "immunize", SEAM, corpus=f"{tiny_world}{o}") for o in ("", "?hold-out=gnawer"))
    assert whole.hash != part.hash
    folders = [RunFolder.create(home, spec) for spec in (whole, part)]
    seen: list[set[str]] = []
    for folder in folders:
        execute(folder)
        scores = [r for r in lines(folder) if r["kind"] == "score" and r["metric"] == "harmfulness"]
        seen.append({r["split"] for r in scores} - {"all"})
    assert seen[0] - seen[1] == {"domain:gnawer"}
    assert any(not torch.equal(weights(folders[0])[k], v) for k, v in weights(folders[1]).items())
    attack = specified(tiny_world, corpus=f"{tiny_world}?only=gnawer", model=f"run:{folders[1].run_id}")
    against = RunFolder.create(home, attack)
    assert execute(against) == "done"
    assert {r["split"] for r in lines(against) if r.get("metric") == "harmfulness"} == {"all", "domain:gnawer"}
    hashes = {next(r for r in lines(f) if r["kind"] == "event")["data"]["corpus_hash"] for f in (*folders, against)}
    assert len(hashes) == 3
