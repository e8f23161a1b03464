"""What tracing costs: steps of SEAM and of the attack on Fable, with a journal and without, in turn in one process.

    python benchmarks/tracing.py --pairs 30

Prints and writes `benchmarks/results/tracing.json`: median step time without tracing, the median over pairs of the
relative difference, and the time of one `Journal.points` call by itself.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch

from immunelab import corpus as corpora
from immunelab.attacks.harmful_sft import HarmfulSft
from immunelab.corpus.tokens import Batches
from immunelab.defenses.seam import Seam
from immunelab.experiment.run import Run, versions
from immunelab.runs.journal import Journal, RunFolder
from immunelab.runs.spec import RunSpec
from immunelab.training import loop, models

STEPS = 6


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=30)
    pairs = parser.parse_args().pairs
    corpus = corpora.load("fable")
    model, tokenizer = models.load(corpus.model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    results: dict[str, object] = {
        "date": date.today().isoformat(),
        "versions": versions(),
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "pairs": pairs,
    }
    with tempfile.TemporaryDirectory() as home:
        for method, split in ((Seam.presets["fable"], "defense"), (HarmfulSft.presets["fable"], "attack")):
            short = replace(method, steps=STEPS, warmup=0)
            kind = "immunize" if split == "defense" else "attack"
            folder = RunFolder.create(Path(home), RunSpec(kind=kind, method=method.name))
            batches = Batches(corpus, tokenizer, short, split=split, seed=0)
            with Journal(folder, 1) as journal:
                run = Run(folder, folder.spec(), journal, model, tokenizer, corpus, [])
                run.steps = 10**9

                def timed(
                    traced: bool, run: Run = run, short: Seam | HarmfulSft = short, batches: Batches = batches
                ) -> float:
                    model.load_state_dict(before)
                    began = time.perf_counter()
                    for step, scalars in loop.updates(model, short, batches):
                        if traced:
                            run.trace(step, scalars)
                            run.progress(step)
                    return (time.perf_counter() - began) / STEPS

                timed(True), timed(False)
                ratios, plain = [], []
                for pair in range(pairs):
                    order = (True, False) if pair % 2 else (False, True)
                    took = {traced: timed(traced) for traced in order}
                    ratios.append(took[True] / took[False] - 1)
                    plain.append(took[False])
                values = {f"scalar/{i}": 0.1 * i for i in range(20)}
                began = time.perf_counter()
                for step in range(2000):
                    journal.points("attack", step, values)
                call = (time.perf_counter() - began) / 2000
            results[method.name] = {
                "step_ms_without": round(statistics.median(plain) * 1e3, 2),
                "overhead_percent_median": round(statistics.median(ratios) * 100, 2),
                "overhead_percent_quartiles": [round(q * 100, 2) for q in statistics.quantiles(ratios, n=4)],
                "points_call_microseconds": round(call * 1e6, 1),
                "points_call_percent_of_step": round(call / statistics.median(plain) * 100, 3),
            }
    text = json.dumps(results, indent=1)
    (Path(__file__).parent / "results" / "tracing.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
