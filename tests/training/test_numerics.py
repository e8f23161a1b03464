"""The type of a model's weights, its attention and gradient checkpointing, for any run; and what can't be."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import own_data
import pytest
import torch
from hosted import released, run, stopped_and_resumed, weights
from made_batches import batch, tokens
from nearness import ROUNDED, relative
from registered import EDITS, SERVICES, TRAINED, other_models, ready
from safetensors import safe_open
from transformers import GPTJConfig, GPTJForCausalLM, PreTrainedModel

import immunelab
from immunelab import jobs
from immunelab.analysis.collapse import comparable
from immunelab.attacks.harmful_sft import HarmfulSft
from immunelab.attacks.lora_sft import LoraSft
from immunelab.cli import main
from immunelab.errors import UserError
from immunelab.experiment import execute
from immunelab.jobs.follow import newest
from immunelab.method import Memory, configure, get
from immunelab.runs import numerics
from immunelab.runs.journal import RunFolder
from immunelab.runs.spec import RunSpec
from immunelab.store import Store, queries
from immunelab.sweep import choose, search, space
from immunelab.sweep.grid import expand
from immunelab.training import adapters, loop, models
from immunelab.training import gradients as g
from immunelab.training.losses import forward, loss

FAMILIES = ("llama", "gpt2")
SHORT: dict[str, Any] = {"steps": 3, "batch_size": 2, "samples": 8, "warmup": 0.0}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("models")
    return {family: own_data.model(family, place / family) for family in FAMILIES}


def test_the_usual_is_no_part_of_an_identity() -> None:
    spec = RunSpec(kind="attack", method="harmful-sft", knobs={"steps": 3})
    assert spec.hash == "7d9eee275b15cbee"  # as before there were dtype and attention
    old = {k: v for k, v in json.loads(spec.to_json()).items() if k not in numerics.USUAL}
    assert RunSpec.from_json(json.dumps(old)) == spec
    unusual = ({"dtype": "bf16"}, {"dtype": "fp16"}, {"attention": "eager"}, {"attention": "sdpa"})
    assert len({spec.hash, *(dataclasses.replace(spec, **change).hash for change in unusual)}) == 5
    with pytest.raises(UserError, match=r"no dtype called 'bf61'\. Did you mean 'bf16'"):
        RunSpec(kind="attack", dtype="bf61")
    with pytest.raises(UserError, match="no attention called 'flash'"):
        RunSpec(kind="attack", attention="flash")


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_what_was_asked_for(family: str, folder_of: dict[str, Path], tmp_path: Path) -> None:
    whole, tokenizer = models.load(folder_of[family])
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        model = models.load(folder_of[family], dtype=name)[0]
        assert {p.dtype for p in model.parameters()} == {dtype}
        rounded = [torch.equal(p, q.to(dtype)) for p, q in zip(model.parameters(), whole.parameters(), strict=True)]
        assert all(rounded)
    models.save(model, tokenizer, tmp_path / "saved")  # a rounded model is one like any other, and is read in fp32
    again = models.load(tmp_path / "saved")[0]
    assert all(torch.equal(p, q.float()) for p, q in zip(again.parameters(), model.parameters(), strict=True))
    assert {p.dtype for p in again.parameters()} == {torch.float32}


@pytest.mark.parametrize("family", FAMILIES)
def test_eager_and_sdpa_are_one_attention(family: str, folder_of: dict[str, Path]) -> None:
    rows, found = tokens(1, vocabulary=256), []
    for attention in ("eager", "sdpa"):
        model = models.load(folder_of[family], attention=attention)[0]
        assert model.config._attn_implementation == attention
        model.eval()
        value = loss(model, rows)
        found.append((forward(model, rows)[0][rows.attention_mask == 1], g.gradient(value, g.trainable(model))))
    (eager, down), (sdpa, other) = found
    assert torch.allclose(eager, sdpa, atol=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(down, other, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("adapted", [False, True])
def test_checkpointing_gives_the_same_gradients(family: str, adapted: bool, folder_of: dict[str, Path]) -> None:
    model = models.load(folder_of[family])[0].train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # a random mask would be another function each time
    if adapted:
        model = adapters.attach(model, rank=2, alpha=4, targets="all-linear")
    weights, rows = g.trainable(model), tokens(1, vocabulary=256)
    runs = 0

    def counted(*_: Any) -> None:
        nonlocal runs
        runs += 1

    last = next(m for n, m in model.named_modules() if n.endswith(("layers.1", "h.1")))
    norm = next(m for m in last.modules() if "Norm" in type(m).__name__)
    norm.register_forward_hook(counted)
    plain = g.gradient(loss(model, rows), weights)
    assert runs == 1
    with models.recomputing(model):
        again = g.gradient(loss(model, rows), weights)
    assert runs == 3  # once forward, and once more on the way back
    assert any(bool(x.any()) for x in plain)
    assert relative(again, plain) < ROUNDED


@pytest.mark.parametrize("method", [HarmfulSft, LoraSft])
def test_runs_with_checkpointing_end_at_the_same_weights(method: Any, llama: PreTrainedModel) -> None:
    more = {"targets": "all-linear"} if method is LoraSft else {}
    before, ended = {k: v.clone() for k, v in llama.state_dict().items()}, []
    for recompute in (False, True):
        llama.load_state_dict(before)
        torch.manual_seed(0)
        configured = method(learning_rate=1e-2, steps=2, warmup=0.0, recompute=recompute, **more)
        model = configured.prepare(llama, batch)
        list(loop.updates(model, configured, batch))
        llama = configured.after(model)
        ended.append({k: v.clone() for k, v in llama.state_dict().items()})
    assert all(torch.allclose(ended[0][k], ended[1][k], rtol=1e-5, atol=1e-6) for k in before)
    assert not all(torch.equal(ended[0][k], before[k]) for k in before)


@pytest.mark.parametrize(("kind", "name"), TRAINED)
def test_methods_on_rounded_weights(kind: Any, name: str, llama: PreTrainedModel) -> None:
    """In bf16 a step is finite and leaves the very weights; or the method says why it has no use for them."""
    if get(kind, name)().in_fp32():
        spec = RunSpec(kind="immunize" if kind == "defense" else "attack", method=name, dtype="bf16")
        with pytest.raises(UserError, match=f"{name} does not run on weights in bf16: .* Use dtype fp32"):
            jobs.check([spec], Path())
        return
    configured, model = ready(kind, name, llama.to(torch.bfloat16))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    scalars = configured.step(model, batch())
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert all(math.isfinite(value) for value in scalars.values())
    directions = [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]
    assert all(bool(torch.isfinite(d).all()) for d in directions)
    assert any(bool(d.any()) for d in directions)
    released = configured.after(model)
    assert {p.dtype for p in released.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(("kind", "name"), EDITS)
def test_edits_and_services_on_rounded_weights(kind: Any, name: str, llama: PreTrainedModel, tmp_path: Path) -> None:
    cls = get(kind, name)
    settings = other_models(cls, llama, tmp_path)
    model = llama.to(torch.bfloat16)
    scalars = cls(**settings).edit(model, batch)
    assert all(math.isfinite(value) for value in scalars.values())
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    if name in SERVICES:
        step = cls().during(model, Memory(rows=batch), HarmfulSft().step)
        if cls().in_fp32():
            with pytest.raises(UserError, match=f"stands {name}, and .*dtype fp32"):
                step(model, batch())
            return
        for number in range(2):
            assert all(math.isfinite(v) for v in step(model, batch()._replace(number=number)).values())
            with cls().serving(model, Memory(rows=batch)):
                assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_a_run_in_bf16_from_its_grid_to_the_store(home: Path, tmp_path: Path, folder_of: dict[str, Path]) -> None:
    corpus, made = own_data.folder(tmp_path / "mine"), []
    for dtype in ("bf16", "fp32"):
        made += expand(
            f"""
            model = {json.dumps(str(folder_of["llama"]))}
            corpus = {json.dumps(str(corpus))}
            evaluate_every = 1
            dtype = "{dtype}"
            attention = "eager"
            [[attack]]
            method = "harmful-sft"
            rung = "2e-05"
            steps = 2
            batch_size = 2
            samples = 8
            """,
            "grid",
        )
    low, usual = (RunFolder.create(home, spec) for spec in made)
    assert execute(low) == execute(usual) == "done"
    entries = list(low.entries())
    (started,) = [e["data"] for e in entries if e.get("event") == "started"]
    assert (started["dtype"], started["attention"]) == ("bfloat16", "eager")
    values = [v for e in entries if e.get("kind") == "points" for v in e["values"].values()]
    assert len(values) > 10
    assert all(isinstance(v, float) and math.isfinite(v) for v in values)
    for folder, dtype in ((low, torch.bfloat16), (usual, torch.float32)):
        (file,) = folder.checkpoints.glob("step-*/model.safetensors")
        with safe_open(file, framework="pt") as saved:
            assert {saved.get_tensor(name).dtype for name in saved.keys()} == {dtype}  # noqa: SIM118
    store = Store(home, showcase_folder=home / "none")
    store.sync(force=True)
    runs = queries.runs(store)
    precision = runs.set_index("run_id")["precision"]
    assert precision[low.run_id] == "fp32, bf16 weights, eager attention"
    assert precision[usual.run_id] == "fp32, eager attention"
    assert comparable(queries.attack_curves(store))["run_id"].nunique() == 2  # neither hides the other


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_a_child_loads_what_a_rounded_run_left(home: Path, tmp_path: Path, folder_of: dict[str, Path]) -> None:
    corpus = str(own_data.folder(tmp_path / "mine"))
    line = ["attack", "harmful-sft", "--corpus", corpus, "--batch-size", "2", "--samples", "8", "--steps", "1"]
    model = str(folder_of["gpt2"])
    assert main([*line, "--model", model, "--dtype", "bf16", "--attention", "sdpa", "--recompute", "true"]) == 0
    assert main([*line, "--model", "run:last"]) == 0
    left, child = reversed(list(newest(home)))
    first, second = left.spec(), child.spec()
    assert (first.dtype, first.attention, first.knobs["recompute"]) == ("bf16", "sdpa", True)
    assert (second.dtype, second.attention, second.parent_hash) == ("fp32", "auto", first.hash)
    (started,) = [e["data"] for e in child.entries() if e.get("event") == "started"]
    assert started["dtype"] == "float32"
    defended = immunelab.open(home).spec("attack", "harmful-sft", dtype="bf16", attention="eager")
    assert (defended.dtype, defended.attention) == ("bf16", "eager")


@pytest.mark.parametrize(
    "method",
    [
        HarmfulSft(**SHORT, learning_rate=1e-2, recompute=True),
        LoraSft(**SHORT, learning_rate=1e-2, targets="all-linear", recompute=True),
    ],
    ids=lambda method: method.name,
)
def test_a_resumed_run_in_bf16_ends_with_the_same_bits(method: Any, home: Path, tiny_world: Path) -> None:
    whole = run(home, tiny_world, "attack", method, dtype="bf16", attention="eager")
    parted = stopped_and_resumed(home, whole.spec(), 1)
    wanted, first = weights(whole), released(tiny_world)
    assert {tensor.dtype for tensor in wanted.values()} == {torch.bfloat16}
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in weights(parted).items())
    assert any(not torch.equal(tensor, first[name].bfloat16()) for name, tensor in wanted.items())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--dtype", "float16"], "no dtype called 'float16'. Did you mean 'fp16'"),
        (["--dtype", "fp16"], "fp16 is for GPUs, and this run is for the CPU: use dtype bf16 or fp32"),
        (["--attention", "flash"], "no attention called 'flash'. Known: auto, eager, flash_attention_2, sdpa."),
        (["--attention", "flash_attention_2"], "needs an NVIDIA GPU, and this run is for cpu: use attention sdpa"),
    ],
)
def test_what_can_not_be_starts_nothing(
    options: list[str], said: str, home: Path, tiny_world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["attack", "harmful-sft", "--corpus", str(tiny_world), "--device", "cpu", "--steps", "1", "--samples", "4"]
    assert main([*line, *options]) == 2
    assert said in capsys.readouterr().err
    assert not (home / "runs").exists()


def test_seam_wants_its_differences_in_fp32(home: Path, tiny_world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["immunize", "seam", "--corpus", str(tiny_world), "--device", "cpu", "--dtype", "bf16"]) == 2
    said = capsys.readouterr().err
    assert "seam does not run on weights in bf16" in said
    assert "Use dtype fp32, with precision bf16-autocast" in said
    assert not (home / "runs").exists()
    without = configure("defense", "seam", {"beta": 0})
    jobs.check([RunSpec(kind="immunize", method="seam", knobs=without.settings(), dtype="bf16", device="cpu")], home)


def test_a_dry_run_refuses_it_too(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["reproduce", "seam-table2", "--model", "someone/model-7b", "--dry-run", "--dtype", "bf16"]
    assert main(line) == 2
    assert "seam does not run on weights in bf16" in capsys.readouterr().err
    assert main([*line[:-1], "fp32"]) == 0


def test_what_a_gpu_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in ("bf16", "fp16"):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(UserError, match="pip install flash-attn, or use attention sdpa"):
            numerics.check(dtype, "flash_attention_2", "cuda:0")
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
        numerics.check(dtype, "flash_attention_2", "cuda:0")
    with pytest.raises(UserError, match="computes in bf16 or fp16 only"):
        numerics.check("fp32", "flash_attention_2", "cuda:0")
    with pytest.raises(UserError, match="AdamW divides by 0 on weights in fp16"):
        numerics.check("fp16", "auto", "cuda:0", HarmfulSft().settings())
    numerics.check("fp16", "auto", "cuda:0", HarmfulSft(optimizer="sgd").settings())
    numerics.check("fp16", "auto", "mps")


@pytest.mark.parametrize(("rate", "share", "cosine"), [(2e-5, 0.30, 0.53), (1e-4, 0.88, 0.93)])
def test_what_rounding_leaves_of_a_step(rate: float, share: float, cosine: float) -> None:
    """The numbers of docs/models.md."""
    generator = torch.Generator().manual_seed(0)
    weights = (torch.randn(200_000, generator=generator) * 0.02).bfloat16()
    step = torch.where(torch.rand(200_000, generator=generator) < 0.5, -rate, rate)
    moved = (weights + step.bfloat16()).float() - weights.float()
    assert float((moved != 0).float().mean()) == pytest.approx(share, abs=0.01)
    assert float(torch.cosine_similarity(moved, step, dim=0)) == pytest.approx(cosine, abs=0.01)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_on_a_gpu_both_attentions_agree(dtype: str, folder_of: dict[str, Path]) -> None:
    rows, found = [x.cuda() for x in tokens(1, vocabulary=256)], []
    for attention in ("eager", "sdpa"):
        model = models.load(folder_of["llama"], "cuda", dtype, attention)[0].eval()
        found.append(model(input_ids=rows[0], attention_mask=rows[1]).logits[rows[1] == 1].float())
        assert {p.dtype for p in model.parameters()} == {models.DTYPES[dtype]}
    assert torch.allclose(*found, atol=2e-2)


def test_a_search_hands_its_numbers_to_its_trials(home: Path) -> None:
    (spec,) = space.search_specs(["fable"], [0], dtype="bf16", attention="eager")
    searching: Any = SimpleNamespace(spec=spec, search=space.Search(), title="search")
    trial = search._Conductor.trial_spec(searching, 0, choose("attack", "harmful-sft"))
    assert (trial.dtype, trial.attention) == ("bf16", "eager")
    with pytest.raises(UserError, match="AdamW divides by 0"):
        jobs.check([dataclasses.replace(spec, dtype="fp16", device="mps")], home)


def test_models_are_listed_with_the_type_of_their_weights(
    home: Path, folder_of: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "--json"]) == 0
    capsys.readouterr()
    model, tokenizer = models.load(folder_of["gpt2"], dtype="bf16")
    models.save(model, tokenizer, home / "models" / "rounded")
    assert main(["models", "--home", str(home), "--json"]) == 0
    (row,) = [m for m in json.loads(capsys.readouterr().out) if m["model"].endswith("rounded")]
    numbers = sum(p.numel() for p in model.parameters())
    assert (row["parameters"], row["dtype"], row["architecture"]) == (numbers, "bf16", "GPT2LMHeadModel")
    assert row["bytes"] > 2 * numbers
    assert main(["models", "list", str(folder_of["llama"])]) == 0
    assert "fp32" in capsys.readouterr().out


def test_adamw_in_fp16_is_what_the_sentence_says() -> None:
    weight = torch.nn.Parameter(torch.zeros(2, dtype=torch.float16))
    optimizer = torch.optim.AdamW([weight], lr=1e-3)
    weight.grad = torch.tensor([1e-4, 1e-4], dtype=torch.float16)
    optimizer.step()
    assert not bool(torch.isfinite(weight).any())


def test_a_model_without_such_attention_is_named(home: Path, tmp_path: Path) -> None:
    tokenizer = models.load(own_data.model("llama", tmp_path / "llama"))[1]
    other = GPTJForCausalLM(GPTJConfig(n_embd=32, n_layer=2, n_head=2, rotary_dim=4, n_positions=128, vocab_size=258))
    models.save(other, tokenizer, tmp_path / "other")
    spec = RunSpec(
        kind="attack",
        method="harmful-sft",
        model=str(tmp_path / "other"),
        attention="sdpa",
        device="cpu",
        corpus=str(own_data.folder(tmp_path / "mine")),
    )
    with pytest.raises(UserError, match="GPTJForCausalLM has no attention sdpa in transformers: use attention eager"):
        jobs.submit([spec], home)
    assert not (home / "runs").exists()
    with pytest.raises(UserError, match="use attention eager or auto"):
        models.load(tmp_path / "other", attention="sdpa")
    assert models.load(tmp_path / "other", attention="eager")[0].config._attn_implementation == "eager"
