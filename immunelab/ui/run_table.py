"""The Runs page: the table of all runs, and of one run its settings, log and scores."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from immunelab.analysis import export, tasks
from immunelab.errors import UserError
from immunelab.method import catalogue
from immunelab.runs import journal
from immunelab.store import queries
from immunelab.ui import live, reads, run_picker

COLUMNS = {
    "words": "Run",
    "status": "Status",
    "progress": "Progress",
    "kind": "Kind",
    "method": "Method",
    "defense": "Defense",
    "learning_rate": "Learning rate",
    "steps": "Steps",
    "samples": "Samples",
    "harmful_share": "Harmful share",
    "seed": "Seed",
    "corpus": "Corpus",
    "device": "Device",
    "recorded_by": "Recorded elsewhere by",
    "seconds": "Seconds",
    "queued_at": "Queued",
    "tags": "Tags",
    "note": "Note",
    "grp": "Launched together",
    "showcase": "Showcase",
    "run_id": "Id",
}
FIRST = (
    "words",
    "status",
    "progress",
    "kind",
    "method",
    "defense",
    "learning_rate",
    "steps",
    "seed",
    "seconds",
    "queued_at",
    "tags",
)
TAIL_BYTES = 24_000


def filtered(
    runs: pd.DataFrame,
    words: Mapping[str, str],
    text: str,
    kinds: Sequence[str],
    states: Sequence[str],
    defenses: Sequence[str],
    shipped: bool,
    archived: bool,
) -> pd.DataFrame:
    """The runs that match every filter; an empty filter lets all pass."""
    keep = pd.Series(True, index=runs.index)
    for column, wanted in (("kind", kinds), ("status", states), ("defense", defenses)):
        if wanted:
            keep &= runs[column].isin(wanted)
    if not shipped:
        keep &= ~runs["showcase"].astype(bool)
    if not archived:
        keep &= ~runs["archived"].fillna(False).astype(bool)
    if text:
        tags = runs["tags"].map(lambda t: " ".join(t) if t is not None and not isinstance(t, float) else "")
        hay = runs["run_id"] + " " + runs["run_id"].map(words) + " " + runs["note"].fillna("") + " " + tags
        keep &= hay.str.contains(text, case=False, regex=False)
    return runs[keep]


def draw(runs: pd.DataFrame, words: Mapping[str, str]) -> None:
    """The table of runs; selected rows go to the choice below it, which the link carries."""
    with st.popover("Columns", icon=":material/view_column:"):
        shown = st.pills(
            "Columns",
            list(COLUMNS),
            default=list(FIRST),
            selection_mode="multi",
            format_func=lambda c: COLUMNS[c],
            key="columns",
            persist_state="session",
            label_visibility="collapsed",
        )
    frame = runs.assign(words=runs["run_id"].map(words), queued_at=_when(runs["queued_at"]))
    ids = frame["run_id"].tolist()

    def select() -> None:
        st.session_state["run-choice"] = [ids[i] for i in st.session_state["runs-table"].selection.rows if i < len(ids)]

    config: dict[str, Any] = {key: st.column_config.Column(title) for key, title in COLUMNS.items()}
    config["words"] = st.column_config.TextColumn("Run", pinned=True)
    config["progress"] = st.column_config.ProgressColumn("Progress", min_value=0, max_value=1, format="percent")
    config["learning_rate"] = st.column_config.NumberColumn("Learning rate", format="%.3g")
    config["seconds"] = st.column_config.NumberColumn("Seconds", format="%.0f")
    config["queued_at"] = st.column_config.DatetimeColumn("Queued", format="YYYY-MM-DD HH:mm")
    config["tags"] = st.column_config.ListColumn("Tags")
    st.dataframe(
        export.inert(frame[[c for c in COLUMNS if c in shown]]),
        hide_index=True,
        column_config=config,
        key="runs-table",
        on_select=select,
        selection_mode="multi-row",
        height="content" if len(frame) <= 10 else 420,
        alt="All runs that match the filters",
    )


def settings(run: Mapping[str, Any]) -> pd.DataFrame:
    """The spec that ran, one row a setting, as text."""
    flat = run_picker.settings(run) | {"parent": run["parent"], "group": run["grp"], "spec hash": run["spec_hash"]}
    return pd.DataFrame({"Setting": list(flat), "Value": [run_picker.short(v) for v in flat.values()]})


def log_tail(run: Mapping[str, Any]) -> str:
    """The last lines of a run's log: untrusted text, shown as code."""
    try:
        path: Path = journal.RunFolder.open(journal.home(None), str(run["run_id"])).log_path
    except UserError:
        return "Shipped with the showcase: the log stayed where the run was made."
    if path.is_symlink() or not path.is_file():
        return ""  # a link would show a file from outside of the run
    with path.open("rb") as log:
        size = log.seek(0, os.SEEK_END)
        log.seek(max(0, size - TAIL_BYTES))
        text = log.read().decode("utf-8", errors="replace")
    # A progress bar rewrites its line; only its last state is worth showing.
    return "\n".join(line.rsplit("\r", 1)[-1] for line in text.rstrip("\n").split("\n"))


def scores(run: Mapping[str, Any]) -> None:
    """Every score of a run, and the answers behind one step, folded."""
    frame = reads.ask(queries.scores, [str(run["run_id"])], splits=None)
    if frame.empty:
        st.caption("No evaluation is recorded for this run.")
        return
    learned = tasks.before_and_after(pd.DataFrame([run]), frame)
    if len(learned):
        st.caption(
            "Labelled tasks: ZS is the accuracy before this run, FS that after its fine-tuning on benign rows. Strict "
            "is by the rule of released codes, chance the share of the commonest label."
        )
        shown = learned.drop(columns="run_id").rename(columns=lambda c: c.replace("_", " "))
        st.dataframe(
            shown,
            hide_index=True,
            alt="Accuracy on labelled tasks before and after fine-tuning",
            column_config={c: st.column_config.NumberColumn(format="percent") for c in shown.columns[1:-1]},
        )
    st.dataframe(
        frame.drop(columns="run_id"),
        hide_index=True,
        column_config={
            "score": st.column_config.NumberColumn(format="%.4g"),
            "stderr": st.column_config.NumberColumn(format="%.2g"),
        },
        alt="Scores by step, evaluation, metric and split",
    )
    by, told = frame.groupby("metric")["evaluation"].unique(), []
    for name, metric in catalogue.metrics().items():
        if name in by:
            # Several evaluations report a harmfulness or a utility.
            words = catalogue.measured_by(by[name]) if name in ("harmfulness", "utility") else metric.words
            told.append(f"{name}: {words}")
    if told:
        st.caption(live.plain(f"{'; '.join(told)}."))
    answers = st.expander("Answers behind the scores (may be harmful or nonsense)", on_change="rerun", key="answers")
    if answers.open:
        with answers:
            steps = sorted(frame["step"].unique())
            step = st.select_slider("Step", steps, value=steps[-1], key="answers-step") if len(steps) > 1 else steps[0]
            rows = reads.ask(queries.examples, str(run["run_id"]), int(step))
            if rows.empty:
                st.caption("No answers are recorded at this step.")
            else:
                st.dataframe(export.inert(rows), hide_index=True, alt="Prompts and answers at this step")


def _when(seconds: pd.Series) -> pd.Series:
    if pd.api.types.is_numeric_dtype(seconds):
        return pd.to_datetime(seconds, unit="s")
    return seconds
