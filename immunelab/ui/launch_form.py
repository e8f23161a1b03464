"""What the Launch page offers: models, corpora, presets, and the settings of a run that is to be repeated."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from immunelab.errors import UserError
from immunelab.method import catalogue
from immunelab.runs import numerics, shipped
from immunelab.runs.spec import KEEP, RunSpec
from immunelab.sweep import Choice, choose
from immunelab.ui import live, reads

BENIGN = "benign-sft"
CUSTOM = "defaults"
COPIED = "copied run"


def copied(runs: pd.DataFrame, run_id: str | None) -> RunSpec | None:
    """The spec of the run that the link names; a missing one is told."""
    if not run_id:
        return None
    row = runs[runs["run_id"] == run_id]
    if row.empty:
        st.warning(f"There is no run {run_id} to copy the settings of.", icon=":material/link_off:")
        return None
    spec = RunSpec.from_json(str(row["spec"].iloc[0]), f"{run_id}/spec.json")
    if spec.recorded_by:
        st.warning(
            f"The run {live.plain(run_id)} was recorded elsewhere, by {live.plain(spec.recorded_by)}, and can't be run "
            "here.",
            icon=":material/link_off:",
        )
        return None
    return spec


def models(runs: pd.DataFrame, copy: RunSpec | None) -> list[str]:
    """Models to choose from: Fable, base models used before, and checkpoints of finished immunizations of this home."""
    known = ["fable", *runs["model"].dropna().unique()]
    done = runs[(runs["kind"] == "immunize") & (runs["status"] == "done") & ~runs["showcase"].astype(bool)]
    found = [m for m in known if not str(m).startswith("run:")] + [f"run:{i}" for i in done["run_id"]]
    first = [copy.model] if copy else []
    have = set(runs["run_id"])
    ready = [name for name, folder in shipped.named().items() if folder.run_id not in have]
    return list(dict.fromkeys([*first, *found, *ready]))


def model_name(runs: pd.DataFrame) -> Callable[[str], str]:
    """How a model is written in the choice."""
    words, ready = reads.labels(runs), shipped.named()

    def name(model: str) -> str:
        if model == "fable":
            return "The corpus's own"
        if model in ready:
            return shipped.words(ready[model])
        return f"Checkpoint of {words.get(model[4:], model[4:])}" if model.startswith("run:") else model

    return name


def numbers(copy: RunSpec | None) -> dict[str, str]:
    """Dtype, attention and which weights stay, as the copied run has them; folded, because they seldom change."""
    chosen = {}
    with st.expander("Weights and attention"):
        with st.grid(3, min_column_width=210):
            for name, label, options in (
                ("dtype", "Weights", numerics.DTYPES),
                ("attention", "Attention", numerics.ATTENTIONS),
            ):
                at = options.index(getattr(copy, name)) if copy else 0
                chosen[name] = st.selectbox(label, options, index=at, key=name, help=f"{numerics.HELP[name]}.")
            chosen["keep"] = st.selectbox(
                "Weights that stay on the disk",
                list(KEEP),
                index=list(KEEP).index(copy.keep if copy else "last"),
                format_func=lambda name: f"{name}: {KEEP[name]}",
                key="keep",
                help="Of an attack they are seldom needed. Where another run of the same launch starts from a run, its "
                "last weights stay in any case.",
            )
        st.caption(
            "In bf16 most small updates are lost in rounding; precision bf16-autocast in the knobs keeps fp32 weights. "
            "The knob recompute is gradient checkpointing."
        )
    return chosen


def corpora(runs: pd.DataFrame, copy: RunSpec | None) -> list[str]:
    """Corpora to choose from."""
    first = [copy.corpus] if copy else []
    return list(dict.fromkeys([*first, "fable", *runs["corpus"].dropna().astype(str).unique()]))


def position(options: Sequence[str], copy: RunSpec | None, kinds: Sequence[str], usual: str) -> int:
    """Where a choice starts: at the copied run's method, at none where it has no such part, else at the usual one."""
    if copy is not None:
        return options.index(copy.method) if copy.kind in kinds and copy.method in options else 0
    return options.index(usual) if usual in options else 0


def preset(entry: catalogue.Entry, suited: str, copy: RunSpec | None) -> tuple[str, Mapping[str, Any]]:
    """A choice of preset and the settings that it stands for; it starts at the one that is `suited` to the corpus."""
    named: dict[str, Mapping[str, Any]] = {CUSTOM: entry.settings({}), **entry.presets}
    if copy is not None:
        named = {COPIED: entry.settings({}) | copy.knobs, **named}
    chosen = st.segmented_control(
        "Preset",
        list(named),
        default=COPIED if copy is not None else suited or CUSTOM,
        required=True,
        key=f"{entry.kind}-preset-{entry.name}" + (f"-{suited}" if suited != "fable" else ""),
        bind="query-params",
        wrap=True,
    )
    return chosen, named[chosen]


def kind_of(attack: str, copy: RunSpec | None) -> str:
    """The kind of run that an attack is carried out as: an honest customer's fine-tuning is measured otherwise."""
    usual = copy.kind if copy is not None else "finetune" if attack == BENIGN else "attack"
    if attack != BENIGN and usual == "attack":
        return usual
    words = {"finetune": "Benign fine-tune: what is learned", "attack": "Attack: what harm comes of it"}
    return st.segmented_control(
        "Measured as",
        list(words),
        default=usual,
        required=True,
        format_func=words.__getitem__,
        key=f"kind-{attack}",
        bind="query-params",
    )


def chosen(kind: str, method: str, corpus: str, typed: Mapping[str, Any]) -> Choice:
    """A method with every knob as it was typed; a UserError names the method and what does not fit."""
    try:
        return choose(kind, method, corpus, preset="", knobs=typed)
    except UserError as error:
        raise UserError(f"{method}: {error}") from None


def group(defenses: Sequence[Choice], attacks: Sequence[Choice]) -> str:
    """A name for what is launched together."""
    parts = [*(c.method for c in defenses), *(c.method for c in attacks[:1])]
    return f"{' + '.join(parts)} {time.strftime('%Y-%m-%d %H:%M')}"
