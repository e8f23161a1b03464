"""What a step of each defense costs, in plain fine-tuning steps of as many rows: in turn, in one process, on Fable.

    OMP_NUM_THREADS=1 python benchmarks/step_cost.py --rounds 9

Prints and writes `benchmarks/results/step_cost.json`, which the Methods page reads. A step is what `step` does: the
direction, without the optimizer's update, in processor time. Plain is `harmful-sft` with the defense's batch size. Of
a provider's defense it is a user's step with the provider; what serving takes once is given in plain steps too.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.attack_loop import clock
from benchmarks.seam_cost import of
from immunelab import corpus as corpora
from immunelab.attacks.harmful_sft import HarmfulSft
from immunelab.corpus import pairing
from immunelab.corpus.tokens import Batches
from immunelab.experiment.run import versions
from immunelab.method import Defense, Memory, Service, get, names
from immunelab.training import models

PRESETS = ("fable", "paper", "official-code")  # the last where a paper's numbers are not known
USER = HarmfulSft.presets["fable"]
LONG, FEW = 10.0, 3  # of steps that take longer than 10 plain ones 3 rounds are enough
Timed = Callable[[int], object]


class Anywhere:
    """Stands in for an embedder: which answer a prompt gets makes no difference to the time of a step."""

    name = "random"

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """A random vector for each text."""
        return np.random.default_rng(0).normal(size=(len(texts), 8)).astype(np.float32)


class Bench:
    """Fable's rows, and the costs of methods on its model, or on another one whose vocabulary is as large."""

    def __init__(self, rounds: int, device: str = "cpu", fresh: Callable[[], Any] | None = None) -> None:
        self.rounds, self.device = rounds, device
        self.corpus = corpora.load("fable")
        self.tokenizer = models.tokenizer(self.corpus.model)
        self.fresh = fresh or (lambda: models.load(self.corpus.model, device)[0])

    def cost(self, method: Defense | Service) -> dict[str, float]:
        """The cost of a method's step in plain steps; the model is loaded anew."""
        self.model = self.fresh()
        return self.served(method) if isinstance(method, Service) else self.trained(method)

    def trained(self, method: Defense) -> dict[str, float]:
        """Of a defense that trains before release, or trains a vector for a provider."""
        torch.manual_seed(0)
        plain = self.plain(method.batch_size, "bf16-autocast" if method.precision == "bf16-autocast" else "fp32")
        feed = self.batches(method, "defense")
        subject, reference, own = method.prepare(self.model, feed), self.fresh(), of(method)
        found = self.compared(lambda i: plain(reference, i), lambda i: own(subject, feed(i)))
        if not method.overrides():
            return found
        memory = Memory(method.kept(subject), feed)
        subject = method.after(subject)
        step, users = method.during(subject, memory, USER.step), self.batches(USER, "attack")
        theirs = self.plain(USER.batch_size)
        user = self.compared(lambda i: theirs(reference, i), lambda i: step(subject, users(i)))
        return found | {"user_step": user["step"]}

    def served(self, method: Service) -> dict[str, float]:
        """Of a provider's service: a user's step with it, and serving once."""
        rows: Any = self.batches(method, "defense") if method.streams else lambda i: None
        memory = Memory(dict(method.kept(self.model)), rows)
        step, users = method.during(self.model, memory, USER.step), self.batches(USER, "attack")
        plain = self.plain(USER.batch_size)
        found = self.compared(lambda i: plain(self.model, i), lambda i: step(self.model, users(i)))
        began = clock(self.device)
        with method.serving(self.model, memory):
            once = clock(self.device) - began
        return {"user_step": found["step"], "serving": once * 1e3 / found["plain_ms"], "plain_ms": found["plain_ms"]}

    def plain(self, rows: int, precision: Any = "fp32") -> Callable[[Any, int], object]:
        """A plain step of so many rows."""
        sft = replace(USER, batch_size=rows, precision=precision)
        feed, step = self.batches(sft, "attack"), of(sft)
        return lambda model, i: step(model, feed(i))

    def batches(self, method: Any, split: str) -> Batches:
        """A method's minibatches; drawn from all of Fable's rows, which are fewer than some papers'."""
        if method.name != USER.name and getattr(method, "samples", 0):
            method = replace(method, samples=min(method.samples, 200))
        wanted = "unrelated" in method.streams
        pairs = pairing.build(self.corpus, pairing.Rule.of(method), embedder=Anywhere()) if wanted else None
        return Batches(self.corpus, self.tokenizer, method, split=split, seed=0, device=self.device, pairing=pairs)

    def compared(self, plain: Timed, own: Timed) -> dict[str, float]:
        """Median time of the two in turn, over the rounds; the first round warms up."""
        times: dict[Timed, list[float]] = {plain: [], own: []}
        for i in range(self.rounds + 1):
            for step in (plain, own):
                began = clock(self.device)
                step(i)
                times[step].append(clock(self.device) - began)
            if i >= FEW and times[own][-1] > LONG * times[plain][-1]:
                break
        usual, took = (statistics.median(times[step][1:]) for step in (plain, own))
        return {"step": took / usual, "plain_ms": usual * 1e3}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--to", type=Path, default=Path(__file__).parent / "results" / "step_cost.json")
    args = parser.parse_args()
    bench, found = Bench(args.rounds), {}
    for name in names("defense"):
        cls = get("defense", name)
        if not issubclass(cls, Defense | Service):
            continue  # an edit has no step
        # What a service does to a step is the same in all presets but for its rows; SDD_reject's words are not Fable's.
        known = PRESETS[:1] if issubclass(cls, Service) or name == "sdd-reject" else PRESETS
        chosen = {preset: cls.presets[preset] for preset in known if preset in cls.presets}
        chosen = dict(list(chosen.items())[:2])
        found[name] = {p: {k: round(v, 2) for k, v in bench.cost(m).items()} for p, m in chosen.items()}
        print(name, found[name], flush=True)
    threads = torch.get_num_threads()
    results = {
        "date": date.today().isoformat(),
        "command": shlex.join(["python", "benchmarks/step_cost.py", *sys.argv[1:]]),
        "versions": versions(),
        "machine": f"{platform.processor() or platform.machine()}, {threads} thread{'s' * (threads != 1)}",
        "model": "fable",
        "defenses": found,
    }
    args.to.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
