"""What becomes of an undefended and of an immunized model, told from recorded runs: nothing that no run shows."""

from __future__ import annotations

import dataclasses
from typing import Any

import pandas as pd

from immunelab.analysis import collapse
from immunelab.analysis.collapse import INTENSITY, METRICS, describe, select
from immunelab.analysis.outcomes import BROKEN, Thresholds, run_outcomes, worst
from immunelab.analysis.variants import BASELINE, KEYS, Variant, among, complete, of, present
from immunelab.figures.palette import title_of

RATE = "learning_rate"
USUAL = "harmful-sft"  # fine-tuning of all weights comes before other attacks
SAME = [*INTENSITY, "method", "base_model", "corpus"]  # what the two models must share to be compared


@dataclasses.dataclass(frozen=True)
class Story:
    """An undefended model and a defended one under the same attack, at every recorded intensity of it."""

    regimes: list[str]  # one sentence each, from the mildest attack to the hardest
    ladder: pd.DataFrame  # the attacks at every learning rate, all else alike
    curves: pd.DataFrame  # the attack among them that harms the undefended model most
    base: float
    basis: str
    link: dict[str, Any]


def tell(curves: pd.DataFrame, thresholds: Thresholds) -> Story | None:
    """The story of the attack that does the undefended model most harm, told for SEAM, or else for the defense with
    most recorded runs.

    The attack is chosen by what it does to the undefended model alone, never by how the defense fares; fine-tuning of
    all weights comes before other attacks that break it. None where no attack is recorded for a defended and an
    undefended model alike.
    """
    if curves.empty:
        return None
    read = run_outcomes(complete(curves), thresholds).dropna(subset=["outcome"])
    counts = read[read["defense"] != "undefended"].groupby(KEYS).size()
    defenses = sorted(
        (Variant(*pair) for pair in counts.index), key=lambda v: (v.defense != "seam", -counts[v], v.label)
    )
    best: tuple[tuple[bool, bool, float], dict[str, Any], Variant] | None = None
    for key, cell in read.groupby(SAME, dropna=False):
        control = cell[cell["defense"] == "undefended"]
        here = present(cell)
        defended = [v for v in defenses if v in here]
        if control.empty or not defended:
            continue
        choice = {k: v for k, v in zip(SAME, key, strict=True) if v == v}  # NaN: not recorded
        broken, usual = bool((control["outcome"] == BROKEN).any()), choice["method"] == USUAL
        score = (broken, usual, float(control["harmfulness"].mean()))
        if best is None or score > best[0]:
            best = (score, choice, defended[0])
    return None if best is None else _told(curves, read, best[1], best[2])


def _told(curves: pd.DataFrame, read: pd.DataFrame, choice: dict[str, Any], defense: Variant) -> Story:
    names = [BASELINE, defense]
    alike = {k: v for k, v in choice.items() if k != RATE}
    both = among(select(curves, choice), names)
    every = among(read[read["method"] == choice["method"]], names)
    overall = "; ".join(f"{title_of(*n)}: {describe(of(every, n)['outcome'])}" for n in names)
    rungs = every.groupby(list(INTENSITY), dropna=False).ngroups
    seeds = min(of(both, n)["seed"].nunique() for n in names)
    basis = (
        f"{choice['method']}, mean and range over {seeds} {'seed' if seeds == 1 else 'seeds'}. All {rungs} recorded "
        f"intensities of it, every seed: {overall}"
    )
    base = collapse.base_utility(curves)
    rate = {"rate": f"{choice[RATE]:g}"} if RATE in choice else {}  # some attacks do not train
    ladder = among(select(curves, alike), names)
    return Story(
        regimes(among(select(read, alike), names), defense),
        ladder,
        both,
        base,
        basis,
        {"attack": choice["method"]} | rate,
    )


def regimes(read: pd.DataFrame, defense: Variant) -> list[str]:
    """A sentence for each stretch of learning rates at which both models come to the same end; `read` is what
    `run_outcomes` returns, of the undefended model and the `defense` under attacks that differ in the rate alone."""
    names = [BASELINE, defense]
    rates = read[RATE] if read[RATE].notna().any() else pd.Series(0.0, index=read.index)
    stretches: list[tuple[list[str], list[float], list[pd.DataFrame]]] = []
    for rate, cell in read.groupby(rates):
        if len(present(cell)) < len(names):
            continue  # recorded for one of the two only
        ends = [str(worst(of(cell, n)["outcome"])) for n in names]
        if stretches and stretches[-1][0] == ends:
            stretches[-1][1].append(float(rate))
            stretches[-1][2].append(cell)
        else:
            stretches.append((ends, [float(rate)], [cell]))
    said = []
    for _, at, cells in stretches:
        where = f"{at[0]:g}" if len(at) == 1 else f"{at[0]:g} to {at[-1]:g}"
        parts = []
        for name in names:
            mine = [of(cell, name) for cell in cells]
            harm, utility = (_span([float(rows[m].mean()) for rows in mine]) for m in METRICS)
            found = pd.concat(mine)["outcome"]
            end = worst(found) if found.nunique() == 1 else f"at worst {worst(found)} ({describe(found)})"
            model = "the undefended model" if name == BASELINE else title_of(*name)
            parts.append(f"{model} gives away {harm} of the hazards and keeps {utility} utility: {end}")
        attack = (
            f"Learning rate {where}"
            if read[RATE].notna().any()
            else f"After {read['method'].iloc[0]}, which does not train"
        )
        said.append(f"{attack}: {'; '.join(parts)}.")
    return said


def _span(shares: list[float]) -> str:
    low, high = f"{min(shares):.0%}", f"{max(shares):.0%}"
    return low if low == high else f"{low[:-1]}–{high}"
