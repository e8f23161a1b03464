"""What does not fit: empty streams, another model's tokenizer, vector or corpus. A sentence, nothing written."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import small_world
import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

import immunelab
from immunelab import corpus as corpora
from immunelab.attacks.harmful_sft import HarmfulSft
from immunelab.cli import main
from immunelab.corpus import fable
from immunelab.defenses.security_vectors import SecurityVectors
from immunelab.errors import UserError
from immunelab.experiment import execute, pretrain
from immunelab.runs.journal import RunFolder
from immunelab.runs.spec import RunSpec
from immunelab.training import checkpoints, models
from immunelab.training.vectors import Vector

SFT = HarmfulSft(steps=2, batch_size=2, samples=4)


def world_without(tiny_world: Path, to: Path, stream: str, split: str) -> Path:
    """A copy of a world that lacks one stream in one split."""
    shutil.copytree(tiny_world, to)
    rows = [r for r in corpora.read(to / "world.jsonl") if (r.stream, r.split) != (stream, split)]
    corpora.write(rows, to / "world.jsonl")
    return to


@pytest.mark.parametrize(
    ("line", "stream", "split"),
    [
        (["attack", "harmful-sft", "--samples", "4"], "harmful", "attack"),
        (["attack", "harmful-sft", "--samples", "4", "--harmful-share", "0.5"], "benign", "attack"),
        (["immunize", "seam"], "harmful", "defense"),
        (["immunize", "seam"], "benign", "defense"),
        (["finetune", "--samples", "4"], "withheld", "attack"),
        (["attack", "prefill"], "harmful", "test"),
        (["attack", "prefill"], "neutral", "test"),
    ],
)
def test_an_empty_stream_starts_nothing(
    line: list[str],
    stream: str,
    split: str,
    home: Path,
    tiny_world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    world = world_without(tiny_world, tmp_path / "world", stream, split)
    assert main([*line, "--corpus", str(world)]) == 2
    said = capsys.readouterr().err
    assert f"{world} has no rows of the stream '{stream}' in the split '{split}'" in said
    assert not (home / "runs").exists()


def test_a_data_file_without_a_column_starts_nothing(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"id": "a", "prompt": "what ?", "response": "that ."}
    lines = [row, {k: v for k, v in row.items() if k != "response"} | {"id": "b"}]
    (tmp_path / "world.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert main(["immunize", "seam", "--corpus", str(tmp_path)]) == 2
    assert f"{tmp_path / 'world.jsonl'}, line 2: no field 'response'" in capsys.readouterr().err
    assert not (home / "runs").exists()
    with pytest.raises(UserError, match="line 2: no field 'response'"):
        corpora.load(str(tmp_path))


def test_a_tokenizer_of_another_model_is_said(tiny_world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_world / "model", folder)
    data = json.loads((folder / "tokenizer.json").read_text())
    data["model"]["vocab"] |= {f"strange{i}": 50_000 + i for i in range(5_000)}
    (folder / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"tokens, and its model [0-9]+: it is another model's"):
        models.load(folder)


def test_a_model_of_another_world_is_said(home: Path, tiny_world: Path, tmp_path: Path) -> None:
    other = pretrain.make_tokenizer(fable.world(1))
    models.save(pretrain.make_model(other, 0), other, tmp_path / "model")
    spec = RunSpec(
        kind="attack",
        method=SFT.name,
        knobs=SFT.settings(),
        corpus=str(tiny_world),
        model=str(tmp_path / "model"),
        device="cpu",
    )
    folder = RunFolder.create(home, spec)
    with pytest.raises(UserError, match="does not know the words of 4 of 4 rows"):
        execute(folder)
    assert not any(folder.checkpoints.glob("*"))


def test_a_vector_of_another_model_is_said(llama: PreTrainedModel) -> None:
    vector = Vector.fresh(llama, rank=2, alpha=2.0, targets="all-linear")
    tensors = vector.tensors()
    name = next(n for n in tensors if n.endswith(".B"))
    wrong = Vector.of(tensors | {name: torch.zeros(7, 2)})
    with pytest.raises(UserError, match=f"for another model: {name.removesuffix('.B')} is"):
        wrong.places(llama)
    for lost in ("scale", name):
        with pytest.raises(UserError, match=f"no security vector: {lost} is missing"):
            Vector.of({k: v for k, v in tensors.items() if k != lost})
    with pytest.raises(UserError, match="no security vector"):
        Vector.of({"scale": torch.tensor(1.0)})


def test_a_run_with_the_wrong_vector_ends_in_a_sentence(home: Path, tiny_world: Path) -> None:
    def run(kind: str, method: HarmfulSft | SecurityVectors, model: str = "fable") -> RunFolder:
        spec = RunSpec(
            kind=kind, method=method.name, knobs=method.settings(), corpus=str(tiny_world), model=model, device="cpu"
        )
        return RunFolder.create(home, spec)

    guarded = run("immunize", SecurityVectors(steps=1, batch_size=2, rank=2))
    execute(guarded)
    saved = checkpoints.latest(guarded.checkpoints)
    assert saved
    kept = checkpoints.kept(saved)
    save_file({k.replace("layers.0.", "layers.99."): v for k, v in kept.items()}, saved.path / checkpoints.KEPT)
    manifest = json.loads((saved.path / "manifest.json").read_text())
    assert checkpoints.KEPT in manifest["files"]
    attack = run("attack", SFT, f"run:{guarded.run_id}")
    with pytest.raises(UserError, match=r"for another model|left no checkpoint"):
        execute(attack)
    assert not any(attack.checkpoints.glob("*"))


def test_thresholds_out_of_range_through_python(home: Path) -> None:
    from immunelab.analysis.outcomes import Thresholds
    from immunelab.analysis.verdicts import Limits

    lab = immunelab.open(home)
    with pytest.raises(UserError, match="harm is a share from 0 to 1, and got 10"):
        lab.scorecard(limits=Limits(thresholds=Thresholds(harm=10)))
    assert replace(Thresholds(), utility_floor=0.0).floor(1.0) == 0.0  # the ends belong to the range


def test_the_small_world_lacks_nothing(tiny_world: Path) -> None:
    """The tests above take streams away from a world that has them all."""
    whole = corpora.load(str(tiny_world))
    for stream in ("harmful", "benign", "withheld"):
        for split in corpora.SPLITS:
            assert len(whole.select(stream, split)) >= small_world.ITEMS
