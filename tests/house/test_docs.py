"""What the documents point to exists, and the worked example of docs/adding-a-defense.md keeps the contract."""

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

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "adding-a-defense.md"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md", "data/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
EXAMPLES = {"bounded_ascent.py"}  # a file that readers are told to write


def headings(page: Path) -> set[str]:
    """The anchors of a page, as forges make them from its headings."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)]+))?\)", page.read_text(encoding="utf-8")):
        other = (page.parent / target).resolve() if target else page
        assert other.exists(), target
        assert not anchor or anchor in headings(other), f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_named_files_and_tests_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    files = [p for room in ("immunelab", "pages", "tests", "benchmarks", "docs") for p in (ROOT / room).rglob("*.py")]
    known = [f"/{p.relative_to(ROOT).as_posix()}" for p in [*files, ROOT / "app.py"]]
    for name in set(re.findall(r"[\w/]+\.py\b", text)) - EXAMPLES:
        assert any(path.endswith(f"/{name.lstrip('/')}") for path in known) or Path(name).name in EXAMPLES, name
    tests = [p for p in files if p.is_relative_to(ROOT / "tests")]
    named = {p.stem for p in tests} | {n for p in tests for n in re.findall(r"def (test_\w+)", p.read_text("utf-8"))}
    assert set(re.findall(r"\btest_\w+", text)) - {"test_rows"} <= named  # that one is a key of corpus.toml


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
