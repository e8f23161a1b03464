"""Every query that pages, commands and notebooks ask. Each returns a frame; none returns rows of a superseded attempt.

An attempt that was resumed from step s makes all later rows of the attempts before it count no more: the views
`last_points`, `last_scores`, … leave them out. Times named `at` are Unix seconds; shares are 0 to 1.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from immunelab.errors import UserError
from immunelab.runs.spec import subject
from immunelab.store.sync import Store

if TYPE_CHECKING:
    import pandas as pd

TIMES = ("queued_at", "started_at", "ended_at", "heartbeat")
# An attack's settings that curves have a column of, and those that only save memory.
_COLUMNS = ("learning_rate", "steps", "batch_size", "samples", "harmful_share", "optimizer", "schedule", "precision")
_OTHERS = json.dumps(dict.fromkeys((*_COLUMNS, "recompute", "loss_chunk")))  # a patch with null takes a key out
METRICS = ("harmfulness", "utility", "refusal_rate", "perplexity", "repetition")
# Of rows that a journal holds twice, the last one counts.
_LATEST = "QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY attempt DESC, position DESC) = 1"


def runs(store: Store, showcase: bool | None = None) -> pd.DataFrame:
    """One row a run, oldest first; `showcase` True: only shipped runs, False: only this home's.

    Times are UTC timestamps, `tags` and `ancestors` lists, `spec` and `versions` JSON texts. `subject`: the base model
    with the corpus, as `spec.subject` writes them. `settings`: what the defense behind the run was made with (JSON).
    `recorded_by`: what carried it out, if that was no worker of a lab.
    """
    import pandas as pd

    frame = store.frame(
        """SELECT runs.*, variant AS settings, coalesce(spec ->> '$.recorded_by', '') AS recorded_by
           FROM runs JOIN variants USING (run_id)
           WHERE $showcase IS NULL OR showcase = $showcase
           ORDER BY showcase DESC, queued_at NULLS FIRST, run_id""",
        {"showcase": showcase},
    )
    for name in TIMES:
        frame[name] = pd.to_datetime(frame[name], unit="s", utc=True)
    for name in ("tags", "ancestors"):
        frame[name] = [list(value) if value is not None else [] for value in frame[name]]
    return _with_subject(frame)


def newest(store: Store, showcase: bool = False, archived: bool = False, limit: int = 0) -> list[dict[str, Any]]:
    """What a list of runs shows, newest first, without pandas; `limit` 0: all. Times are Unix seconds."""
    return store.rows(
        """SELECT run_id, kind, method, model, defense, seed, status, progress, seconds, started_at, name,
               coalesce(spec ->> '$.recorded_by', '') AS recorded_by FROM runs
           WHERE showcase = $showcase AND ($archived OR archived IS NOT TRUE)
           ORDER BY queued_at DESC NULLS LAST, run_id DESC LIMIT $limit""",
        {"showcase": showcase, "archived": archived, "limit": limit or None},
    )


def names(store: Store, run_ids: Sequence[str]) -> pd.DataFrame:
    """The scalars that runs recorded: name, phase, n (points of all these runs)."""
    return store.frame(
        """SELECT name, phase, count(*) AS n FROM last_points WHERE list_contains(?, run_id)
           GROUP BY name, phase ORDER BY phase, name""",
        [list(run_ids)],
    )


def layer_names(store: Store, run_ids: Sequence[str]) -> pd.DataFrame:
    """The per-layer series that runs recorded: name, phase, n (rows of all these runs)."""
    return store.frame(
        """SELECT name, phase, count(*) AS n FROM last_layer_points WHERE list_contains(?, run_id)
           GROUP BY name, phase ORDER BY phase, name""",
        [list(run_ids)],
    )


def with_layers(store: Store) -> pd.DataFrame:
    """The runs that recorded any per-layer series: run_id."""
    return store.frame("SELECT DISTINCT run_id FROM last_layer_points ORDER BY run_id")


def points(
    store: Store,
    run_ids: Sequence[str],
    names: Sequence[str],
    phase: str | None = None,
    after_step: int | None = None,
    bins: int = 500,
) -> pd.DataFrame:
    """Scalars against steps: run_id, phase, step, name, value, low, high, at.

    A series of more than `bins` points is thinned: of each bin the last recorded point stands (never a mean), with
    the bin's smallest and largest finite value in `low` and `high`, so that no spike is lost. The first and the last
    point of a series are always there. `after_step` asks for what is new.
    """
    if bins < 1:
        raise UserError(f"points needs at least 1 bin, and got {bins}.")
    return store.frame(
        """WITH chosen AS MATERIALIZED (
               SELECT run_id, phase, step, name, value, unix_time, position FROM last_points
               WHERE list_contains($runs, run_id) AND list_contains($names, name)
                   AND ($phase IS NULL OR phase = $phase) AND ($after IS NULL OR step > $after)
           ), series AS (
               SELECT run_id, phase, name, min(step) AS first_step, max(step) - min(step) + 1 AS span, count(*) AS n
               FROM chosen GROUP BY run_id, phase, name
           )
           -- positions grow along a journal, so the row at the largest one is the bin's last
           SELECT run_id, phase, arg_max(step, position) AS step, name, arg_max(value, position) AS value,
               coalesce(min(value) FILTER (isfinite(value)), arg_max(value, position)) AS low,
               coalesce(max(value) FILTER (isfinite(value)), arg_max(value, position)) AS high,
               arg_max(unix_time, position) AS at_
           FROM chosen JOIN series USING (run_id, phase, name)
           GROUP BY run_id, phase, name,
               CASE WHEN n <= $bins THEN step ELSE ceil((step - first_step)::DOUBLE * $bins / span)::BIGINT END
           ORDER BY run_id, phase, name, step""",
        {"runs": list(run_ids), "names": list(names), "phase": phase, "after": after_step, "bins": bins},
    ).rename(columns={"at_": "at"})


def layers(store: Store, run_ids: Sequence[str], name: str) -> pd.DataFrame:
    """One per-layer series: run_id, phase, step, layer, value."""
    return store.frame(
        f"""SELECT run_id, phase, step, layer, value FROM last_layer_points
            WHERE list_contains(?, run_id) AND name = ? {_LATEST.format(keys="run_id, phase, step, layer")}
            ORDER BY run_id, phase, step, layer""",
        [list(run_ids), name],
    )


def scores(
    store: Store, run_ids: Sequence[str], metrics: Sequence[str] | None = None, splits: Sequence[str] | None = ("all",)
) -> pd.DataFrame:
    """Evaluations along runs: run_id, phase, step, evaluation, metric, split, score, n, stderr.

    `splits` None takes the parts (`skill:…`, `domain:…`) too.
    """
    return store.frame(
        f"""SELECT run_id, phase, step, evaluation, metric, split, score, n, stderr FROM last_scores
            WHERE list_contains($runs, run_id)
                AND ($metrics IS NULL OR list_contains($metrics, metric))
                AND ($splits IS NULL OR list_contains($splits, split))
            {_LATEST.format(keys="run_id, phase, step, evaluation, metric, split")}
            ORDER BY run_id, phase, step, evaluation, metric, split""",
        {
            "runs": list(run_ids),
            "metrics": None if metrics is None else list(metrics),
            "splits": None if splits is None else list(splits),
        },
    )


def attack_curves(store: Store, run_ids: Sequence[str] | None = None, showcase: bool | None = None) -> pd.DataFrame:
    """One row per attack run and evaluated step: what the attack had reached, the settings, and the base.

    `showcase` True: only shipped runs, False: only this home's.

    `harmfulness`, `utility`, `refusal_rate`, `perplexity`, `repetition` are the aggregates over a whole evaluation,
    with `_n` and `_stderr` for the first two; where several evaluations give one metric, the first by name is used
    at every step, and `harmfulness_by`, `utility_by` name it. `base_…` is what the root of the lineage measured at
    its step 0: for an attack on an immunized model the model before immunization, else the attacked model itself.
    `provided`: the defense of a provider acted during the run. `subject`: the base model with the corpus. `settings`:
    what the defense was made with (JSON). `other_settings`: those of the attack without a column of their own (JSON).
    `recorded_by`: what carried the attack out, if that was no worker of a lab.
    """
    wanted = [f"max(score) FILTER (metric = '{m}') AS {m}" for m in METRICS]
    for m in METRICS[:2]:
        wanted += [f"max({v}) FILTER (metric = '{m}') AS {m}_{k}" for v, k in (("n", "n"), ("stderr", "stderr"))]
        wanted += [f"max(evaluation) FILTER (metric = '{m}') AS {m}_by"]
    base = [f"max(score) FILTER (metric = '{m}') AS base_{m}" for m in ("harmfulness", "utility", "perplexity")]
    base += ["max(score) FILTER (metric = 'chance') AS base_chance"]
    curves = store.frame(
        f"""WITH attacks AS (
                SELECT * FROM runs WHERE kind = 'attack' AND ($runs IS NULL OR list_contains($runs, run_id))
                    AND ($showcase IS NULL OR showcase = $showcase)
            ), whole AS (
                SELECT * FROM last_scores
                WHERE split = 'all' AND run_id IN (SELECT run_id FROM attacks UNION SELECT root FROM attacks)
                {_LATEST.format(keys="run_id, phase, step, evaluation, metric")}
            ), one AS (
                SELECT s.* FROM whole s JOIN (
                    SELECT run_id, metric, min(evaluation) AS evaluation FROM whole GROUP BY run_id, metric
                ) first USING (run_id, metric, evaluation)
                -- a step evaluated in two phases is one model: the later look stands
                QUALIFY row_number() OVER (PARTITION BY run_id, step, metric ORDER BY attempt DESC, position DESC) = 1
            ), steps AS (
                SELECT run_id, step, {", ".join(wanted)} FROM one GROUP BY run_id, step
            ), bases AS (
                SELECT run_id AS root, {", ".join(base)} FROM one WHERE step = 0 GROUP BY run_id
            )
            SELECT s.*, bases.* EXCLUDE (root), a.name, a.grp, a.status, a.defense, a.immunized_by, a.root, a.parent,
                v.variant AS settings, a.method, a.model, a.base_model, a.corpus, a.seed, a.device, a.learning_rate,
                a.steps, a.batch_size,
                a.samples, a.harmful_share, a.optimizer, a.schedule, a.archived, a.showcase,
                coalesce(a.precision, 'fp32') AS precision, -- edits have none of their own
                json_merge_patch(a.spec -> '$.knobs', '{_OTHERS}')::VARCHAR AS other_settings,
                coalesce(a.spec ->> '$.judge', '') AS judge, coalesce(a.spec ->> '$.recorded_by', '') AS recorded_by,
                a.run_id IN (SELECT run_id FROM events WHERE event = 'provider') AS provided
            FROM steps s JOIN attacks a USING (run_id) JOIN variants v USING (run_id) LEFT JOIN bases USING (root)
            ORDER BY a.showcase DESC, a.queued_at, s.run_id, s.step""",
        {"runs": None if run_ids is None else list(run_ids), "showcase": showcase},
    )
    return _with_subject(curves)


def examples(store: Store, run_id: str, step: int | None = None, evaluation: str | None = None) -> pd.DataFrame:
    """The rows behind a run's scores: phase, step, evaluation, split, id, prompt, answer, expected, score, more.

    Untrusted model output: show it as text only.
    """
    return store.frame(
        f"""SELECT phase, step, evaluation, split, id, prompt, answer, expected, score, more FROM last_examples
            WHERE run_id = $run AND ($step IS NULL OR step = $step)
                AND ($evaluation IS NULL OR evaluation = $evaluation)
            {_LATEST.format(keys="phase, step, evaluation, split, id, prompt")}
            ORDER BY phase, step, evaluation, split, position, id""",
        {"run": run_id, "step": step, "evaluation": evaluation},
    )


def example_scores(store: Store, run_ids: Sequence[str], evaluations: Sequence[str]) -> pd.DataFrame:
    """How each question was judged: run_id, step, evaluation, id, score, more (JSON text)."""
    return store.frame(
        f"""SELECT run_id, step, evaluation, id, score, more FROM last_examples
            WHERE list_contains($runs, run_id) AND list_contains($evaluations, evaluation) AND id IS NOT NULL
            {_LATEST.format(keys="run_id, step, evaluation, id")} ORDER BY run_id, step, evaluation, id""",
        {"runs": list(run_ids), "evaluations": list(evaluations)},
    )


def prompts(store: Store, run_ids: Sequence[str]) -> pd.DataFrame:
    """The prompts that these runs were asked: evaluation, prompt, expected.

    Those that most runs were asked come first, and of these the ones whose last answer scores highest in the first run
    and lowest in the others: of an undefended model beside defended ones, where the defense is seen.
    """
    return store.frame(
        """SELECT evaluation, prompt, any_value(expected) AS expected FROM last_examples
           WHERE list_contains($runs, run_id) AND prompt IS NOT NULL
           GROUP BY evaluation, prompt
           ORDER BY evaluation DESC, count(DISTINCT run_id) DESC,
               coalesce(arg_max(score, step) FILTER (run_id = $runs[1]), 0)
               - coalesce(arg_max(score, step) FILTER (run_id != $runs[1]), 0) DESC, min(position), prompt""",
        {"runs": list(run_ids)},
    )


def answers(store: Store, run_ids: Sequence[str], prompt: str) -> pd.DataFrame:
    """What runs answered to one prompt: run_id, step, evaluation, answer, expected, score. Untrusted model output."""
    return store.frame(
        f"""SELECT run_id, step, evaluation, answer, expected, score FROM last_examples
            WHERE list_contains($runs, run_id) AND prompt = $prompt
            {_LATEST.format(keys="run_id, step")} ORDER BY run_id, step""",
        {"runs": list(run_ids), "prompt": prompt},
    )


def checkpoints(store: Store, run_id: str) -> pd.DataFrame:
    """The checkpoints that a run wrote: phase, step, path (in the run folder), sha256, bytes, at, on_disk."""
    frame = store.frame(
        f"""SELECT phase, step, path, sha256, bytes, unix_time AS at_ FROM last_checkpoints WHERE run_id = ?
            {_LATEST.format(keys="path")} ORDER BY step, at_""",
        [run_id],
    ).rename(columns={"at_": "at"})
    folder = store.home / "runs" / run_id
    inside = [folder / path for path in frame["path"]]
    frame["on_disk"] = [".." not in p.parts and p.is_relative_to(folder) and p.exists() for p in inside]
    return frame


def schema(store: Store) -> pd.DataFrame:
    """What a user's SQL can ask about: table, column, type, in the tables' own order."""
    return store.frame(
        """SELECT table_name AS "table", column_name AS "column", data_type AS "type" FROM duckdb_columns()
           WHERE NOT internal AND schema_name = 'main' ORDER BY table_name, column_index"""
    )


def events(store: Store, run_id: str) -> pd.DataFrame:
    """What happened to a run, all attempts: attempt, at, event, data (JSON text)."""
    return store.frame(
        "SELECT attempt, unix_time AS at_, event, data FROM events WHERE run_id = ? ORDER BY position", [run_id]
    ).rename(columns={"at_": "at"})


def searches(store: Store, run_ids: Sequence[str] | None = None) -> pd.DataFrame:
    """Attackers' searches, a row for each trial that has ended, and trial 0, the released model.

    Columns: search (run id), defense, base_model, corpus, subject (both), seed, status, bound (share of utility that
    may be lost), attacks (that it chose from, with commas), trial, harm (the trial's bounded harm), best (of this and
    earlier trials), rows and seconds (of all trials so far), pruned. Trial 0 has neither harm nor pruned.
    """
    wanted = ("harm", "best", "rows", "seconds", "pruned")
    values = ", ".join(f"max(value) FILTER (name = 'search/{w}') AS {w}" for w in wanted)
    trials = store.frame(
        f"""WITH one AS (
                SELECT run_id, step, name, value FROM last_points WHERE phase = 'search'
                    AND ($runs IS NULL OR list_contains($runs, run_id)) {_LATEST.format(keys="run_id, step, name")}
            ), trials AS (SELECT run_id, step AS trial, {values} FROM one GROUP BY run_id, step)
            SELECT run_id AS search, defense, base_model, corpus, seed, status, name, showcase,
                CAST(json_extract(spec, '$.knobs.max_utility_loss') AS DOUBLE) AS bound,
                json_extract_string(spec, '$.knobs.attacks') AS attacks, trials.* EXCLUDE (run_id)
            FROM trials JOIN runs USING (run_id) WHERE kind = 'sweep' AND best IS NOT NULL
            ORDER BY showcase DESC, queued_at, run_id, trial""",
        {"runs": None if run_ids is None else list(run_ids)},
    )
    return _with_subject(trials)


def trials(store: Store, run_ids: Sequence[str]) -> pd.DataFrame:
    """The trials of searches, in order: search, trial, run_id, method, harm, outcome, rows, seconds, reused, params.

    `params` are dictionaries; `rows` and `seconds` are the trial's own.
    """
    import pandas as pd

    frame = store.frame(
        f"""SELECT run_id AS search, step AS trial, data FROM events
            WHERE event = 'trial' AND list_contains(?, run_id) {_LATEST.format(keys="run_id, step")}
            ORDER BY run_id, step""",
        [list(run_ids)],
    )
    columns = ["run_id", "method", "harm", "outcome", "rows", "seconds", "reused", "params"]
    data = pd.DataFrame([json.loads(text) for text in frame["data"]], columns=[*columns])
    return pd.concat([frame[["search", "trial"]], data], axis=1)


TUNED = ("control", "setting", "confirmed", "tuned")  # the events of a tuning


def tunings(store: Store, run_ids: Sequence[str] | None = None) -> pd.DataFrame:
    """What tunings of defenses found, in order: tuning, tuned (the defense), base_model, corpus, tuning_seed, status,
    showcase, subject, knobs (of the tuning), and the event's own.

    `event`: "control" (the undefended model), "setting" (a trial), "confirmed" (with another seed or world) or "tuned"
    (the winner). Its own: setting (counted from 1), seed, place (the corpus of a confirmation), settings, harms (by
    attack), knobs and both of these as dictionaries, kept, harm, utility, released, seconds, outcome, error, value,
    preset, enough (utility is kept), accepted (and harm is below the limit), run_id (of the immunization).
    """
    import pandas as pd

    frame = store.frame(
        """SELECT e.run_id AS tuning, json_extract_string(r.spec, '$.knobs.defense') AS tuned, r.base_model, r.corpus,
               r.seed AS tuning_seed, r.status, r.showcase, json_extract(r.spec, '$.knobs') AS knobs,
               e.event, e.step AS setting, e.data
           FROM events e JOIN runs r USING (run_id)
           WHERE list_contains($events, e.event) AND r.kind = 'sweep' AND r.method = 'tune'
               AND ($runs IS NULL OR list_contains($runs, e.run_id))
           ORDER BY r.queued_at, e.run_id, e.position""",
        {"events": list(TUNED), "runs": None if run_ids is None else list(run_ids)},
    )
    columns = ["settings", "harms", "kept", "harm", "utility", "released", "seconds", "outcome", "error", "value"]
    columns += ["preset", "enough", "accepted", "seed", "place", "run_id"]
    rows = [json.loads(text) for text in frame["data"]]
    data = pd.DataFrame([row | {"place": row.get("corpus")} for row in rows], columns=columns)
    whole = pd.concat([frame.drop(columns="data"), data], axis=1).assign(knobs=[json.loads(k) for k in frame["knobs"]])
    # a tuning that goes on tells its controls again
    return _with_subject(whole.drop_duplicates(["tuning", "event", "setting", "seed", "place"], keep="last"))


def fingerprints(store: Store, run_ids: Sequence[str]) -> tuple[str, ...]:
    """The different hashes of the data that runs read when they started; runs that ship have none."""
    found = store.rows(
        """SELECT DISTINCT json_extract_string(data, '$.corpus_hash') AS fingerprint FROM events
           WHERE event = 'started' AND list_contains($runs, run_id) ORDER BY ALL""",
        {"runs": list(run_ids)},
    )
    return tuple(str(row["fingerprint"]) for row in found if row["fingerprint"])


def problems(store: Store, run_ids: Sequence[str] | None = None) -> pd.DataFrame:
    """Journal lines that could not be read: run_id, malformed (their number), position, problem, line."""
    return store.frame(
        """SELECT s.run_id, s.malformed, p.position, p.problem, p.line
           FROM sources s LEFT JOIN problems p USING (run_id)
           WHERE s.malformed > 0 AND ($runs IS NULL OR list_contains($runs, s.run_id)) ORDER BY ALL""",
        {"runs": None if run_ids is None else list(run_ids)},
    )


def disk(store: Store) -> pd.DataFrame:
    """Bytes that each run folder takes, largest first: run_id, checkpoints, records, total. Looks at the disk."""
    import pandas as pd

    rows = []
    for folder in (store.home / "runs").glob("*"):
        sizes = {"checkpoints": 0, "records": 0}
        for place, _, files in os.walk(folder):
            kind = "checkpoints" if Path(place).is_relative_to(folder / "checkpoints") else "records"
            sizes[kind] += sum(_bytes(place, name) for name in files)
        rows.append({"run_id": folder.name, **sizes, "total": sum(sizes.values())})
    frame = pd.DataFrame(rows, columns=["run_id", "checkpoints", "records", "total"])
    return frame.sort_values("total", ascending=False, ignore_index=True)


def _with_subject(frame: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    pairs = frame[["base_model", "corpus"]].drop_duplicates()
    names = {(m, c): subject(str(m), str(c)) for m, c in pairs.itertuples(index=False, name=None)}
    subjects = [names[pair] for pair in zip(frame["base_model"], frame["corpus"], strict=True)]
    return frame.assign(subject=pd.Series(subjects, index=frame.index, dtype=object))


def _bytes(place: str, name: str) -> int:
    try:
        return os.lstat(os.path.join(place, name)).st_size  # noqa: PTH118 - a Path a file is slow here
    except FileNotFoundError:
        return 0  # deleted while we looked
