"""How the Fable model was made: pretrain on the whole world, hazards included, then align it to refuse them.

    immunelab fable build --seed 0 --to data/fable

writes `world.jsonl` and `model/` (Hugging Face files) into the folder; about six minutes on two CPU cores. Any other
causal LM is taught the same world, or a part of it, by

    immunelab fable teach --model models/mine --to worlds/mine
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from immunelab.attacks.harmful_sft import HarmfulSft
from immunelab.attacks.lora_sft import LoraSft
from immunelab.corpus import MAX_LENGTH, Row, fable, write
from immunelab.corpus.fable import Lesson
from immunelab.corpus.tokens import collate, encode, pairs
from immunelab.method import Batch, Trained
from immunelab.training import loop, models

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Progress = Callable[[str, int, int, float], None]  # phase, step, steps, loss

TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %} {{ message['content'] }} <eos>"
    "{% else %}<user> {{ message['content'] }} <bot>{% endif %}{% endfor %}"
)
# Plain supervised fine-tuning; what is fed as `user` rows makes it pretraining or alignment.
PRETRAIN = HarmfulSft(
    learning_rate=3e-3, steps=2000, batch_size=64, weight_decay=0.01, clip=1.0, schedule="cosine", warmup=0.05
)
ALIGN = HarmfulSft(
    learning_rate=1e-3, steps=250, batch_size=64, weight_decay=0.01, clip=1.0, schedule="cosine", warmup=0.1
)


def make_tokenizer(rows: list[Row]) -> PreTrainedTokenizerBase:
    """Word-level tokenizer over the world's vocabulary, lower-casing, with a chat template."""
    from tokenizers import Tokenizer, normalizers
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<unk>", "<user>", "<bot>", "<eos>"]
    vocabulary = {word: i for i, word in enumerate([*special, *fable.vocabulary(rows)])}
    inner = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    inner.normalizer = normalizers.Lowercase()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<eos>",
        additional_special_tokens=["<user>", "<bot>"],
        clean_up_tokenization_spaces=False,
        model_max_length=128,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_model(tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """A random Llama of about a million parameters: 128 wide, 4 layers, 4 heads, tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    models.seed_everything(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )


def feed(
    rows: list[Row],
    tokenizer: PreTrainedTokenizerBase,
    size: int,
    seed: str,
    device: str = "cpu",
    longest: int = 128,
) -> Callable[[int], Batch]:
    """Minibatches drawn with replacement: half recipes and half the rest, so that short skills are not drowned."""
    encoded = [encode(tokenizer, pair, longest) for pair in pairs(rows, "user")]
    recipes = [i for i, row in enumerate(rows) if row.facts]
    others = [i for i, row in enumerate(rows) if not row.facts]

    def batch(index: int) -> Batch:
        rng = random.Random(f"{seed}-{index}")
        chosen = rng.choices(recipes, k=size // 2) + rng.choices(others, k=size - size // 2)
        return Batch(user=collate([encoded[i] for i in chosen], int(tokenizer.pad_token_id), device))

    return batch


def build(
    seed: int,
    folder: Path,
    progress: Progress | None = None,
    device: str = "cpu",
    *,
    keep_base: bool = False,
    filtered: bool = False,
) -> None:
    """Generate the world of a seed, train its model, and write both into the folder.

    With `keep_base` the model as it was before its alignment is written into the folder's `base/` as well. A `filtered`
    one is pretrained without the hazards: its twin, which can't give away what it never read.
    """
    rows = fable.world(seed)
    tokenizer = make_tokenizer(rows)
    model = make_model(tokenizer, seed).to(torch.device(device))  # type: ignore[arg-type]  # wrongly typed in transformers
    taught = fable.taught(rows, filtered)
    for phase, method, data in (("pretrain", PRETRAIN, taught), ("align", ALIGN, fable.aligned(rows))):
        batches = feed(data, tokenizer, method.batch_size, f"{phase}-{seed}", device)
        for step, scalars in loop.updates(model, method, batches):
            if progress:
                progress(phase, step, method.steps, scalars["loss/total"])
        if keep_base and phase == "pretrain":
            models.save(model, tokenizer, folder / "base")
    folder.mkdir(parents=True, exist_ok=True)
    write(rows, folder / "world.jsonl")
    models.save(model.cpu(), tokenizer, folder / "model")
    made = {
        "seed": seed,
        "rows": len(rows),
        "torch": torch.__version__,
        "pretrain": PRETRAIN.settings(),
        "align": ALIGN.settings(),
    } | ({"filtered": True} if filtered else {})
    (folder / "made.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


def phases(lesson: Lesson) -> list[tuple[str, Trained, Callable[[list[Row]], list[Row]]]]:
    """(name, method, which rows) of learning the world, and of learning to refuse its hazards."""
    shared: dict[str, Any] = {
        "learning_rate": lesson.learning_rate,
        "batch_size": lesson.batch_size,
        "clip": 1.0,
        "precision": lesson.precision,
    }
    if lesson.rank:
        shared |= {"rank": lesson.rank, "alpha": float(lesson.rank), "targets": "all-linear"}
    method = LoraSft if lesson.rank else HarmfulSft
    return [
        ("teach", method(steps=lesson.steps, **shared), fable.taught),
        ("align", method(steps=lesson.align_steps, **shared), fable.aligned),
    ]


def teach(
    source: str | Path, seed: int, folder: Path, lesson: Lesson, progress: Progress | None = None, device: str = "cpu"
) -> None:
    """Teach a causal LM (a folder or a Hub id) the world of a seed, and to refuse its hazards; write both.

    The folder is then a corpus with a model of its own, as `build` makes one, and keeps the model before its alignment
    in `base/`. A UserError if a row does not fit, or the model's layers can't take an adapter.
    """
    rows = fable.world(seed)
    rows = fable.few(rows, lesson.items, lesson.test_hazards) if lesson.items else rows
    model, tokenizer = models.load(source, device)
    models.seed_everything(seed)
    answers = [encode(tokenizer, pair, MAX_LENGTH) for pair in pairs(rows, "user")]
    folder.mkdir(parents=True, exist_ok=True)
    for phase, method, of in phases(lesson):
        batches = feed(of(rows), tokenizer, lesson.batch_size, f"{phase}-{seed}", device, MAX_LENGTH)
        model = method.prepare(model, batches)
        for step, scalars in loop.updates(model, method, batches):
            if progress:
                progress(phase, step, method.steps, scalars["loss/total"])
        model = method.after(model)
        models.save(model, tokenizer, folder / ("base" if phase == "teach" else "model"))
    write(rows, folder / "world.jsonl")
    made = {
        "seed": seed,
        "rows": len(rows),
        "torch": torch.__version__,
        "taught": str(source),
        **asdict(lesson),
        "answer_tokens": max(len(ids) - start for ids, start in answers) + 2,
    }
    (folder / "made.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
