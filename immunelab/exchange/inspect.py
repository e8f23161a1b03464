"""Inspect AI: one eval log for each checkpoint and evaluation, through its own classes; `inspect view` opens them.

The attack's settings, its step and seed are the task's arguments; answers are the samples.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from immunelab.exchange.chosen import Chosen, Run, Score

SOLVER = "greedy"
PLAIN = re.compile(r"[^A-Za-z0-9._-]+")


def write(chosen: Chosen, folder: Path) -> str:
    """A folder a run; a file a checkpoint and evaluation."""
    from inspect_ai.log import write_eval_log

    logs = 0
    for run in chosen.scored():
        (folder / run.run_id).mkdir()
        for step, scores in run.steps().items():
            for evaluation in dict.fromkeys(score.evaluation for score in scores):
                log = _log(run, step, evaluation, [s for s in scores if s.evaluation == evaluation])
                place = folder / run.run_id / f"{PLAIN.sub('-', evaluation)}-step-{step:06d}.eval"
                write_eval_log(log, str(place), format="eval")
                logs += 1
    return f"{logs} eval logs. Open them with: inspect view --log-dir"


def _log(run: Run, step: int, evaluation: str, rows: Sequence[Score]) -> Any:
    from inspect_ai.log import (
        EvalConfig,
        EvalDataset,
        EvalLog,
        EvalMetric,
        EvalPlan,
        EvalResults,
        EvalSample,
        EvalScore,
        EvalSpec,
    )
    from inspect_ai.model import ChatMessageAssistant, ChatMessageUser, ModelOutput
    from inspect_ai.scorer import Score

    about = run.about()
    model = f"{run.row['base_model']}/{run.row['defense']}"
    samples = []
    for answer in run.answers(step, evaluation):
        score = answer["score"]
        scored = {} if score is None or score != score else {evaluation: Score(value=score, answer=answer["answer"])}
        samples.append(
            EvalSample(
                id=answer["id"],
                epoch=1,
                input=answer["prompt"],
                target=str(answer["expected"] or ""),
                messages=[ChatMessageUser(content=answer["prompt"]), ChatMessageAssistant(content=answer["answer"])],
                output=ModelOutput.from_content(model, answer["answer"]),
                scores=scored,
                metadata=answer["more"],
            )
        )
    metrics = {}
    for row in rows:
        metrics[row.metric] = EvalMetric(name=row.metric, value=row.score, metadata={"n": row.n, "stderr": row.stderr})
    asked = max(row.n for row in rows)
    created = datetime.fromtimestamp(run.seconds, UTC).isoformat()
    identity = uuid.uuid5(uuid.NAMESPACE_URL, f"immunelab:{run.run_id}:{step}:{evaluation}").hex
    return EvalLog(
        status="success",
        eval=EvalSpec(
            eval_id=identity,
            run_id=run.run_id,
            created=created,
            task=evaluation,
            task_id=identity,
            task_args=about | {"step": step},
            dataset=EvalDataset(name=str(run.row["corpus"]), samples=len(samples) or asked),
            model=model,
            config=EvalConfig(),
            packages=run.versions(),
            metadata=about | {"step": step},
            tags=[str(run.row["kind"]), str(run.row["method"])],
        ),
        plan=EvalPlan(name=SOLVER),
        results=EvalResults(
            total_samples=asked,
            completed_samples=asked,
            scores=[EvalScore(name=evaluation, scorer=evaluation, metrics=metrics)],
        ),
        samples=samples,
    )
