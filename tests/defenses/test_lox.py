"""LoX against torch's own singular value decomposition, and its limits."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from saved_model import before_alignment, save
from torch import Tensor
from transformers import PreTrainedModel

from immunelab.defenses.lox import LoX, leading
from immunelab.errors import UserError
from immunelab.method import Batch
from immunelab.training import models


def none(index: int) -> Batch:
    return Batch()


def edited(model: PreTrainedModel, base: str, **knobs: float) -> tuple[dict[str, Tensor], dict[str, float]]:
    other = copy.deepcopy(model)
    traced = LoX(base=base, **knobs).edit(other, none)  # type: ignore[arg-type]
    return {name: p.detach() for name, p in other.named_parameters()}, traced


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5), (3, 6, 4)])
def test_the_leading_part_is_that_of_the_decomposition(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    d = torch.randn(shape, dtype=torch.float64)
    u, s, v = torch.linalg.svd(d, full_matrices=False)
    for k in (1, 2, 3):
        torch.testing.assert_close(leading(d, k), u[..., :k] @ torch.diag_embed(s[..., :k]) @ v[..., :k, :])
    assert torch.equal(leading(d, 0), d)
    assert torch.equal(leading(d, 99), d)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_every_matrix_moves_by_its_leading_part(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    base = before_alignment(model, tmp_path)
    first = dict(models.load(base)[0].named_parameters())
    found, traced = edited(model, base, rank=3, alpha=0.5)
    square = 0.0
    for name, p in model.named_parameters():
        if p.dim() < 2:
            assert torch.equal(found[name], p)  # norms and biases stay
            continue
        delta = (p - first[name]).detach().double()
        u, s, v = torch.linalg.svd(delta, full_matrices=False)
        wanted = 0.5 * u[:, :3] @ torch.diag(s[:3]) @ v[:3]
        moved = (found[name] - p).detach().double()
        rounding = 8 * torch.finfo(p.dtype).eps * float(p.detach().abs().max())  # of the weight that it is added to
        torch.testing.assert_close(moved, wanted, atol=rounding, rtol=1e-4)
        assert int(torch.linalg.matrix_rank(moved, rtol=1e-3)) == 3
        square += float(wanted.square().sum())
    assert traced["norm/displacement"] == pytest.approx(square**0.5, rel=1e-5)
    assert 0 < traced["lox/share"] < 1


def test_limits(llama: PreTrainedModel, tmp_path: Path) -> None:
    base = before_alignment(llama, tmp_path)
    first = dict(models.load(base)[0].named_parameters())
    still, _ = edited(llama, base, alpha=0)
    assert all(torch.equal(still[name], p) for name, p in llama.named_parameters())
    whole, traced = edited(llama, base, rank=0, alpha=1.25)
    same, _ = edited(llama, base, rank=1000, alpha=1.25)
    assert all(torch.equal(whole[name], same[name]) for name in whole)
    assert traced["lox/share"] == pytest.approx(1)
    for name, p in llama.named_parameters():
        if p.dim() > 1:
            torch.testing.assert_close(whole[name], (first[name] + 2.25 * (p - first[name])).detach())
    back, _ = edited(llama, base, rank=0, alpha=-1)  # back to where alignment began
    torch.testing.assert_close(back["lm_head.weight"], first["lm_head.weight"].detach())


def test_mistakes_are_said_and_leave_the_weights(
    llama: PreTrainedModel, gpt2: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = copy.deepcopy(llama.state_dict())
    with pytest.raises(UserError, match=r"set base to a folder or Hub id.*--keep-base"):
        LoX().edit(llama, none)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"--keep-base --to lab/fable`, in lab/fable/base"):
        LoX.presets["fable"].edit(llama, none)
    with pytest.raises(UserError, match=r"is not the model before its alignment: model\.embed_tokens\.weight is"):
        LoX(base=save(gpt2, tmp_path / "other")).edit(llama, none)
    with pytest.raises(UserError, match="there is no alignment to extend"):
        LoX(base=save(llama, tmp_path / "same")).edit(llama, none)
    assert all(torch.equal(llama.state_dict()[name], tensor) for name, tensor in before.items())


@pytest.mark.slow
def test_a_build_can_keep_the_model_before_alignment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of each phase: the kept model is the aligned one's ancestor, and LoX takes it."""
    import dataclasses

    from immunelab.experiment import pretrain

    for name in ("PRETRAIN", "ALIGN"):
        few = dataclasses.replace(getattr(pretrain, name), steps=2, batch_size=4, warmup=0.0)
        monkeypatch.setattr(pretrain, name, few)
    pretrain.build(3, tmp_path, keep_base=True)
    model = models.load(tmp_path / "model")[0]
    traced = LoX(base=str(tmp_path / "base")).edit(model, none)
    assert 0 < traced["norm/alignment"] < 2  # two steps of 1e-3 in a million weights; pretraining went further
    assert not (tmp_path / "base" / "world.jsonl").exists()
