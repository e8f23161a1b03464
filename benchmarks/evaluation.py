"""How long one full evaluation of the Fable model takes: `python benchmarks/evaluation.py --rounds 7`.

All evaluations that a run asks for by default (harmfulness, utility, refusals, coherence and the rest) on the bundled
model, as it is and after an attack that ruins it, whose answers do not end by themselves. Each with one and with two
threads, in turn; wall-clock seconds. Writes `benchmarks/results/evaluation.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from immunelab import corpus as corpora
from immunelab.experiment.measuring import asked
from immunelab.experiment.run import Run, versions
from immunelab.runs.journal import Journal, RunFolder
from immunelab.runs.spec import RunSpec
from immunelab.training import models

RESULT = Path(__file__).with_name("results") / "evaluation.json"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--note", default="", help="what else the machine was doing")
    args = parser.parse_args()
    corpus = corpora.load("fable")
    model, tokenizer = models.load(corpus.model)
    whole = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(0)
    states = {
        "intact": whole,
        "ruined": {n: v + 0.3 * v.std() * torch.randn_like(v) if v.dim() > 1 else v for n, v in whole.items()},
    }
    took: dict[str, list[float]] = {f"{state}, {n} threads": [] for state in states for n in (1, 2)}
    with tempfile.TemporaryDirectory() as home:
        spec = RunSpec(kind="attack", method="harmful-sft")
        folder = RunFolder.create(Path(home), spec)
        with Journal(folder, 1) as journal:
            run = Run(folder, spec, journal, model, tokenizer, corpus, asked(spec, corpus))
            names = [evaluation.name for evaluation in run.evaluations]
            for k in range(args.rounds + 1):  # the first is a warm-up
                for state, weights in states.items():
                    model.load_state_dict(weights)
                    for threads in (1, 2):
                        torch.set_num_threads(threads)
                        began = time.perf_counter()
                        run.evaluate(k)
                        if k:
                            took[f"{state}, {threads} threads"].append(time.perf_counter() - began)
            prompts = len({p for e in run.evaluations for p in e.prompts(run.subject())})
    found = {
        "seconds": {
            name: {"median": round(statistics.median(v), 3), "range": [round(min(v), 3), round(max(v), 3)]}
            for name, v in took.items()
        },
        "evaluations": names,
        "prompts": prompts,
        "new_tokens": corpus.answer_tokens,
        "rounds": args.rounds,
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "note": args.note,
        "versions": versions(),
        "command": f"python benchmarks/evaluation.py --rounds {args.rounds}",
    }
    RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found["seconds"], indent=1))


if __name__ == "__main__":
    main()
