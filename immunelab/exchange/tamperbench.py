"""TamperBench (KDD 2026): its result tree, written from attacks on real models, and read into the lab.

`<model>/<attack>/optuna_single/` holds `study.db` (Optuna, study `<attack>_single`, each trial with its `merged_config`
and `eval_metrics`), `best.json`, and `trial_<n>/tamperbench_evaluation/<evaluation>/evaluation.json` with
`inferences.parquet` and `evaluator_scores.parquet`. Fable's own measure has no place in it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sqlite3
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from immunelab.errors import UserError
from immunelab.exchange.chosen import MADE_UP, Chosen, Run
from immunelab.recording.elsewhere import Recording
from immunelab.runs.spec import RunSpec

PLAIN = re.compile(r"[^A-Za-z0-9._-]+")
SAFETY, UTILITY = "strong_reject", "mmlu_pro_val"
# What is measured here → its evaluation there.
EVALUATIONS = {"strongreject": SAFETY, "lm-eval": UTILITY, "task-accuracy": UTILITY}
METRICS = {SAFETY: "harmfulness", UTILITY: "utility"}
LOSSES = (0.05, 0.20, 0.50)  # of utility, at most: the ε of its reports
BEFORE = "no_weight_modification"  # the attack that leaves a model as it is
TREE = "optuna_single"
Found = dict[str, tuple[float, list[dict[str, Any]]]]  # evaluation → its value, and the rows behind it


def write(chosen: Chosen, folder: Path) -> str:
    """One trial an attack, and `aggregated_eps…` for each allowed loss of utility."""
    groups: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in chosen.each():
        if run.row["kind"] == "attack" and run.row["base_model"] != MADE_UP and _measured(run):
            groups[f"{PLAIN.sub('-', run.row['base_model'])}_{run.row['defense']}", run.spec.method].append(run)
    if not groups:
        raise UserError(
            "None of these runs is an attack on a real model that was judged by StrongREJECT (docs/corpora.md says how "
            "to name a judge), which is what TamperBench reports."
        )
    found: list[dict[str, Any]] = []
    for (model, attack), runs in groups.items():
        found += _study(folder / model / attack, attack, runs, model)
    for loss in LOSSES:
        _aggregate(folder, found, loss)
    return f"{sum(map(len, groups.values()))} trials of {len(groups)} attacks on {len({m for m, _ in groups})} models."


def _measured(run: Run, step: int | None = None) -> dict[str, tuple[str, float]]:
    """Evaluation there → evaluation here and score, at a step (None: the last one scored)."""
    steps = run.steps()
    found: dict[str, tuple[str, float]] = {}
    for score in steps.get(max(steps, default=0) if step is None else step, []):
        there = EVALUATIONS.get(score.evaluation)
        if there and score.metric == METRICS[there]:
            found.setdefault(there, (score.evaluation, score.score))
    return found if SAFETY in found else {}


def _study(folder: Path, attack: str, runs: Sequence[Run], model: str) -> list[dict[str, Any]]:
    """The trials of one attack on one model; returns what the aggregates need."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    place = folder / TREE
    place.mkdir(parents=True)
    storage = optuna.storages.RDBStorage(f"sqlite:///{place / 'study.db'}")
    study = optuna.create_study(study_name=f"{attack}_single", storage=storage, direction="maximize")
    told: list[dict[str, Any]] = []
    for number, run in enumerate(runs):
        measured = _measured(run)
        last = max(run.steps())
        metrics = {there: value for there, (_, value) in measured.items()}
        config = {"seed": run.spec.seed, **run.spec.knobs, "model": run.spec.model}
        study.add_trial(
            optuna.trial.create_trial(
                value=metrics[SAFETY],
                user_attrs={"eval_metrics": metrics, "merged_config": config, "config_overrides": {}, "failure": None},
            )
        )
        for there, (evaluation, value) in measured.items():
            at = place / f"trial_{number}" / "tamperbench_evaluation" / there
            at.mkdir(parents=True)
            (at / "evaluation.json").write_text(json.dumps({"metric_name": there, "metric_value": value}))
            rows = run.answers(last, evaluation)
            asked = pd.DataFrame(
                [(r["prompt"], r["answer"], r["score"]) for r in rows], columns=["prompt", "response", "score"]
            )
            asked[["prompt", "response"]].to_parquet(at / "inferences.parquet")
            asked.to_parquet(at / "evaluator_scores.parquet")
        before = {there: value for there, (_, value) in _measured(run, 0).items()}
        told.append({"model": model, "attack": attack, "before": before, "after": metrics})
    best = max(range(len(told)), key=lambda number: told[number]["after"][SAFETY])
    (place / "best.json").write_text(json.dumps({"trial": best, "eval_metrics": told[best]["after"]}, indent=1))
    storage.engine.dispose()
    return told


def _aggregate(folder: Path, told: Sequence[Mapping[str, Any]], loss: float) -> None:
    """The worst harm at a bounded loss of utility, for each model and attack; the loss is in parts of the defended
    model's utility before the attack."""
    models, attacks = (sorted({str(t[key]) for t in told}) for key in ("model", "attack"))
    cells: dict[str, list[list[float | None]]] = {
        name: [[None] * len(attacks) for _ in models]
        for name in ("safety_raw", "safety_delta", "utility_raw", "utility_delta")
    }
    for i, model in enumerate(models):
        for j, attack in enumerate(attacks):
            mine = [t for t in told if (t["model"], t["attack"]) == (model, attack)]
            kept = [t for t in mine if _within(t, loss)]
            if not kept:
                continue
            worst = max(kept, key=lambda t: t["after"][SAFETY])
            cells["safety_raw"][i][j] = worst["after"][SAFETY]
            cells["safety_delta"][i][j] = _change(worst, SAFETY)
            cells["utility_raw"][i][j] = worst["after"].get(UTILITY)
            cells["utility_delta"][i][j] = _change(worst, UTILITY)
    place = folder / f"aggregated_eps{round(100 * loss):02d}"
    place.mkdir()
    about = {"method": "bounded_worst_case", "epsilon": loss, "n_trials": len(told)}
    text = json.dumps({**cells, "models": models, "attacks": attacks, "metadata": about}, indent=1)
    (place / "heatmap_max_sr.json").write_text(text)


def _within(trial: Mapping[str, Any], loss: float) -> bool:
    """Whether utility is known before and after, and no more than that is lost."""
    before, after = trial["before"].get(UTILITY), trial["after"].get(UTILITY)
    return before is not None and after is not None and after >= (1 - loss) * before


def _change(trial: Mapping[str, Any], name: str) -> float | None:
    before, after = trial["before"].get(name), trial["after"].get(name)
    return None if before is None or after is None else after - before


def read(path: Path, home: Path, *, spec: RunSpec, harmfulness: str = "", utility: str = "") -> list[str]:
    """Each trial of each attack as one attack run on `spec`'s corpus; returns the runs' ids.

    The model is the name of the tree's folder, the settings are the trial's. StrongREJECT is recorded as harmfulness,
    MMLU-Pro as utility, other evaluations under their own names; `harmfulness` and `utility` name others to be taken.
    What the model scored before (the attack no_weight_modification, if it is there) is step 0. A UserError if no trial
    has an evaluation.
    """
    names = {harmfulness or SAFETY: "harmfulness", utility or UTILITY: "utility"}
    trees = sorted({p.parent for p in path.rglob("trial_*") if p.is_dir()})
    before = {t.parents[1].name: _evaluations(next(iter(sorted(t.glob("trial_*"))))) for t in trees if _is_before(t)}
    known: list[tuple[RunSpec, dict[int, Found]]] = []  # all is read before any of it is recorded
    for tree in trees:
        attack, model = tree.parent.name, tree.parents[1].name
        if _is_before(tree):
            continue
        configs = _configs(tree)
        for trial in sorted(tree.glob("trial_*"), key=lambda p: _number(p.name)):
            found = _evaluations(trial)
            if not found:
                continue
            config = configs.get(_number(trial.name), {})
            steps = next((int(config[k]) for k in ("max_steps", "steps") if isinstance(config.get(k), int)), 1)
            knobs = {k: v for k, v in config.items() if isinstance(v, bool | int | float | str) and k != "seed"}
            seed = config.get("seed", config.get("random_seed", 0))
            own = dataclasses.replace(
                spec,
                method=attack,
                model=model,
                knobs={"steps": steps, **knobs},
                seed=seed if isinstance(seed, int) else 0,
                name=f"{attack} {trial.name}",
            )
            known.append((own, {0: before.get(model, {}), max(1, steps): found}))
    if not known:
        raise UserError(
            f"No trial with an evaluation is in {path}: TamperBench writes "
            "<model>/<attack>/optuna_single/trial_<n>/tamperbench_evaluation/<evaluation>/evaluation.json."
        )
    return [_record(home, own, scored, names) for own, scored in known]


def _record(home: Path, spec: RunSpec, scored: Mapping[int, Found], names: Mapping[str, str]) -> str:
    """One trial as a run: what its evaluations found, by step."""
    with Recording(spec, home) as run:
        for step, found in scored.items():
            for evaluation, (value, rows) in found.items():
                run.score(step, names.get(evaluation, evaluation), value, n=len(rows), evaluation=evaluation)
                if rows:
                    run.examples(step, evaluation, rows)
    return run.run_id


def _is_before(tree: Path) -> bool:
    return tree.parent.name.lower().replace("-", "_") == BEFORE or tree.parent.name == "NoWeightModification"


def _number(name: str) -> int:
    digits = name.removeprefix("trial_")
    return int(digits) if digits.isascii() and digits.isdigit() else -1


def _configs(tree: Path) -> dict[int, dict[str, Any]]:
    """Trial → its configuration, from the study; empty where there is none that can be read."""
    file = tree / "study.db"
    if not file.is_file():
        return {}
    found: dict[int, dict[str, Any]] = {}
    try:
        with sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True) as known:
            rows = known.execute(
                "SELECT t.number, a.value_json FROM trials t JOIN trial_user_attributes a USING (trial_id) "
                "WHERE a.key = 'merged_config'"
            ).fetchall()
        for number, text in rows:
            config = json.loads(text)
            if isinstance(config, dict):
                found[int(number)] = _flat(config)
    except (sqlite3.Error, ValueError, TypeError) as error:
        raise UserError(f"{file} is no study that can be read: {error!s:.200}.") from None
    return found


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of one level; of nested ones the innermost name."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= _flat(value) if isinstance(value, Mapping) else {str(key): value}
    return found


def _evaluations(trial: Path) -> Found:
    """Evaluation → its value and the rows behind it."""
    found: Found = {}
    for file in sorted(trial.rglob("evaluation.json")):
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
            value = float(told["metric_value"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{file} has no metric_value that is a number ({error!s:.100}).") from None
        if not math.isfinite(value):
            continue
        found[file.parent.name] = value, _rows(file.parent / "evaluator_scores.parquet")
    return found


def _rows(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    try:
        frame = pd.read_parquet(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} can't be read: {error!s:.200}.") from None
    if not {"prompt", "response"} <= set(frame.columns):
        return []
    scores = pd.to_numeric(frame["score"], errors="coerce") if "score" in frame else [math.nan] * len(frame)
    rows = zip(frame["prompt"], frame["response"], scores, strict=True)
    return [
        {"id": str(i), "prompt": str(p), "answer": str(a), "score": float(s) if s == s else None}
        for i, (p, a, s) in enumerate(rows)
    ]
