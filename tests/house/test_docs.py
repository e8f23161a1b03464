"""The worked example of docs/adding-a-defense.md, taken out of the page and put through the contract."""

from __future__ import annotations

import math
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from immunelab.method import Batch, Tokens, registry

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding-a-defense.md"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The registered class of the page, in a registry that is put back afterwards."""
    registry.names("defense")
    monkeypatch.setitem(registry._registry, "defense", dict(registry._registry["defense"]))
    block = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert block
    file = tmp_path / "bounded_ascent.py"
    file.write_text(block.group(1), encoding="utf-8")
    module = types.ModuleType("bounded_ascent")
    monkeypatch.setitem(sys.modules, "bounded_ascent", module)
    exec(compile(block.group(1), str(file), "exec"), module.__dict__)
    return registry.get("defense", "bounded-ascent")


def tokens(seed: int) -> Tokens:
    ids = torch.randint(2, 97, (3, 9), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    labels[:, :4] = -100
    return Tokens(ids, torch.ones_like(ids), labels)


def test_the_example_keeps_the_contract(example: Any, llama: Any) -> None:
    before = {name: p.detach().clone() for name, p in llama.named_parameters()}
    scalars = example().step(llama, Batch(harmful=tokens(0), refusal=tokens(1), benign=tokens(2)))
    assert all(torch.equal(before[name], p) for name, p in llama.named_parameters())
    assert all(p.grad is not None for p in llama.parameters() if p.requires_grad)
    assert all(isinstance(v, float) and math.isfinite(v) for v in scalars.values())
    terms = scalars["loss/refusal"] + scalars["loss/benign"] - 0.5 * min(scalars["loss/harmful"], 6.0)
    assert scalars["loss/total"] == pytest.approx(terms, rel=1e-5)


def test_the_example_stops_ascending_at_its_ceiling(example: Any, llama: Any) -> None:
    batch = Batch(harmful=tokens(0), refusal=tokens(1), benign=tokens(2))
    example(ceiling=0.0).step(llama, batch)
    bounded = [p.grad.clone() for p in llama.parameters()]
    example(strength=0.0).step(llama, batch)
    assert all(torch.equal(a, p.grad) for a, p in zip(bounded, llama.parameters(), strict=True))


def test_the_example_is_described_and_configured_like_any_method(example: Any) -> None:
    about = registry.describe("defense", example)
    assert about.objective.startswith("L = ")
    assert [k.symbol for k in about.knobs[:3]] == ["γ", "λ", "c"]
    assert registry.configure("defense", "bounded-ascent", {"strength": "0.2"}, "fable").strength == 0.2
