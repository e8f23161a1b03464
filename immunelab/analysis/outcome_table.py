"""All defenses at once: what became of each under each attack and intensity. Frames in, frames or Markdown out.

Scores are those after the last step, as mean, minimum and maximum over recorded seeds; an outcome is read from every
checkpoint of a run, and a cell bears the worst one of its seeds.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from immunelab.analysis.collapse import METRICS, describe
from immunelab.analysis.outcomes import (
    ATTACK,
    BROKEN,
    DEFAULT,
    DEGRADED,
    DESTROYED,
    OUTCOMES,
    Thresholds,
    label,
    run_outcomes,
    worst,
)
from immunelab.analysis.repair import METHOD
from immunelab.analysis.variants import KEYS, Variant, complete, each, pinned_first, present

WORLD = ("base_model", "corpus", "judge", "method")  # what one section of a table shares
COLUMNS = (
    *KEYS,
    "n",
    *(f"{m}{part}" for m in METRICS for part in ("", "_low", "_high")),
    "outcome",
    "outcomes",
    "agreeing",
    "early",
    "vacuous",
    "repairable",
)
VACUOUS = "†"
EARLY = "‡"
REPAIRED = "§"
NOTES = {
    VACUOUS: "the same attack does not break the undefended model, so the cell says nothing.",
    EARLY: "so at an earlier checkpoint, which the attacker may keep; the scores are those after the last step.",
    REPAIRED: "whoever repairs the model has it harmful and useful: a recorded break-and-repair on it ends broken.",
}
NOT_SCORED = "not scored"


def outcome_table(curves: pd.DataFrame, thresholds: Thresholds = DEFAULT) -> pd.DataFrame:
    """One row per variant of a defense and attack (method and every setting of it), over the seeds that were recorded.

    `curves` is what `store.queries.attack_curves` returns, best after `collapse.comparable`; only finished runs count
    where the status is known. Columns: the settings that `ATTACK` names, defense, variant, n (seeds), harmfulness and
    utility after the last step (mean, with `_low` and `_high`), outcome (the worst of the seeds; None without scores),
    outcomes (such as "2 broken, 1 resisted"), agreeing (seeds with that worst outcome), early (none of them ends with
    it: an earlier checkpoint decided), vacuous (True: the same attack does not break the undefended model, so the cell
    says nothing; None: that control is not recorded), repairable (destroyed, but a break-and-repair attack on the same
    defense is recorded that ends broken, so the attacker has won).
    """
    done = curves[curves["status"] == "done"] if "status" in curves else curves
    read = run_outcomes(complete(done), thresholds)
    if read.empty:
        return pd.DataFrame(columns=[*(k for k in ATTACK if k in curves), *COLUMNS])
    keys = [k for k in ATTACK if k in read]
    read = read.assign(early=_early(read, thresholds))
    rows = []
    for key, cell in read.groupby([*KEYS, *keys], dropna=False, sort=True):
        row: dict[str, Any] = dict(zip([*KEYS, *keys], key, strict=True)) | {"n": cell["run_id"].nunique()}
        for metric in METRICS:
            values = cell[metric].dropna()
            row |= {metric: values.mean(), f"{metric}_low": values.min(), f"{metric}_high": values.max()}
        verdict = worst(cell["outcome"])
        row |= {"outcome": verdict, "outcomes": describe(cell["outcome"])}
        agreeing = cell[cell["outcome"] == verdict]
        row |= {
            "agreeing": len(agreeing),
            "early": len(agreeing) > 0 and bool(agreeing["early"].all()),
            "vacuous": cell["vacuous"].iloc[0],
            "repairable": False,
        }
        rows.append(row)
    table = pd.DataFrame(rows).astype({"vacuous": object, "outcome": object})
    table["outcome"] = table["outcome"].where(table["outcome"].notna(), None)
    world = [*KEYS, *(k for k in WORLD[:-1] if k in table)]
    ends_broken = (table["outcome"] == BROKEN) & ~table["early"].astype(bool)
    won = table[(table["method"] == METHOD) & ends_broken] if "method" in table else table.iloc[:0]
    known = set(won[world].itertuples(index=False, name=None))
    same = [pair in known for pair in table[world].itertuples(index=False, name=None)]
    table["repairable"] = table["outcome"].isin([DEGRADED, DESTROYED]) & pd.Series(same, index=table.index, dtype=bool)
    order = pinned_first(present(table))
    place = [order.index(Variant(*pair)) for pair in table[KEYS].itertuples(index=False, name=None)]
    return table.assign(_place=place).sort_values(["_place", *keys]).drop(columns="_place").reset_index(drop=True)


def ladder(table: pd.DataFrame, x: str = "learning_rate") -> pd.DataFrame:
    """The rows along one setting `x`: of each attack method those whose other settings are the most recorded ones."""
    keys = [k for k in ATTACK if k in table and k not in (*WORLD, x)]
    kept = []
    for _, section in table.groupby([k for k in WORLD if k in table], dropna=False, sort=True):
        most = section[keys].astype(object).where(section[keys].notna(), None)
        common = most.value_counts(dropna=False).index[0] if keys else ()
        kept.append(section[[row == common for row in most.itertuples(index=False, name=None)]])
    return pd.concat(kept) if kept else table


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """One row a variant of a defense, over all its cells: defense, variant, attacks (cells), one column an outcome with
    the number of cells, outcome (the worst), most_harm (the largest mean while the worst outcome is broken, else at
    all), method, learning_rate (of the cell it stands in). Vacuous cells are not counted: they say nothing."""
    rows = []
    telling = table[~table["vacuous"].map(lambda v: v is True) & table["outcome"].notna()]
    for variant, mine in each(telling, sort=False):
        verdict = worst(mine["outcome"])
        most = mine[mine["outcome"] == verdict].sort_values("harmfulness").iloc[-1]
        row = {"attacks": len(mine)} | {o: int((mine["outcome"] == o).sum()) for o in OUTCOMES}
        rows.append(
            variant._asdict()
            | row
            | {
                "outcome": verdict,
                "most_harm": most["harmfulness"],
                "method": most["method"],
                "learning_rate": most["learning_rate"],
            }
        )
    columns = [*KEYS, "attacks", *OUTCOMES, "outcome", "most_harm", "method", "learning_rate"]
    return pd.DataFrame(rows, columns=columns)


def wide(table: pd.DataFrame, x: str = "learning_rate", values: str = "cell") -> pd.DataFrame:
    """One row a variant (defense and variant are the index), one column a value of `x`, in the table's order; for one
    attack method.

    `values` names a column of the table, or "cell": outcome, harmfulness and utility as a text.
    """
    shown = table.assign(cell=[cell(r) for r in table.to_dict("records")]) if values == "cell" else table
    found = shown.drop_duplicates([*KEYS, x]).pivot(index=KEYS, columns=x, values=values)
    return found.reindex(pd.MultiIndex.from_frame(table[KEYS].drop_duplicates()))


def cell(row: dict[Any, Any], bands: bool = False) -> str:
    """A row in words: "broken: harm 95 %, utility 99 %"; with `bands` the range over seeds, where there is one."""
    if row["outcome"] is None or row["outcome"] != row["outcome"]:
        return NOT_SCORED
    scores = ", ".join(
        f"{word} {_share(row, metric, bands)}" for word, metric in zip(("harm", "utility"), METRICS, strict=True)
    )
    some = f" ({row['agreeing']} of {row['n']})" if row["agreeing"] < row["n"] else ""
    return f"{row['outcome']}{some}{_signs(row)}: {scores}"


def markdown(table: pd.DataFrame, x: str = "learning_rate") -> str:
    """The table as Markdown: for each attack method one table with a row a defense and a column a value of `x`.

    Only the `ladder` along `x` is written, the attack that most defenses faced first. Broken is bold; "(1 of 3)"
    counts the seeds with the worst outcome.
    """
    parts = []
    along = ladder(table, x)
    sections = list(along.groupby([k for k in WORLD if k in along], dropna=False, sort=True))
    for key, section in sorted(sections, key=lambda section: -len(present(section[1]))):
        rungs = wide(section, x)
        heads = [_rung(v) for v in rungs.columns]
        lines = [f"Attack `{key[-1]}`{_fixed(section, x)}; columns: {x.replace('_', ' ')}.", ""]
        lines += [_line(["defense", *heads]), _line(["---"] * (1 + len(heads)))]
        for variant, mine in each(section, sort=False):
            found = {r[x]: _markdown_cell(r) for r in mine.to_dict("records")}
            cells = [
                next((text for v, text in found.items() if v == c or (v != v and c != c)), "–") for c in rungs.columns
            ]
            lines.append(_line([variant.label, *cells]))
        parts.append("\n".join(lines))
    parts += [f"{sign} {words}" for sign, words in notes(along).items()]
    return "\n\n".join(parts) + "\n" if parts else ""


def notes(table: pd.DataFrame) -> dict[str, str]:
    """The signs that the cells of a table bear, with what each means."""
    borne = "".join(_signs(row) for row in table.to_dict("records"))
    return {sign: words for sign, words in NOTES.items() if sign in borne}


def _signs(row: dict[Any, Any]) -> str:
    signs = (VACUOUS, row["vacuous"] is True), (EARLY, row["early"]), (REPAIRED, row["repairable"])
    return "".join(sign for sign, borne in signs if borne)


def _early(read: pd.DataFrame, thresholds: Thresholds) -> list[bool]:
    """Whether each run has its label from an earlier checkpoint than the last one."""
    if "base_utility" not in read:
        return [False] * len(read)
    ends = zip(read["harmfulness"], read["utility"], read["base_utility"], read["outcome"], strict=True)
    return [bool(pd.notna(base) and label(f, g, thresholds, base) != own) for f, g, base, own in ends]


def _markdown_cell(row: dict[Any, Any]) -> str:
    words, _, scores = cell(row, bands=True).partition(": ")
    mark = f"**{words}**" if row["outcome"] == BROKEN else words
    return f"{mark}<br>{scores}" if scores else mark


def _share(row: dict[Any, Any], metric: str, bands: bool) -> str:
    mean, low, high = (f"{100 * row[k]:.0f}" for k in (metric, f"{metric}_low", f"{metric}_high"))
    return f"{mean} % ({low}–{high})" if bands and low != high else f"{mean} %"


def _fixed(section: pd.DataFrame, x: str) -> str:
    row = section.iloc[0]
    words = {
        "steps": "{:g} steps",
        "batch_size": "batch {:g}",
        "samples": "{:g} harmful rows",
        "harmful_share": "{:.0%} of the rows harmful",
    }
    if row.get("samples") == 0:
        words["samples"] = "all harmful rows"
    said = [text.format(row[k]) for k, text in words.items() if k in section and k != x and row[k] == row[k]]
    return f", {', '.join(said)}, {section['n'].max():g} seeds" if said else f", {section['n'].max():g} seeds"


def _rung(value: Any) -> str:
    return "as it is" if value != value else f"{value:g}"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
