"""Shared fixtures: a home of its own, tiny models built in memory, a tiny Fable world, a browser if there is one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import small_world

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from immunelab.corpus import Corpus
    from immunelab.runs.spec import RunSpec

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for models this small, threads cost more than they bring
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip, with a sentence, what this machine can't do; whatever carries out a run in the tiny world is slow."""
    for item in items:
        if "tiny_world" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
    if not _chromium():
        _skip(items, "browser", f"No browser here: none of {', '.join(BROWSERS)} is installed (apt install chromium).")
    if hasattr(config, "workerinput"):  # one of several processes: what takes longest must not come last
        items.sort(key=lambda item: [not item.get_closest_marker(name) for name in ("browser", "slow")])
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        if not torch.cuda.is_available():
            _skip(items, "gpu", "No NVIDIA GPU here, or torch is a CPU build.")


def _skip(items: list[pytest.Item], marker: str, reason: str) -> None:
    for item in items:
        if item.get_closest_marker(marker):
            item.add_marker(pytest.mark.skip(reason=reason))


def _chromium() -> str:
    return next(filter(None, map(shutil.which, BROWSERS)), "")


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the browser, for Playwright's `executable_path`; tests that use it are marked `browser`."""
    return _chromium()


# The shipped runs take a home's first opening seconds, and most tests are of runs of their own: those that are about
# the shipped ones are marked `showcase`.
os.environ["IMMUNELAB_SHOWCASE"] = "none"
os.environ["IMMUNELAB_WARM"] = "0"  # a process that outlives a test has no business here; its own test asks for it


@pytest.fixture(autouse=True)
def _shipped_runs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("showcase"):
        monkeypatch.delenv("IMMUNELAB_SHOWCASE")


@pytest.fixture(autouse=True)
def _one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs go one after the other, whatever the number of cores; tests of runs side by side say so."""
    monkeypatch.setenv("IMMUNELAB_PLACES", "1")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home that `journal.home()` and every process started from here will find."""
    folder = tmp_path / "lab"
    folder.mkdir()
    monkeypatch.setenv("IMMUNELAB_HOME", str(folder))
    return folder


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queued runs are carried out at once in this process, which need not load torch again; in tests of something else
    than processes."""
    from immunelab import jobs

    submit = jobs.submit

    def carried_out(specs: list[RunSpec], home: Path | str | None = None, **options: Any) -> list[str]:
        run_ids = submit(specs, home, start=False, **options)
        jobs.work(run_ids, home)
        return run_ids

    monkeypatch.setattr(jobs, "submit", carried_out)


@pytest.fixture
def llama() -> PreTrainedModel:
    """A random fp32 Llama: 2 layers, 32 wide, 97 tokens; new for each test."""
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    set_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def gpt2() -> PreTrainedModel:
    """A random fp32 GPT-2 (LayerNorm, learned positions, tied head): 2 layers, 32 wide, 97 tokens, no dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel, set_seed

    set_seed(0)
    config = GPT2Config(
        vocab_size=97,
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=64,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=1,
        # Weights of 0.02 at 32 wide curve so sharply that ε = 1e-3 is already 1.2 % off; 0.1 is like a wide model.
        initializer_range=0.1,
    )
    return GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that is a Fable world with few rows and an untrained model: every part of a run, in seconds.

    Use it as `--corpus FOLDER --model fable`. Nothing learned may be expected of it.
    """
    return small_world.make(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def world() -> Corpus:
    """The bundled Fable world."""
    from immunelab import corpus

    return corpus.load("fable")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """The tokenizer of the bundled Fable model."""
    from immunelab import bundled
    from immunelab.training import models

    return models.load(bundled.data() / "fable" / "model")[1]
