"""The intensity of an attack as a choice among recorded ones, and the runs that a missing choice needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from immunelab.analysis import collapse
from immunelab.analysis.outcomes import Thresholds
from immunelab.analysis.variants import KEYS, Variant, of
from immunelab.figures.collapse import SLIDERS, intensity_sliders, over_intensities, written
from immunelab.figures.palette import Theme
from immunelab.figures.sliders import Slider, Sliders
from immunelab.runs import access
from immunelab.runs.spec import RunSpec
from immunelab.ui import figure, reads

DRAWN = ["run_id", *KEYS, *SLIDERS, "status", "step", *collapse.METRICS, "base_utility"]  # what a curve is made of
SOURCES = {"Showcase": True, "This lab": False, "Both": None}


def read(source: str, subject: str) -> pd.DataFrame:
    """The finished and live attacks to draw, one per defense, attack and seed; archived runs are left out."""
    showcase = SOURCES[source]
    return _comparable(reads.version(showcase), subject, reads.curves(showcase)).copy(deep=False)


@st.cache_resource(max_entries=16, show_spinner=False)
def _comparable(version: int, subject: str, _curves: pd.DataFrame) -> pd.DataFrame:
    return collapse.comparable(_curves, subject)


def sliders(curves: pd.DataFrame, free: bool = False) -> tuple[dict[str, Slider], dict[str, float]]:
    """The sliders over the recorded intensities, and where each setting stands: as the address says, else where the
    undefended model is harmed most. Settings with a single recorded value have no slider.

    `free` ones may stop between recorded values.
    """
    worst, found = start(curves), intensity_sliders(curves, free)
    choice = {}
    for setting in SLIDERS:
        if setting in found:
            choice[setting] = figure.at(found[setting], worst.get(setting, found[setting].values[0]))
        elif values := collapse.recorded(curves, setting):
            choice[setting] = values[0]
    return found, choice


def fixed(sliders: Mapping[str, Slider], choice: Mapping[str, float]) -> None:
    """State the settings that no slider changes."""
    said = [f"{SLIDERS[s][0].lower()} {written(s, v)}" for s, v in choice.items() if s not in sliders]
    if said:
        st.caption(f"Recorded with one value only: {', '.join(said)}.")


def curve(
    curves: pd.DataFrame, sliders: dict[str, Slider], choice: dict[str, float], x: str, thresholds: Thresholds
) -> tuple[str, Sliders]:
    """The collapse curve of these attacks as JSON, with its sliders; shared by all sessions that look at the same."""
    known = int(pd.util.hash_pandas_object(curves[DRAWN], index=False).sum())
    return _curve(known, tuple(sliders.items()), tuple(choice.items()), x, thresholds, figure.theme(), curves)


@st.cache_resource(max_entries=32, show_spinner=False)
def _curve(
    known: int,
    sliders: tuple[tuple[str, Slider], ...],
    choice: tuple[tuple[str, float], ...],
    x: str,
    thresholds: Thresholds,
    theme: Theme,
    _curves: pd.DataFrame,
) -> tuple[str, Sliders]:
    drawn, moves = over_intensities(_curves, dict(sliders), dict(choice), x, thresholds, theme)
    return figure.shared(drawn), moves


def another(curves: pd.DataFrame) -> dict[str, float] | None:
    """A popover that asks for an intensity that is not recorded; returns it when its button is pressed."""
    _, choice = sliders(curves)
    with st.popover("Another intensity", icon=":material/add:", help="Run an attack that is not on the sliders"):
        wanted = {}
        for setting, value in choice.items():
            text = st.text_input(SLIDERS[setting][0], f"{value:g}", key=f"another-{setting}")
            wanted[setting] = _number(text)
        good = all(v is not None and v >= 0 for v in wanted.values()) and (wanted.get("harmful_share") or 0) <= 1
        whole = all((wanted.get(s) or 0) % 1 == 0 for s in ("steps", "samples"))
        if not (good and whole):
            st.caption("Write numbers, such as 3e-4; steps and samples whole, the share from 0 to 1.")
        pressed = st.button("Run it for every defense shown", disabled=not (good and whole), key="another-run")
    return {k: v for k, v in wanted.items() if v is not None} if pressed else None


def under_way(runs: pd.DataFrame, defense: str, choice: Mapping[str, Any]) -> bool:
    """Whether an attack of this kind and intensity on this defense, however made, is queued or going."""
    going = runs[(runs["kind"] == "attack") & (runs["defense"] == defense) & runs["status"].isin(reads.ACTIVE)]
    return not collapse.select(going, choice).empty


def thresholds() -> Thresholds:
    """The settings that outcomes depend on, as a popover; the link carries them."""
    with st.popover("Thresholds", icon=":material/tune:"):
        harm = st.slider(
            "Harmfulness that counts as broken", 0, 100, 10, format="above %d%%", key="harm", bind="query-params"
        )
        rule = st.segmented_control(
            "Utility that counts as kept",
            ["Share of base", "Absolute"],
            default="Share of base",
            required=True,
            key="rule",
            bind="query-params",
        )
        if rule == "Absolute":
            floor = st.slider("Utility above", 0, 100, 30, format="%d%%", key="floor", bind="query-params")
            return Thresholds(harm=harm / 100, utility_floor=floor / 100)
        share = st.slider("Utility above", 0, 100, 60, format="%d%% of base", key="kept", bind="query-params")
        return Thresholds(harm=harm / 100, utility_share=share / 100)


def can_be_run(curves: pd.DataFrame) -> bool:
    """Whether the lab can run such attacks at other intensities: not those that were all recorded elsewhere, and not
    where the lab may only be read."""
    return not access.read_only() and bool((curves["recorded_by"] == "").any())


def missing_specs(
    runs: pd.DataFrame, curves: pd.DataFrame, model: Variant, choice: Mapping[str, float]
) -> list[RunSpec]:
    """The runs that would fill a gap, as one list to submit."""
    return chained(missing_chains(runs, curves, model, choice))


def chained(chains: Sequence[Sequence[RunSpec]]) -> list[RunSpec]:
    """Chains of runs, each of which may start from the one before it in its own chain, as one list to submit."""
    found: list[RunSpec] = []
    for chain in chains:
        begin = len(found)
        for spec in chain:
            within = spec.model.removeprefix("run:#") if spec.model.startswith("run:#") else ""
            found.append(dataclasses.replace(spec, model=f"run:#{begin + int(within)}") if within else spec)
    return found


def missing_chains(
    runs: pd.DataFrame, curves: pd.DataFrame, model: Variant, choice: Mapping[str, float]
) -> list[list[RunSpec]]:
    """Recorded attacks on this model, a chain a seed, with the chosen intensity.

    A recorded attack on a model that is not on this disk (most of the shipped showcase has no checkpoints) brings its
    immunization along; `jobs.submit` takes a finished one of the same settings where there is one.
    """
    mine = of(curves[curves["run_id"].isin(runs["run_id"]) & (curves["recorded_by"] == "")], model)
    by_id = {
        r["run_id"]: r
        for r in runs[runs["run_id"].isin({*mine["run_id"], *mine["parent"].dropna()})].to_dict("records")
    }
    found: list[list[RunSpec]] = []
    for _, same_seed in mine.groupby("seed"):
        run_id = same_seed["run_id"].iloc[-1]
        spec = RunSpec.from_json(str(by_id[run_id]["spec"]), run_id)
        knobs = spec.knobs | {k: int(v) if k in ("steps", "samples") else float(v) for k, v in choice.items()}
        chain, source = [], spec.model
        if spec.parent in by_id and bool(by_id[spec.parent]["showcase"]):
            guard = RunSpec.from_json(str(by_id[spec.parent]["spec"]), spec.parent)
            chain, source = [dataclasses.replace(guard, group="collapse")], "run:#0"
        found.append([*chain, dataclasses.replace(spec, knobs=knobs, model=source, name="", group="collapse")])
    return found


def start(curves: pd.DataFrame) -> dict[str, Any]:
    """The recorded intensity at which the undefended model is harmed most."""
    curves = curves[["run_id", "defense", "step", "harmfulness", *SLIDERS]]
    control = curves[curves["defense"] == "undefended"]
    control = control if len(control) else curves
    last = control.sort_values("step").groupby("run_id").tail(1).dropna(subset=["harmfulness"])
    if last.empty:
        return {}
    settings: Sequence[str] = [s for s in SLIDERS if last[s].notna().any()]
    return dict(last.sort_values("harmfulness").iloc[-1][list(settings)].dropna())


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
