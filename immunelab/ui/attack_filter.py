"""Which attacks a page looks at: their source, the attacked base model, the attack, and the defenses beside none."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pandas as pd
import streamlit as st

from immunelab.analysis import collapse
from immunelab.analysis.variants import BASELINE, PINNED, Variant, among, pinned_first, present
from immunelab.figures.palette import title_of
from immunelab.method import catalogue
from immunelab.ui import intensity, live, navigation, reads

ALL = "all attacks"
FEW = 3  # so many defenses are all shown at first; of more only SEAM, and the reader adds others


@dataclasses.dataclass(frozen=True)
class Scope:
    """A choice of recorded attacks. `shown` are the defenses to draw, the undefended model first."""

    source: str
    subject: str  # the attacked base model, on which corpus
    attack: str
    shown: tuple[Variant, ...]
    judge: str = ""

    def read(self) -> pd.DataFrame:
        """The attacks of the choice as they are now, of every defense."""
        curves = intensity.read(self.source, self.subject)
        version = reads.version(intensity.SOURCES[self.source])
        return _alike(version, self.subject, self.attack, self.judge, curves).copy(deep=False)

    def drawn(self) -> pd.DataFrame:
        """The same, of the defenses to draw."""
        return reads.kept(self.state(), lambda: among(self.read(), self.shown)).copy(deep=False)

    def state(self) -> tuple[int, Scope]:
        """Another value whenever `read` or `drawn` give something else: the key of what is made of them."""
        return reads.version(intensity.SOURCES[self.source]), self


@st.cache_resource(max_entries=16, show_spinner=False)
def _alike(version: int, subject: str, attack: str, judge: str, _curves: pd.DataFrame) -> pd.DataFrame:
    return of_judge(of_attack(_curves, attack), judge)


def choose(empty: str, *, every_attack: bool = False) -> Scope:
    """The choice as widgets, each only where there is something to choose; without any recorded attack a designed
    empty state (`empty` says what will be here), and the page ends. `every_attack` offers all attacks together."""
    shipped, own = (not reads.curves(showcase=k).empty for k in (True, False))
    if not shipped and not own:
        navigation.nothing_yet(
            "No attack has been recorded yet", empty, ("launch", "Launch an attack"), ("overview", "Run the live demo")
        )
        live.waiting(lambda: not reads.curves().empty)
        st.stop()
    with st.container(horizontal=True, vertical_alignment="bottom"):
        source = "Both"
        if shipped and own:
            source = st.segmented_control(
                "Runs", list(intensity.SOURCES), default="Both", required=True, key="source", bind="query-params"
            )
        subject = attacked(reads.curves(intensity.SOURCES[source]))
        curves = intensity.read(source, subject)
        attack = which(curves, every_attack)
        judge = judged(of_attack(curves, attack))
        mine = of_judge(of_attack(curves, attack), judge)
        others = beside(mine)
    told = measures(mine)
    if told:
        st.caption(live.plain(told))
    return Scope(source, subject, attack, (BASELINE, *others), judge)


def attacked(curves: pd.DataFrame) -> str:
    """Which base model to look at, on which corpus: a choice where several are recorded."""
    subjects = collapse.subjects(curves)
    if len(subjects) < 2:
        return subjects[0]
    chosen: str = st.selectbox("Base model", subjects, key="base", bind="query-params", width=220)
    return chosen


def which(curves: pd.DataFrame, every: bool = False) -> str:
    """The attack to look at, the most recorded one first; unlike attacks never share a band."""
    methods = attacks(curves)
    options = [ALL, *methods] if every else methods
    if len(methods) < 2:
        return options[0] if options else ALL
    chosen: str = st.selectbox("Attack", options, key="attack", bind="query-params", width=220)
    return chosen


def attacks(curves: pd.DataFrame) -> list[str]:
    """The recorded attack methods, those of most runs first."""
    runs = curves.drop_duplicates("run_id")["method"].value_counts()
    return [str(m) for m in sorted(runs.index, key=lambda m: (-runs[m], m))]


def of_attack(curves: pd.DataFrame, attack: str) -> pd.DataFrame:
    """The rows of one attack method, or of all of them."""
    return curves if attack == ALL else curves[curves["method"] == attack]


def judged(curves: pd.DataFrame) -> str:
    """Whose harmfulness to look at, that of most runs first; numbers of unlike judges never share a band."""
    runs = curves.drop_duplicates("run_id")["judge"].value_counts()
    options = sorted(runs.index, key=lambda j: (-runs[j], j))
    if len(options) < 2:
        return str(options[0]) if options else ""
    chosen: str = st.selectbox(
        "Judge",
        options,
        format_func=lambda j: live.plain(j or "none: by words or facts"),
        key="judge",
        bind="query-params",
        width=320,
    )
    return chosen


def of_judge(curves: pd.DataFrame, judge: str) -> pd.DataFrame:
    """The rows of runs with one judge; all where none is recorded with it."""
    mine = curves[curves["judge"] == judge]
    return curves if mine.empty else mine


def measures(curves: pd.DataFrame) -> str:
    """What harmfulness and utility are in these runs, where that is not what they are in Fable, and which of them were
    recorded elsewhere."""
    found = []
    if names := sorted({n for n in curves["recorded_by"] if n}):
        runs = curves.loc[curves["recorded_by"] != "", "run_id"].nunique()
        found.append(f"Recorded elsewhere: {runs} attack{'' if runs == 1 else 's'}, by {', '.join(names)}.")
    harm, utility = (list(curves[f"{m}_by"].dropna().unique()) for m in ("harmfulness", "utility"))
    known = {e.name for e in catalogue.entries("evaluation").values() if e.measure}
    if not set(harm) & known - {"fable-recall"}:
        return " ".join(found)
    here = catalogue.measured_by(harm, curves["judge"].unique())
    return " ".join([f"Harmfulness here: {here}. Utility: {catalogue.measured_by(utility)}.", *found])


def beside(curves: pd.DataFrame) -> Sequence[Variant]:
    """The defenses to draw beside the undefended model, which stays pinned."""
    others = {v.label: v for v in pinned_first(present(curves)) if v != BASELINE}
    if len(others) < 2:
        return list(others.values())
    first = [label for label, v in others.items() if v.defense in PINNED] or list(others)
    chosen: list[str] = st.multiselect(
        "Beside the undefended model",
        list(others),
        default=list(others) if len(others) <= FEW else first[:FEW],
        key="beside",
        format_func=lambda label: title_of(*others[label]),
        bind="query-params",
    )
    return [others[label] for label in chosen]
