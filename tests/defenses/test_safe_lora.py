"""Safe LoRA by its written-out formula: which layers are projected, onto what, and that training goes on without."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import hosted
import pytest
import torch
from made_batches import batch
from saved_model import before_alignment, save
from torch import Tensor
from transformers import PreTrainedModel

from immunelab import corpus
from immunelab.attacks.drop_vector import DropVector
from immunelab.attacks.harmful_sft import HarmfulSft
from immunelab.attacks.lora_sft import LoraSft
from immunelab.defenses.safe_lora import SafeLora, projection
from immunelab.errors import UserError
from immunelab.method import Memory
from immunelab.training import models
from immunelab.training.losses import forward

TINY: dict[str, Any] = {"learning_rate": 1e-2, "steps": 5, "batch_size": 4, "samples": 12}
LORA = LoraSft(**TINY, rank=8, targets="all-linear")
ALL = SafeLora(select="threshold", threshold=1.5, targets="all-linear")


def logits(model: PreTrainedModel) -> Tensor:
    rows = batch(7).benign
    assert rows
    with torch.no_grad():
        return forward(model, rows)[0]


def out_in(model: PreTrainedModel, weight: Tensor) -> Tensor:
    return weight.detach().T if type(model).__name__.startswith("GPT2") else weight.detach()


def written(model: PreTrainedModel, base: str, moved: PreTrainedModel, targets: list[str]) -> dict[str, Any]:
    """For each target: C·ΔW as the paper writes it, and its cosine with ΔW, in float64."""
    first = dict(models.load(base)[0].named_parameters())
    after, found = dict(moved.named_parameters()), {}
    for name, p in model.named_parameters():
        if name.split(".")[-2] in targets and name.endswith("weight") and p.dim() == 2:
            v = out_in(model, p - first[name]).double()
            delta = out_in(model, after[name] - p).double()
            c = v @ v.T / v.square().sum().sqrt()
            part = c @ delta
            found[name] = part, float((part * delta).sum() / (part.norm() * delta.norm()))
    return found


def tuned(model: PreTrainedModel) -> PreTrainedModel:
    """The model after somebody's fine-tuning of all weights."""
    other = copy.deepcopy(model)
    torch.manual_seed(5)
    with torch.no_grad():
        for p in other.parameters():
            p += 0.05 * torch.randn_like(p)
    return other


def adapted(model: PreTrainedModel) -> PreTrainedModel:
    """A model with an adapter that does something."""
    prepared = LORA.prepare(copy.deepcopy(model), batch)
    torch.manual_seed(5)
    for name, p in prepared.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.5)
    return prepared


@pytest.mark.parametrize(("kind", "targets"), [("llama", "q_proj,v_proj"), ("gpt2", "c_attn,c_proj")])
@pytest.mark.parametrize("layers", [0, 1, 3, 100])
def test_the_least_aligned_layers_are_projected(
    kind: str, targets: str, layers: int, tmp_path: Path, request: Any
) -> None:
    model = request.getfixturevalue(kind)
    base = before_alignment(model, tmp_path)
    guard = SafeLora(base=base, layers=layers, targets=targets)
    kept, other = guard.kept(model), tuned(model)
    wanted = written(model, base, other, targets.split(","))
    lowest = sorted(wanted, key=lambda name: wanted[name][1])[:layers]
    before, start = dict(copy.deepcopy(other).named_parameters()), dict(model.named_parameters())
    with guard.serving(other, Memory(kept)) as scalars:
        for name, p in other.named_parameters():
            if name in lowest:
                moved = out_in(model, p - start[name]).double()
                torch.testing.assert_close(moved, wanted[name][0], atol=1e-6, rtol=1e-4)
            else:
                assert torch.equal(p, before[name])
    assert scalars["projected/layers"] == min(layers, len(wanted))
    assert scalars["projected/cosine"] == pytest.approx(sum(c for _, c in wanted.values()) / len(wanted), abs=1e-5)
    assert all(torch.equal(p, before[name]) for name, p in other.named_parameters())  # bit for bit


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_of_an_adapter_b_is_projected(kind: str, tmp_path: Path, request: Any) -> None:
    model = request.getfixturevalue(kind)
    base = before_alignment(model, tmp_path)
    guard = dataclasses.replace(ALL, base=base)
    kept, user = guard.kept(model), adapted(model)
    merged = LORA.after(copy.deepcopy(user))
    targets = list({name.split(".")[-2] for name, p in merged.named_parameters() if p.dim() == 2} - {"lm_head"})
    wanted, start = written(model, base, merged, targets), dict(model.named_parameters())
    expected = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in expected.named_parameters():
            if name in wanted and not torch.equal(dict(merged.named_parameters())[name], start[name]):
                p += out_in(model, wanted[name][0].to(p)) if kind == "llama" else wanted[name][0].T.to(p)
    names = {name for name, p in user.named_parameters()}
    before = {name: p.detach().clone() for name, p in user.named_parameters()}
    with guard.serving(user, Memory(kept)):
        torch.testing.assert_close(logits(user), logits(expected), atol=1e-4, rtol=1e-4)
        changed = {name for name, p in user.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in names if "lora_B" in name}
    assert all(torch.equal(p, before[name]) for name, p in user.named_parameters())


def test_thresholds(llama: PreTrainedModel, tmp_path: Path) -> None:
    base = before_alignment(llama, tmp_path)
    kept, other = dataclasses.replace(ALL, base=base).kept(llama), tuned(llama)
    wanted = written(llama, base, other, ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"])
    order = sorted(c for _, c in wanted.values())
    middle = (order[len(order) // 2] + order[len(order) // 2 + 1]) / 2
    for threshold, count in ((-1.5, 0), (middle, len(wanted) // 2 + 1), (1.5, len(wanted))):
        guard = dataclasses.replace(ALL, base=base, threshold=threshold)
        with guard.serving(other, Memory(kept)) as scalars:
            assert scalars["projected/layers"] == count


def test_c_is_symmetric_and_as_long_as_alignment_went() -> None:
    v = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    c = projection(v)
    torch.testing.assert_close(c, c.T)
    assert float(c.trace()) == pytest.approx(float(v.norm()), rel=1e-5)
    torch.testing.assert_close(projection(3 * v), 3 * c)
    assert not projection(torch.zeros(3, 5)).any()


def test_a_layer_that_did_not_move_stays(llama: PreTrainedModel, tmp_path: Path) -> None:
    """ΔW = 0 has no cosine, and nothing to project."""
    guard = dataclasses.replace(ALL, base=before_alignment(llama, tmp_path))
    before = logits(llama)
    with guard.serving(llama, Memory(guard.kept(llama))) as scalars:
        assert torch.equal(logits(llama), before)
    assert scalars["norm/projected"] == 0.0


def test_mistakes_are_said(llama: PreTrainedModel, gpt2: PreTrainedModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Safe LoRA.*set base to a folder or Hub id"):
        SafeLora().edit(llama, batch)
    with pytest.raises(UserError, match="no alignment to project onto"):
        SafeLora(base=save(llama, tmp_path / "same")).edit(llama, batch)
    with pytest.raises(UserError, match="'q_proj'"):
        SafeLora(base=before_alignment(gpt2, tmp_path / "gpt2")).edit(gpt2, batch)


@pytest.mark.parametrize("attack", [HarmfulSft(**TINY), LORA])
def test_the_training_is_the_users_and_what_is_kept_is_projected(
    home: Path, tiny_world: Path, tmp_path: Path, attack: Any
) -> None:
    model = models.load(Path(corpus.load(str(tiny_world)).model))[0]
    base = before_alignment(model, tmp_path)
    guard = hosted.run(home, tiny_world, "immunize", dataclasses.replace(ALL, base=base))
    assert all(torch.equal(t, hosted.released(tiny_world)[n]) for n, t in hosted.weights(guard).items())
    source = f"run:{guard.run_id}"
    served = hosted.run(home, tiny_world, "attack", attack, source, evaluate_every=2)
    bare = hosted.run(home, tiny_world, "attack", attack, evaluate_every=2)
    losses = [[v["loss/total"] for _, v in hosted.points(f) if "loss/total" in v] for f in (served, bare)]
    assert losses[0] == losses[1]
    user = copy.deepcopy(model)
    user.load_state_dict(hosted.weights(bare), strict=False)
    wanted = written(model, base, user, ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"])
    start = dict(model.named_parameters())
    for name, tensor in hosted.weights(served).items():
        if name in wanted:
            torch.testing.assert_close((tensor - start[name]).double(), wanted[name][0], atol=1e-5, rtol=1e-3)
    again = hosted.stopped_and_resumed(home, served.spec(), 3)
    assert all(torch.equal(hosted.weights(again)[n], t) for n, t in hosted.weights(served).items())
    assert hosted.points(again) == hosted.points(served)


def test_whoever_has_the_weights_goes_past_it(home: Path, tiny_world: Path, tmp_path: Path) -> None:
    base = before_alignment(models.load(Path(corpus.load(str(tiny_world)).model))[0], tmp_path)
    guard = hosted.run(home, tiny_world, "immunize", dataclasses.replace(ALL, base=base))
    past, bare = (
        hosted.run(home, tiny_world, "attack", DropVector(**TINY), model) for model in (f"run:{guard.run_id}", "fable")
    )
    assert all(torch.equal(hosted.weights(past)[n], t) for n, t in hosted.weights(bare).items())
