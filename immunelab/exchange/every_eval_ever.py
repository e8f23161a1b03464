"""Every Eval Ever 0.3.0 (arXiv:2606.14516): what a checkpoint scored as JSON, and its answers as JSONL beside it.

The schema has no place for an attack, its budget or its step: they stand in `additional_details` of the model.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from immunelab.exchange.chosen import Chosen, Run, Score
from immunelab.method import catalogue

VERSION = "0.3.0"
ORGANIZATION = "ImmuneLab"
COLLECTION = "immunelab"
PLAIN = re.compile(r"[^A-Za-z0-9._-]+")


def write(chosen: Chosen, folder: Path) -> str:
    """`data/immunelab/<developer>/<model>/<uuid>.json` and `<uuid>_samples.jsonl`."""
    files = answers = 0
    for run in chosen.scored():
        for step, scores in run.steps().items():
            files += 1
            answers += _write(run, step, scores, folder)
    return f"{files} evaluated checkpoints, {answers} answers."


def _write(run: Run, step: int, scores: Sequence[Score], folder: Path) -> int:
    """One checkpoint; returns how many answers were written."""
    developer, name = _model(run)
    identity = str(uuid.UUID(bytes=hashlib.sha256(f"{run.run_id}:{step}".encode()).digest()[:16], version=4))
    evaluation_id = f"{COLLECTION}/{developer}_{name}/{run.seconds}/{step}"
    place = Path("data") / COLLECTION / developer / name
    (folder / place).mkdir(parents=True, exist_ok=True)
    samples = []
    for evaluation in dict.fromkeys(score.evaluation for score in scores):
        for answer in run.answers(step, evaluation):
            samples.append(_sample(evaluation_id, f"{developer}/{name}", evaluation, answer))
    about = {key: str(value) for key, value in run.about().items()}
    told: dict[str, Any] = {
        "schema_version": VERSION,
        "evaluation_id": evaluation_id,
        "evaluation_timestamp": str(run.seconds),
        "retrieved_timestamp": str(run.seconds),
        "source_metadata": {
            "source_name": "ImmuneLab",
            "source_type": "evaluation_run",
            "source_organization_name": ORGANIZATION,
            "evaluator_relationship": "third_party",
        },
        "eval_library": {"name": "immunelab", "version": importlib.metadata.version("immunelab")},
        "model_info": {
            "name": name,
            "id": f"{developer}/{name}",
            "inference_engine": {
                "name": "transformers",
                "version": run.versions().get("transformers", "unknown"),
            },
            "additional_details": {
                "deployment_type": "self_deployed",
                "model_availability": "unknown",  # of the checkpoint, which nobody has released
                "step": str(step),
                **about,
            },
        },
        "evaluation_results": [_result(run, score) for score in scores],
    }
    if samples:
        text = "".join(json.dumps(sample, ensure_ascii=False, allow_nan=False) + "\n" for sample in samples).encode()
        file = place / f"{identity}_samples.jsonl"
        (folder / file).write_bytes(text)
        told["detailed_evaluation_results"] = {
            "format": "jsonl",
            "file_path": file.as_posix(),
            "hash_algorithm": "sha256",
            "checksum": hashlib.sha256(text).hexdigest(),
            "total_rows": len(samples),
        }
    (folder / place / f"{identity}.json").write_text(
        json.dumps(told, indent=2, ensure_ascii=False, allow_nan=False), encoding="utf-8"
    )
    return len(samples)


def _model(run: Run) -> tuple[str, str]:
    """Developer and name of the model: a Hub id's own two parts; this lab's for any other."""
    base = str(run.row["base_model"])
    developer, slash, name = base.rpartition("/")
    known = bool(slash) and base.count("/") == 1
    words = [name if known else PLAIN.sub("-", base).strip("-"), str(run.row["defense"]), run.run_id]
    return PLAIN.sub("-", developer) if known else COLLECTION, PLAIN.sub("-", "_".join(words))


def _result(run: Run, row: Score) -> dict[str, Any]:
    known = catalogue.metrics().get(row.metric)
    share = known is not None and known.unit == "share"
    metric: dict[str, Any] = {
        "metric_id": row.metric,
        "metric_name": row.metric.replace("_", " "),
        "lower_is_better": known is not None and known.better == "low",
        "score_type": "continuous",
        "min_score": 0.0 if share else "-Infinity",
        "max_score": 1.0 if share else "Infinity",
    }
    if known:
        metric |= {"evaluation_description": known.words, "metric_unit": "proportion" if share else known.unit or "1"}
    score: dict[str, Any] = {"score": row.score}
    if row.n > 0:
        error = {"value": row.stderr, "method": "analytic"}
        score["uncertainty"] = {"standard_error": error, "num_samples": row.n}
    return {
        "evaluation_result_id": f"{row.evaluation}/{row.metric}",
        "evaluation_name": row.evaluation,
        "source_data": {"dataset_name": str(run.row["corpus"]), "source_type": "other"},
        "metric_config": metric,
        "score_details": score,
    }


def _sample(evaluation_id: str, model: str, evaluation: str, answer: dict[str, Any]) -> dict[str, Any]:
    expected = str(answer["expected"] or "")
    score = answer["score"]
    value = 0.0 if score is None or score != score else float(score)
    return {
        "schema_version": VERSION,
        "evaluation_id": evaluation_id,
        "model_id": model,
        "evaluation_name": evaluation,
        "sample_id": answer["id"],
        "sample_hash": hashlib.sha256((answer["prompt"] + expected).encode()).hexdigest(),
        "interaction_type": "single_turn",
        "input": {"raw": answer["prompt"], "reference": [expected] if expected else []},
        "output": {"raw": [answer["answer"]]},
        "messages": None,
        "answer_attribution": [
            {
                "turn_idx": 0,
                "source": "output.raw",
                "extracted_value": answer["answer"],
                "extraction_method": "custom",
                "is_terminal": True,
            }
        ],
        "evaluation": {"score": value, "is_correct": value >= 0.5},
        "metadata": {key: str(value) for key, value in answer["more"].items()},
    }
