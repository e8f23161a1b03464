"""The attack by supervised fine-tuning in this loop and in the Trainer of transformers, step for step.

    python benchmarks/attack_loop.py --steps 20 --rounds 3 --model fable
    python benchmarks/attack_loop.py --steps 2 --rounds 2 --model smollm2-135m

The same weights, the same minibatches in the same order, cosine with warm-up, fp32, no evaluations, and the AdamW that
the Trainer takes by default (fused). Ours traces all scalars of every step into a journal; the Trainer logs its loss
at every step. Timed in turn by processor time, from the first step to the last; both losses are compared.
`smollm2-135m` has random weights of that model's shape. Writes `benchmarks/results/attack_loop_<model>.json`.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from immunelab import corpus as corpora
from immunelab.attacks.harmful_sft import HarmfulSft
from immunelab.corpus.tokens import Batches
from immunelab.experiment.run import Run, versions
from immunelab.method import Batch, Tokens
from immunelab.runs.journal import Journal, RunFolder
from immunelab.runs.spec import RunSpec
from immunelab.training import loop, models


def ours(model: PreTrainedModel, method: HarmfulSft, batches: list[Tokens], run: Run | None = None) -> list[float]:
    """The losses of the loop; with a run, everything is traced into its journal."""
    losses = []
    for step, scalars in loop.updates(model, method, lambda i: Batch(user=batches[i])):
        losses.append(scalars["loss/total"])
        if run:
            run.trace(step, scalars)
            run.progress(step)
    return losses


class InOrder(Trainer):
    """The Trainer, given whole minibatches in order; its losses are kept as they are, because its log rounds them."""

    losses: list[float]

    def get_train_dataloader(self) -> Any:
        """One minibatch at a time, already made."""
        return torch.utils.data.DataLoader(self.train_dataset, batch_size=None, shuffle=False)

    def training_step(self, *args: Any, **rest: Any) -> torch.Tensor:
        """As the Trainer does it."""
        loss = super().training_step(*args, **rest)
        self.losses.append(float(loss))
        return loss


def clock(device: str) -> float:
    """Seconds: of processor time, or for a GPU by the clock, with all work done."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def theirs(model: PreTrainedModel, method: HarmfulSft, batches: list[Tokens], folder: Path) -> list[float]:
    """The losses of the Trainer with the same settings; without weight decay, which it keeps from norms and biases."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=method.steps,
        learning_rate=method.learning_rate,
        lr_scheduler_type=method.schedule,
        warmup_steps=int(method.warmup * method.steps),
        max_grad_norm=0.0,
        logging_steps=1,
        logging_strategy="steps",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=model.device.type == "cpu",
        per_device_train_batch_size=1,
    )
    data: Any = [rows._asdict() for rows in batches]
    trainer = InOrder(model=model, args=arguments, train_dataset=data)
    trainer.remove_callback(PrinterCallback)
    trainer.losses = []
    trainer.train()
    return trainer.losses


def smollm2() -> tuple[PreTrainedModel, list[Tokens]]:
    """Random weights in the shape of SmolLM2-135M, and random rows of 32 tokens, half of them scored."""
    set_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
            rope_theta=100000.0,
        )
    )
    made = []
    for seed in range(64):
        ids = torch.randint(3, 49152, (2, 32), generator=torch.Generator().manual_seed(seed))
        labels = ids.clone()
        labels[:, :16] = -100
        made.append(Tokens(ids, torch.ones_like(ids), labels))
    return model, made


def compared(name: str, steps: int, rounds: int, device: str = "cpu") -> dict[str, Any]:
    """Milliseconds a step of both loops in turn on a model, and how far their losses are apart."""
    corpus = corpora.load("fable")
    fable, tokenizer = models.load(corpus.model, device)
    method = replace(HarmfulSft.presets["fable"], steps=steps)
    if name == "fable":
        origin, feed = fable, Batches(corpus, tokenizer, method, split="attack", seed=0, device=device)
        batches = [feed(i).user for i in range(steps)]
    else:
        origin, batches = smollm2()
        origin = origin.to(torch.device(device))  # type: ignore[arg-type]  # wrongly typed in transformers
        batches = [Tokens(*(t.to(device) for t in rows)) for rows in batches[:steps]]
        method = replace(method, learning_rate=1e-5)
    took: dict[str, list[float]] = {"ours": [], "Trainer": []}
    apart = 0.0
    with tempfile.TemporaryDirectory() as home:
        folder = RunFolder.create(Path(home), RunSpec(kind="attack", method=method.name))
        with Journal(folder, 1) as journal:
            run = Run(folder, folder.spec(), journal, origin, tokenizer, corpus, [])
            run.steps = 10**9
            for k in range(rounds + 1):  # the first is a warm-up
                found = {}
                for way in took:
                    model = copy.deepcopy(origin)
                    began = clock(device)
                    if way == "ours":
                        found[way] = ours(model, method, batches, run)
                    else:
                        found[way] = theirs(model, method, batches, Path(home))
                    if k:
                        took[way].append((clock(device) - began) / steps)
                apart = max(abs(x - y) for x, y in zip(found["ours"], found["Trainer"], strict=True))
    return {
        "steps": steps,
        "largest difference of losses": apart,
        "milliseconds a step, median": {n: round(1e3 * statistics.median(t), 2) for n, t in took.items()},
        "milliseconds a step, range": {n: [round(1e3 * min(t), 2), round(1e3 * max(t), 2)] for n, t in took.items()},
        "steps a second, ours to the Trainer's": round(
            statistics.median(y / x for x, y in zip(took["ours"], took["Trainer"], strict=True)), 2
        ),
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("fable", "smollm2-135m"), default="fable")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    about = {
        "date": date.today().isoformat(),
        "command": " ".join(["python", "benchmarks/attack_loop.py", *sys.argv[1:]]),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, shared with other work; "
        f"{torch.get_num_threads()} thread",
        "versions": versions(),
    }
    result = {"about": about, **compared(args.model, args.steps, args.rounds)}
    text = json.dumps(result, indent=1)
    path = Path(__file__).parent / "results" / f"attack_loop_{args.model}.json"
    path.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
