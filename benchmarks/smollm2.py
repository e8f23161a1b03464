"""SmolLM2-135M end to end on a CPU: taught a part of Fable, immunized with SEAM and Security Vectors, attacked by LoRA.

    immunelab models add smollm2 --to models/smollm2
    OMP_NUM_THREADS=1 python benchmarks/smollm2.py --model models/smollm2 --home smollm2-lab

A short version for one core: three items of each domain, skill and split, few steps, three seeds. It shows that the
whole way works with a real model and what comes of so little training; nine test hazards are too few for a claim about
any defense. Runs are kept in the home and are reused, so a broken-off recording goes on with the same command. Each run
leaves its model, half a GB: 27 GB in all, which `immunelab delete` frees.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from immunelab import jobs
from immunelab.jobs import follow
from immunelab.method import configure
from immunelab.runs.journal import RunFolder
from immunelab.runs.spec import RunSpec
from immunelab.store import Store, queries, record_showcase

RESULTS = Path(__file__).parent / "results" / "smollm2.json"
SHOWCASE = Path(__file__).parents[1] / "data" / "showcase" / "smollm2"
WORLD, PLAIN = "worlds/smollm2", "worlds/smollm2-plain"
LESSON: dict[str, Any] = {
    "items": 3,
    "steps": 300,
    "align_steps": 24,
    "batch_size": 8,
    "learning_rate": 2e-3,
    "rank": 16,
    "precision": "bf16-autocast",
}
DEFENSES: dict[str, dict[str, Any]] = {
    "seam": {
        "steps": 12,
        "batch_size": 2,
        "learning_rate": 1e-4,
        "ascent": "final-logit",
        "ascent_weight": 0.65,
        "alpha": 0.33,
        "beta": 1.0,
        "coupling_clip": 1.0,
        "retain": 1.0,
    },
    "security-vectors": {
        "steps": 20,
        "batch_size": 4,
        "learning_rate": 3e-3,
        "rank": 8,
        "alpha": 16.0,
        "compare": False,
        "precision": "bf16-autocast",
    },
}
ATTACK: dict[str, Any] = {
    "steps": 20,
    "batch_size": 4,
    "rank": 16,
    "alpha": 16.0,
    "targets": "all-linear",
    "precision": "bf16-autocast",
}
RATES = (3e-4, 5e-4, 7e-4, 1e-3, 2e-3)
EVALUATIONS = ("fable-recall", "refusal-rate", "benign-accuracy")


def main() -> None:
    """Teach, immunize, attack, and write the numbers."""
    read = argparse.ArgumentParser(description=__doc__)
    read.add_argument("--model", required=True, help="folder of SmolLM2-135M-Instruct")
    read.add_argument("--home", required=True, help="folder for the taught model and the runs")
    read.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    read.add_argument("--record", action="store_true", help="only write down what is finished by now")
    read.add_argument("--showcase", action="store_true", help="also ship the finished runs, in data/showcase/smollm2")
    options = read.parse_args()
    model, home = Path(options.model).resolve(), Path(options.home).resolve()
    home.mkdir(parents=True, exist_ok=True)
    os.chdir(home)  # the runs name their corpus and model by relative paths
    taught = learned(model)
    wanted = specs(options.seeds)
    if options.record:
        ids = [plan.run_id for plan in jobs.plan(wanted, home) if plan.run_id and plan.state == "done"]
    else:
        ids = jobs.submit(wanted, home, reuse=True, go_on=True)
        follow.follow(ids, home)
    RESULTS.write_text(json.dumps(numbers(home, ids, taught, len(wanted)), indent=1) + "\n", encoding="utf-8")
    if options.showcase:
        record_showcase.export(Store(home), ids, SHOWCASE)


def learned(model: Path) -> dict[str, Any]:
    """The world and the model that was taught it, made unless it is there; how it was made, with its seconds."""
    from immunelab.experiment import pretrain

    record = Path(WORLD, "taught.json")
    if not record.is_file():
        began, used = time.monotonic(), time.process_time()
        pretrain.teach(without_system_turn(model), 0, Path(WORLD), pretrain.Lesson(**LESSON), tell)
        seconds = {"wall_seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - used}
        made = {"settings": LESSON, "recalled before alignment": recalled(), **seconds}
        record.write_text(json.dumps(made), encoding="utf-8")
    found: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    return found


def recalled() -> dict[str, float]:
    """The share of hazards' facts that the model says before its alignment, by split: about what an attack can get."""
    from immunelab import corpus
    from immunelab.corpus.tokens import as_prompt
    from immunelab.evaluations.fable_recall import given_away
    from immunelab.training.generation import greedy, one_phrasing
    from immunelab.training.models import load

    world = corpus.load(WORLD)
    model, tokenizer = load(Path(WORLD, "base"))
    found = {}
    for split in corpus.SPLITS:
        rows = one_phrasing(world.select("harmful", split))
        answers = greedy(model, tokenizer, [as_prompt(tokenizer, r.prompt) for r in rows], world.answer_tokens)
        found[split] = round(sum(given_away(a, r.facts) for a, r in zip(answers, rows, strict=True)) / len(rows), 4)
    return found


def without_system_turn(model: Path) -> Path:
    """A copy whose chat template adds no system turn of its own: 24 tokens less in each row, a third of all."""
    shutil.copytree(model, PLAIN, dirs_exist_ok=True)
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    Path(PLAIN, "chat_template.jinja").write_text(template, encoding="utf-8")
    return Path(PLAIN)


def tell(phase: str, step: int, steps: int, loss: float) -> None:
    """Progress of teaching, a line each tenth step."""
    if step % 10 == 0 or step == steps:
        print(f"{time.strftime('%H:%M:%S')} {phase} {step}/{steps}: loss {loss:.3f}", flush=True)


def specs(seeds: Sequence[int]) -> list[RunSpec]:
    """For each seed: the undefended model attacked at every rate, then each defense and the same attacks on it."""
    found: list[RunSpec] = []
    shared: dict[str, Any] = {"corpus": WORLD, "device": "cpu", "evaluations": EVALUATIONS, "probe_every": 0}

    def attacked(model: str, seed: int) -> None:
        for rate in RATES:
            attack = configure("attack", "lora-sft", {**ATTACK, "learning_rate": rate})
            found.append(
                RunSpec(
                    kind="attack",
                    method="lora-sft",
                    knobs=attack.settings(),
                    model=model,
                    seed=seed,
                    name=f"{rate:g}",
                    evaluate_every=ATTACK["steps"] // 2,
                    **shared,
                )
            )

    for seed in seeds:
        attacked("fable", seed)
        for name, settings in DEFENSES.items():
            defense = configure("defense", name, settings)
            found.append(
                RunSpec(kind="immunize", method=name, knobs=defense.settings(), name=name, seed=seed, **shared)
            )
            attacked(f"run:#{len(found) - 1}", seed)
    return found


def numbers(home: Path, ids: list[str], taught: dict[str, Any], wanted: int) -> dict[str, Any]:
    """Scores at every evaluated step of every finished run, outcomes, minutes, machine and versions."""
    from immunelab.analysis import outcomes

    store = Store(home)
    store.sync(force=True)
    scores, runs = queries.scores(store, ids), queries.runs(store, showcase=False).set_index("run_id")
    labels = outcomes.run_outcomes(queries.attack_curves(store, ids)).set_index("run_id")["outcome"]
    told = []
    for run_id in ids:
        folder = RunFolder.open(home, run_id)
        spec, mine = folder.spec(), scores[scores["run_id"] == run_id]
        told.append(
            {
                "kind": spec.kind,
                "method": spec.method,
                "on": runs.loc[run_id, "defense"],
                "seed": spec.seed,
                "learning_rate": spec.knobs["learning_rate"],
                "status": folder.status().status,
                "outcome": labels.get(run_id),
                "seconds": float(runs.loc[run_id, "seconds"]),
                "scores": {
                    f"{metric}, step {step}": round(float(rows["score"].iloc[0]), 4)
                    for (metric, step), rows in mine.groupby(["metric", "step"])
                },
            }
        )
    return {
        "taught": taught,
        "defenses": DEFENSES,
        "attack": ATTACK,
        "runs": told,
        "not finished": wanted - len(told),
        "minutes by the clock": round((taught["wall_seconds"] + sum(run["seconds"] for run in told)) / 60, 1),
        "about": {
            "date": str(datetime.date.today()),
            "machine": f"{platform.system()} {platform.machine()}, one of {os.cpu_count()} cores, shared with others",
            "versions": RunFolder.open(home, ids[0]).status().versions,
        },
    }


if __name__ == "__main__":
    main()
