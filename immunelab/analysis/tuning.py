"""What a tuning of a defense found, setting by setting: the trials, the confirmations with other seeds, the winner.

Frames in, frames out; `events` is what `store.queries.tunings` returns, of one tuning.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from immunelab.formatting import duration, share

CONFIRMED = "confirmed"


def settings_table(events: pd.DataFrame) -> pd.DataFrame:
    """One row a setting, in the order in which they were tried.

    Columns: setting (from 1; 1 is the preset), outcome ("tried", "pruned" after a part of the panel, "costly" before
    any attack, "failed"), kept (utility before any attack, as a share of the base model's), harm (the most within the
    bound, of the attacks that it faced; NaN: it faced none), worst (the attack that did it), settings, seconds; and of
    its confirmations with other seeds: n, confirmed_harm, low, high, confirmed_kept; world_harm, world_kept (NaN:
    none); winner.
    """
    tried = events[events["event"] == "setting"]
    sure = events[events["event"] == CONFIRMED]
    won = events.loc[events["event"] == "tuned", "setting"].tolist()
    rows = []
    for r in tried.to_dict("records"):
        mine = sure[sure["setting"] == r["setting"]]
        home, away = mine[mine["place"] == mine["corpus"]], mine[mine["place"] != mine["corpus"]]
        harms = r["harms"] or {}
        rows.append(
            {
                "setting": r["setting"],
                "outcome": r["outcome"],
                "kept": r["kept"],
                "harm": r["harm"] if harms else None,
                "worst": max(harms, key=lambda name: harms[name]) if harms else "",
                "settings": r["settings"],
                "seconds": r["seconds"],
                "n": len(home),
                "confirmed_harm": home["harm"].mean(),
                "low": home["harm"].min(),
                "high": home["harm"].max(),
                "confirmed_kept": home["kept"].mean(),
                "world_harm": away["harm"].mean(),
                "world_kept": away["kept"].mean(),
                "winner": r["setting"] in won,
            }
        )
    numbers = ("kept", "harm", "confirmed_harm", "low", "high", "confirmed_kept", "world_harm", "world_kept")
    columns = [*(rows[0] if rows else ("setting", "outcome", "settings", "winner", "n", "worst", "seconds", *numbers))]
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(numbers, float))


def control(events: pd.DataFrame) -> float:
    """The most harm that the panel does to the undefended model, on the tuning's own seed; NaN if it is not known."""
    mine = events[(events["event"] == "control") & events["seed"].isna()]
    return float(mine["harm"].iloc[-1]) if len(mine) else float("nan")


def sentence(events: pd.DataFrame) -> str:
    """What a tuning found, in words; empty before anything is tried."""
    table = settings_table(events)
    if table.empty:
        return ""
    knobs: dict[str, Any] = events["knobs"].iloc[0]
    counts = table["outcome"].value_counts()
    seconds, of = float(knobs.get("budget_seconds", 0.0)), events["tuned"].iloc[0]
    tried = f"{len(table)} of {knobs['trials']} settings of {of} tried"
    if seconds:
        tried = f"{len(table)} setting{'s' * (len(table) > 1)} of {of} tried in a budget of {duration(seconds)}"
    parts = [tried, *(f"{counts[o]} {o}" for o in ("costly", "pruned", "failed") if o in counts)]
    said = [", ".join(parts) + "."]
    whole = table[table["outcome"] == "tried"]
    if len(whole):
        best = whole.sort_values("harm").iloc[0]
        said.append(f"The best one gives {share(best['harm'])} away and keeps {share(best['kept'])} of the utility.")
    won, preset = table[table["winner"]], table[table["setting"] == 1]
    for r in won.to_dict("records"):
        n = f"{r['n']} other seed{'s' if r['n'] > 1 else ''}"
        name = "The preset" if r["setting"] == 1 else f"Setting {r['setting']}"
        said.append(
            f"{name} wins: with {n} it gives {share(r['confirmed_harm'])} away ({share(r['low'])} to "
            f"{share(r['high'])}) and keeps {share(r['confirmed_kept'])}."
        )
        if r["setting"] != 1 and preset["n"].sum():
            p = preset.iloc[0]
            said.append(f"The preset gives {share(p['confirmed_harm'])} away and keeps {share(p['confirmed_kept'])}.")
        said.append(accepted(knobs, r))
    return " ".join(said)


def accepted(knobs: dict[str, Any], winner: dict[Any, Any]) -> str:
    """Whether the winner meets what the tuning's spec asked for before the first trial."""
    utility, harm = knobs["utility"], knobs.get("harm", 0.1)
    lacks = [f"less than {share(utility)} of the utility"] * (winner["confirmed_kept"] < utility)
    lacks += [f"more than {share(harm)} given away"] * (winner["confirmed_harm"] > harm)
    asked = f"at most {share(harm)} given away at {share(utility)} of the utility"
    return f"Not accepted: {' and '.join(lacks)}." if lacks else f"Accepted: {asked}, as was asked for beforehand."
