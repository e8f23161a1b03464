"""What the Launch page offers: models, corpora, presets, and the settings of a run that is to be repeated."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from immunelab.errors import UserError
from immunelab.runs import numerics
from immunelab.runs.spec import RunSpec
from immunelab.sweep import rungs as rungs
from immunelab.sweep.launch import Choice
from immunelab.ui import reads

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
    return RunSpec.from_json(str(row["spec"].iloc[0]), f"{run_id}/spec.json")


def models(runs: pd.DataFrame, copy: RunSpec | None) -> list[str]:
    """Models to choose from: Fable, base models used before, and checkpoints of finished immunizations of this home."""
    known = ["fable", *runs["model"].dropna().unique()]
    done = runs[(runs["kind"] == "immunize") & (runs["status"] == "done") & ~runs["showcase"].astype(bool)]
    found = [m for m in known if not str(m).startswith("run:")] + [f"run:{i}" for i in done["run_id"]]
    first = [copy.model] if copy else []
    return list(dict.fromkeys([*first, *found]))


def model_name(runs: pd.DataFrame) -> Callable[[str], str]:
    """How a model is written in the choice."""
    words = reads.labels(runs)

    def name(model: str) -> str:
        if model == "fable":
            return "The corpus's own"
        return f"Checkpoint of {words.get(model[4:], model[4:])}" if model.startswith("run:") else model

    return name


def numbers(copy: RunSpec | None) -> dict[str, str]:
    """The dtype of the weights and the attention, as the copied run has them; folded, because they seldom change."""
    chosen = {}
    with st.expander("Weights and attention"):
        with st.grid(2, min_column_width=210):
            for name, label, options in (
                ("dtype", "Weights", numerics.DTYPES),
                ("attention", "Attention", numerics.ATTENTIONS),
            ):
                at = options.index(getattr(copy, name)) if copy else 0
                chosen[name] = st.selectbox(label, options, index=at, key=name, help=f"{numerics.HELP[name]}.")
        st.caption(
            "In bf16 most small updates are lost in rounding; precision bf16-autocast in the knobs keeps fp32 weights. "
            "The knob recompute is gradient checkpointing."
        )
    return chosen


def corpora(runs: pd.DataFrame, copy: RunSpec | None) -> list[str]:
    """Corpora to choose from."""
    first = [copy.corpus] if copy else []
    return list(dict.fromkeys([*first, "fable", *runs["corpus"].dropna().astype(str).unique()]))


def position(options: Sequence[str], copy: RunSpec | None, kind: str, usual: str) -> int:
    """Where a choice starts: at the copied run's method, at none where it has no such part, else at the usual one."""
    if copy is not None:
        return options.index(copy.method) if copy.kind == kind and copy.method in options else 0
    return options.index(usual) if usual in options else 0


def preset(cls: Any, copy: RunSpec | None, what: str) -> tuple[str, dict[str, Any]]:
    """A choice of preset and the knob values that it stands for."""
    named = {CUSTOM: cls().settings(), **{name: p.settings() for name, p in cls.presets.items()}}
    if copy is not None:
        named = {COPIED: cls().settings() | copy.knobs, **named}
    usual = COPIED if copy is not None else "fable" if "fable" in named else CUSTOM
    chosen = st.segmented_control(
        "Preset",
        list(named),
        default=usual,
        required=True,
        key=f"{what}-preset-{cls.name}",
        bind="query-params",
        wrap=True,
    )
    return chosen, named[chosen]


def checked(
    configure: Callable[..., Any], defense: Choice | None, attacks: Sequence[Choice]
) -> tuple[Choice | None, list[Choice]]:
    """The same choices with every knob parsed by its method; a UserError names the method and what does not fit."""

    def check(kind: str, choice: Choice) -> Choice:
        try:
            return Choice(choice.method, configure(kind, choice.method, dict(choice.knobs)).settings())
        except UserError as error:
            raise UserError(f"{choice.method}: {error}") from None

    return (check("defense", defense) if defense else None), [check("attack", a) for a in attacks]


def group(defense: Choice | None, attacks: Sequence[Choice]) -> str:
    """A name for what is launched together."""
    parts = [defense.method if defense else "", attacks[0].method if attacks else ""]
    return f"{' + '.join(p for p in parts if p)} {time.strftime('%Y-%m-%d %H:%M')}"
