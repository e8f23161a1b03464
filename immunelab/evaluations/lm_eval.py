"""Tasks of EleutherAI's LM Evaluation Harness (the extra `eval`) on the model of a run."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from immunelab import conversation
from immunelab.errors import UserError, unknown
from immunelab.method import Evaluation, Metric, knob, register
from immunelab.training.generation import Measured, Score, Subject, over_tasks
from immunelab.training.models import evaluating

ACCURACIES = ("acc", "exact_match", "acc_norm", "mc2", "mc1")  # a task's accuracy is the first of these that it has
MISSING = "lm-eval is not installed: make eval (or: pip install --no-deps -r requirements-eval.lock)."
LONGEST = 2000  # characters that are kept of a text


@register("evaluation")
@dataclass(frozen=True, kw_only=True)
class LmEval(Evaluation):
    """zero_shot = unweighted mean over the named tasks of their accuracy, as lm-eval computes it.

    A task's accuracy is the first of acc, exact_match, acc_norm, mc2 and mc1 that it has; everything that it reports is
    kept as `lm-eval/<metric>`. With examples in the prompt the score is called `few_shot`. The run records the
    harness's version. Without `chat`, questions are asked outside a chat template, as in most papers.
    """

    name: ClassVar[str] = "lm-eval"
    title: ClassVar[str] = "Tasks of the LM Evaluation Harness (ZS)"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("zero_shot", "mean accuracy on tasks of the LM Evaluation Harness", better="high"),
        Metric("few_shot", "the same with examples in the prompt", better="high"),
    )

    tasks: str = knob("", "names of tasks, separated by commas")
    folder: str = knob("", "a folder of task files (YAML) that you trust: they are code, which lm-eval runs")
    shots: int = knob(0, "examples in the prompt", low=0, high=100)
    limit: int = knob(0, "questions of each task; 0: all", low=0, high=10**9)
    batch_size: int = knob(16, "rows in one forward pass", low=1, high=4096)
    chat: bool = knob(False, "ask in the model's chat template")

    def check(self) -> None:
        """A UserError if the package is missing, no task is named, or a task is unknown."""
        if importlib.util.find_spec("lm_eval") is None:
            raise UserError(MISSING)
        if not self._names():
            raise UserError("lm-eval needs tasks, such as --tasks arc_easy,hellaswag.")
        if self.folder and not Path(self.folder).is_dir():
            raise UserError(f"There is no folder {self.folder!r} with task files for lm-eval.")
        known = self._manager().all_tasks
        for name in self._names():
            if name not in known:
                raise unknown("task of lm-eval", name, known)

    def prompts(self, subject: Subject) -> list[str]:
        """None, because the harness asks by itself."""
        return []

    def measure(self, subject: Subject) -> Measured:
        """The accuracy of every task and their mean, and every metric that the harness reports."""
        self.check()
        harness = importlib.import_module("lm_eval")
        try:
            with evaluating(subject.model):
                model = importlib.import_module("lm_eval.models.huggingface").HFLM(
                    pretrained=subject.model,
                    tokenizer=subject.tokenizer,
                    batch_size=self.batch_size,
                    chat_template_args=conversation.settings(subject.tokenizer) if self.chat else None,
                )
                found = harness.simple_evaluate(
                    model=model,
                    tasks=self._names(),
                    num_fewshot=self.shots or None,
                    limit=self.limit or None,
                    task_manager=self._manager(),
                    bootstrap_iters=0,
                    apply_chat_template=self.chat,
                    log_samples=True,
                    verbosity="ERROR",
                )
        except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
            raise UserError(f"lm-eval could not run {self.tasks}: {type(error).__name__}: {error!s:.300}") from error
        return Measured(list(self._scores(found)), list(_examples(found)))

    def _names(self) -> list[str]:
        return [name.strip() for name in self.tasks.split(",") if name.strip()]

    def _manager(self) -> Any:
        """Knows only the folder's tasks if no others are named, because reading those of lm-eval takes long."""
        mine = _manager(self.folder, False) if self.folder else None
        return mine if mine and set(self._names()) <= set(mine.all_tasks) else _manager(self.folder, True)

    def _scores(self, found: dict[str, Any]) -> Iterator[Score]:
        """The mean over the named tasks, then each task's accuracy, then everything that the harness reports."""
        metric, named, rest = "few_shot" if self.shots else "zero_shot", list[Score](), list[Score]()
        for task, values in found["results"].items():
            n = _asked(found, task)
            plain = {key.split(",")[0]: key for key in reversed(values) if isinstance(values[key], int | float)}
            main = next((plain[key] for key in ACCURACIES if key in plain), None)
            if main and task in self._names():
                named.append(Score(metric, f"task:{task}", float(values[main]), n, _error(values, main)))
            rest += [
                Score(f"lm-eval/{name}", f"task:{task}", float(values[key]), n, _error(values, key))
                for name, key in sorted(plain.items())
                if not name.endswith("_stderr") and name != "sample_len"
            ]
        if named:
            yield over_tasks(named)
        yield from named
        yield from rest


@functools.cache
def _manager(folder: str, defaults: bool) -> Any:
    return importlib.import_module("lm_eval.tasks").TaskManager(
        include_path=folder or None, include_defaults=defaults, verbosity="ERROR"
    )


def _asked(found: dict[str, Any], task: str) -> int:
    """How many questions of a task were asked; for a group, of all its tasks."""
    counts = found["n-samples"]
    inside = [task] if task in counts else found.get("group_subtasks", {}).get(task, [])
    return sum(int(counts[each]["effective"]) for each in inside if each in counts)


def _error(values: dict[str, Any], key: str) -> float:
    """The harness's standard error of a metric; 0 if it gives none."""
    name, _, which = key.partition(",")
    error = values.get(f"{name}_stderr,{which}")
    return float(error) if isinstance(error, int | float) else 0.0


def _examples(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One row for each question: prompt, answer, right answer, and whether it is right."""
    for task, samples in found.get("samples", {}).items():
        for sample in samples:
            right = next((float(sample[key]) for key in ACCURACIES if isinstance(sample.get(key), int | float)), None)
            yield {
                "id": f"{task}-{sample['doc_id']}",
                "prompt": _prompt(sample["arguments"]),
                "task": task,
                "answer": str(sample["filtered_resps"])[:LONGEST],
                "expected": str(sample["target"])[:LONGEST],
                "score": right,
            }


def _prompt(arguments: Any) -> str:
    """The prompt, from the harness's first request for a question."""
    first = next(iter(arguments.values() if isinstance(arguments, dict) else arguments), "")
    if isinstance(first, dict):
        first = next(iter(first.values()), "")
    return str(first[0] if isinstance(first, tuple | list) and first else first)[:LONGEST]
