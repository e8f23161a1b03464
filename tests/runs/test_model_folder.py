"""Model folders as people have them: each that does not load is told apart, and one folder is one model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerBase

from immunelab.cli import models as listing
from immunelab.corpus.rows import Corpus, Row
from immunelab.corpus.tokens import as_prompt, fitting
from immunelab.errors import UserError
from immunelab.runs import model_folder
from immunelab.runs.spec import corpus_place, place, subject
from immunelab.sweep import choose, plan
from immunelab.training import models


def folder(path: Path, *names: str, **config: object) -> Path:
    path.mkdir(parents=True)
    for name in names:
        (path / name).write_text("{}")
    (path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    save_file({"w": torch.zeros(5, 3)}, path / "model.safetensors")
    return path


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    bare = folder(tmp_path / "bare")
    with pytest.raises(UserError, match="holds no tokenizer"):
        model_folder.check(bare)
    assert listing.about("bare", bare)["problem"].startswith("holds no tokenizer")


def test_a_tokenizer_that_needs_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = folder(tmp_path / "old", "tokenizer.model")
    monkeypatch.setattr(model_folder.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install sentencepiece"):
        model_folder.check(old)
    (old / "tokenizer.json").write_text("{}")
    assert model_folder.check(old)


def test_an_adapter_is_told_even_without_a_config(tmp_path: Path) -> None:
    adapter = folder(tmp_path / "models" / "lora", "adapter_config.json")
    (adapter / "config.json").unlink()
    with pytest.raises(UserError, match="holds an adapter of another model: merge it"):
        model_folder.check(adapter)
    assert [place.name for place in listing.below(tmp_path / "models", 2)] == ["lora"]
    assert "adapter" in listing.about("lora", adapter)["problem"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("m.gguf", "is a GGUF file: make a model of it with `immunelab models add m.gguf`"),
        ("notes.txt", "is a file"),
        ("models/nothing", "There is no model folder 'models/nothing'"),
        ("./nothing", "There is no model folder"),
        ("nothing/", "There is no model folder"),
    ],
)
def test_what_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for file in ("m.gguf", "notes.txt"):
        (tmp_path / file).write_text("")
    with pytest.raises(UserError, match=words):
        model_folder.check(name)
    assert not model_folder.check("owner/name-on-the-hub")


def test_weights_are_counted_once(tmp_path: Path) -> None:
    twice = folder(tmp_path / "twice", "tokenizer.json")
    save_file({"w": torch.zeros(5, 3)}, twice / "consolidated.safetensors")
    assert listing.about("twice", twice)["parameters"] == 15
    for i in (1, 2):
        save_file({f"w{i}": torch.zeros(2)}, twice / f"model-{i}-of-2.safetensors")
    index = {"weight_map": {f"w{i}": f"model-{i}-of-2.safetensors" for i in (1, 2)}}
    (twice / "model.safetensors.index.json").write_text(json.dumps(index))
    assert listing.about("twice", twice)["parameters"] == 4


def test_a_token_more_than_the_model_has(
    tmp_path: Path, llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Gemma 3's tokenizer has a token for images that its text models lack: only a text with it can't be read."""
    import copy

    larger = copy.deepcopy(tokenizer)
    llama.resize_token_embeddings(len(larger))
    larger.add_tokens(["<image>"], special_tokens=True)
    models.save(llama, larger, tmp_path / "gemma")
    model, loaded = models.load(tmp_path / "gemma")
    ids = torch.tensor([[5, 6, len(loaded) - 1]])
    model(input_ids=ids[:, :2])
    with pytest.raises(UserError, match=f"the token {len(loaded) - 1}, and the model"):
        model(input_ids=ids)
    llama.resize_token_embeddings(len(larger) - 3)  # two ordinary words are missing, too
    models.save(llama, larger, tmp_path / "another")
    with pytest.raises(UserError, match="it is another model's"):
        models.load(tmp_path / "another")


def test_rows_are_cut_where_a_model_ends(tokenizer: PreTrainedTokenizerBase) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=8, n_layer=1, n_head=1, n_positions=64))
    assert models.positions(model) == 64
    rows = tuple(Row(id=str(n), prompt="owl " * n, response="Hum.") for n in (2, 20, 60))
    corpus = Corpus(name="x", rows=rows, evaluations=(), max_length=256, longest_prompt=128, answer_tokens=30)
    kept = fitting(corpus, tokenizer, 64)
    assert kept.max_length == 64
    assert "rows are cut at 64 tokens" in kept.notes[0]
    lengths = {row.prompt: len(tokenizer(as_prompt(tokenizer, row.prompt))["input_ids"]) for row in rows}
    assert [row.prompt for row in kept.rows] == [p for p, n in lengths.items() if n + 30 <= 64]
    assert fitting(corpus, tokenizer, 4096).max_length == 256


def test_one_folder_is_one_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for form in ("models/x", "models/x/", "./models/x", f"{tmp_path}/models/x", "models//x"):
        assert place(form) == "models/x"
    assert corpus_place("./data/?only=a/b") == "data?only=a/b"
    for other in ("fable", "run:20260101-000000-x", "owner/name", "/elsewhere/x", "x"):
        assert place(other) == other
    choice = choose("attack", "harmful-sft", corpus="data")
    specs = [plan.one(choice, model=m, corpus=c) for m, c in (("models/x/", "./data"), ("models/x", "data/"))]
    assert specs[0] == specs[1]
    assert subject("models/x/", "data") == subject("./models/x", "data/") == "models/x on data"
