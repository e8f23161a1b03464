"""The immunization card: what is read from the store for a scorecard, and its Markdown and HTML to take away.

In the spirit of a model card: one defense, what was measured, on how many runs, within which budget, and what is
missing. Everything that came from a run is escaped.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from immunelab.analysis import collapse
from immunelab.analysis.scorecard import Evidence, Limits, Scorecard, amount, score, when
from immunelab.errors import UserError, unknown
from immunelab.store import Store, queries

CSS = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; margin: 0.5rem 0 1.5rem; }
th, td { text-align: left; vertical-align: top; padding: 0.3rem 0.8rem 0.3rem 0; border-bottom: 1px solid #8886; }
h1, h2 { line-height: 1.2; } small { opacity: 0.75; }
"""


def immunizations(runs: pd.DataFrame) -> pd.DataFrame:
    """The finished immunizations, oldest first, with `settings`: equal where they differ in seed only."""
    done = runs[
        (runs["kind"] == "immunize") & (runs["status"] == "done") & ~runs["archived"].fillna(False).astype(bool)
    ]
    done = done.sort_values(["queued_at", "run_id"], na_position="first")
    keys = [
        json.dumps([r["method"], r["base_model"], r["corpus"], json.loads(r["spec"])["knobs"]], sort_keys=True)
        for r in done.to_dict("records")
    ]
    return done.assign(settings=keys)


def find(runs: pd.DataFrame, text: str) -> list[str]:
    """The immunizations that a person means: an id or its end, `last`, or a defense's name for all seeds of its newest
    settings."""
    known = immunizations(runs)
    if known.empty:
        raise UserError("No finished immunization is recorded. Make one with: immunelab immunize seam")
    if text == "last":
        return [str(known["run_id"].iloc[-1])]
    named = known[known["method"] == text]
    if len(named):
        return named.loc[named["settings"] == named["settings"].iloc[-1], "run_id"].tolist()
    ids = known["run_id"].tolist()
    fits = [i for i in ids if text and (i == text or i.endswith(text) or i.startswith(text))]
    if len(fits) > 1:
        raise UserError(f"{text!r} fits {len(fits)} immunizations: {', '.join(fits[:4])}. Give more of the id.")
    if not fits:
        if text in set(runs["run_id"]):
            raise UserError(f"The run {text} is no finished immunization, and a scorecard is of one.")
        raise unknown("finished immunization or defense", text, [*ids, *known["method"].unique()])
    return fits


def seeds_of(runs: pd.DataFrame, run_id: str) -> list[str]:
    """The immunizations with the same settings as this one, whatever their seed; the newest of each seed."""
    known = immunizations(runs)
    mine = known.loc[known["run_id"] == run_id, "settings"]
    same = known[known["settings"].isin(mine)].drop_duplicates("seed", keep="last")
    return same["run_id"].tolist()


def gather(store: Store, run_ids: Sequence[str]) -> Evidence:
    """All that is recorded about these immunizations, and about the undefended model they started from.

    Only finished runs count, one per attack and seed.
    """
    runs = queries.runs(store)
    mine = runs[runs["run_id"].isin(run_ids) & (runs["kind"] == "immunize")]
    if len(mine) != len(set(run_ids)):
        raise UserError("A scorecard is of immunizations; one of these runs is another kind, or is not recorded.")
    curves = _done(queries.attack_curves(store), mine)
    attacked = curves["run_id"].unique().tolist()
    parts = queries.scores(store, attacked, ["harmfulness"], splits=None) if attacked else curves.iloc[:0]
    skills = queries.scores(store, list(run_ids), ["utility"], splits=None)
    return Evidence(
        defense=", ".join(sorted(mine["method"].unique())),
        immunized=mine,
        curves=collapse.without_repeats(curves),
        domains=parts[parts["split"].str.startswith("domain:")] if len(parts) else _no_scores(),
        skills=skills[skills["split"].eq("all") | skills["split"].str.startswith("skill:")],
        learning=_done(_fine_tunes(store, runs), mine),
    )


def of(store: Store, run_ids: Sequence[str], limits: Limits | None = None) -> Scorecard:
    """The scorecard of these immunizations (one, or all seeds of one defense)."""
    return score(gather(store, run_ids), limits or Limits())


def _done(frame: pd.DataFrame, mine: pd.DataFrame) -> pd.DataFrame:
    """The finished runs on these immunizations, and on the undefended model that they started from."""
    ours = frame["immunized_by"].isin(mine["run_id"])
    control = (frame["defense"] == "undefended") & frame["base_model"].isin(mine["base_model"])
    return frame[(ours | control) & (frame["status"] == "done") & ~frame["archived"].fillna(False).astype(bool)]


def _fine_tunes(store: Store, runs: pd.DataFrame) -> pd.DataFrame:
    """One row per benign fine-tune and checkpoint, with the run's settings."""
    tunes = runs[runs["kind"] == "finetune"]
    scores = queries.scores(store, tunes["run_id"].tolist(), ["withheld", "utility"])
    wide = scores.pivot_table(index=["run_id", "step"], columns="metric", values="score").reset_index()
    for metric in ("withheld", "utility"):
        if metric not in wide:
            wide[metric] = math.nan
    settings = tunes.drop(columns=["step", "utility", "withheld"], errors="ignore")
    found = wide[["run_id", "step", "withheld", "utility"]].merge(settings, on="run_id")
    return found.dropna(subset=["withheld"])


def _no_scores() -> pd.DataFrame:
    return pd.DataFrame(columns=["run_id", "step", "split", "score", "n"])


def markdown(card: Scorecard) -> str:
    """The card as Markdown."""
    parts = [f"# Immunization card: {_cell(card.defense)}", _about(card)]
    parts.append(_md(("condition", "verdict", "runs", "what was found", "what is missing"), _verdicts(card)))
    for title, head, rows in _tables(card):
        parts += [f"## {title}", _md(head, rows)]
    parts += [
        "## Runs behind it",
        *(f"- {c.name}: {_ids(c.runs)}; control: {_ids(c.controls)}" for c in card.conditions),
    ]
    parts += ["## Limits", _md(("setting", "value"), _limits(card))]
    return "\n\n".join(parts) + "\n"


def page(card: Scorecard, figures: str = "") -> str:
    """The card as one HTML file that needs nothing from outside; `figures` is trusted HTML of charts, if any."""
    title = html.escape(f"Immunization card: {card.defense}")
    parts = [f"<h1>{title}</h1><p>{html.escape(_about(card))}</p>"]
    parts.append(_html(("condition", "verdict", "runs", "what was found", "what is missing"), _verdicts(card)))
    parts.append(figures)
    parts += [f"<h2>{html.escape(t)}</h2>{_html(head, rows)}" for t, head, rows in _tables(card)]
    behind = [(c.name, _ids(c.runs), _ids(c.controls)) for c in card.conditions]
    parts.append(f"<h2>Runs behind it</h2>{_html(('condition', 'defended', 'control'), behind)}")
    parts.append(f"<h2>Limits</h2>{_html(('setting', 'value'), _limits(card))}")
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{CSS}</style>'
    return f"{head}<body>{''.join(parts)}</body></html>"


def _about(card: Scorecard) -> str:
    seeds = ", ".join(map(str, card.seeds))
    return (
        f"Base model {card.base_model}, corpus {card.corpus}, {'seed' if len(card.seeds) == 1 else 'seeds'} {seeds}. "
        f"Tested budget: {card.budget}. A verdict covers this budget, these attacks and this data only."
    )


def _verdicts(card: Scorecard) -> list[tuple[str, ...]]:
    return [(c.name, c.verdict, str(c.n), c.finding, c.missing) for c in card.conditions]


Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]


def _tables(card: Scorecard) -> list[Table]:
    """Title, head and rows of each table that has rows."""
    tables = [_attacks(card), _skills(card), _domains(card), _learning(card)]
    return [table for table in tables if table[2]]


def _attacks(card: Scorecard) -> Table:
    head = ("attack", "learning rate", "steps", "n", "harm passes the threshold", "undefended", "rows trained on",
            "most harm (95 % up to)", "outcomes", "undefended outcomes", "vacuous")  # fmt: skip
    return "Attacks", head, [
        (
            str(r["method"]), f"{r['learning_rate']:g}", f"{r['steps']:g}", str(r["n"]),
            when(r["t_steps"], r["t_after"]), when(r["t_control"], r["t_control_after"]), amount(r["t_compute"]),
            f"{r['harm']:.1%} ({r['upper']:.1%})", str(r["outcomes"]), r["control_outcomes"] or "none recorded",
            {True: "yes", False: "no"}.get(r["vacuous"], "no control"),
        )
        for r in card.attacks.to_dict("records")
    ]  # fmt: skip


def _skills(card: Scorecard) -> Table:
    rows = []
    for r in card.skills.to_dict("records"):
        span = f"{100 * r['low']:+.1f} to {100 * r['high']:+.1f}"
        rows.append((str(r["skill"]), f"{100 * r['change']:+.1f}", span, str(r["n"])))
    return "Capability before any attack", ("skill", "change in points", "95 %", "n"), rows


def _domains(card: Scorecard) -> Table:
    rows = [
        (str(r["domain"]), when(r["t_steps"], r["t_after"]), when(r["t_control"], r["t_control_after"]),
         str(r["worst"]), str(r["n"]))
        for r in card.domains.to_dict("records")
    ]  # fmt: skip
    return "Hazard domains", ("domain", "harm passes the threshold", "undefended", "worst outcome", "n"), rows


def _learning(card: Scorecard) -> Table:
    rows = [
        (str(r["defense"]), f"{r['learning_rate']:g}", f"{r['harmful_share']:.1%}",
         when(r["steps_to_learn"], r["before"]), f"{r['best']:.0%}", f"{r['utility']:.0%}", str(r["n"]))
        for r in card.learning.to_dict("records")
    ]  # fmt: skip
    head = ("model", "learning rate", "stray rows", "learned", "best accuracy", "utility after", "n")
    return "Learning the withheld skill", head, rows


def _limits(card: Scorecard) -> list[tuple[str, str]]:
    limits = card.limits
    return [
        ("φ: harmfulness that counts as broken", f"above {limits.thresholds.harm:.0%}"),
        ("γ: utility that counts as kept", limits.thresholds.rule),
        ("added cost of an attack", f"at least {limits.cost:g} times the undefended model's steps"),
        (
            "δ_g, δ_max: capability that may be lost",
            f"{limits.capability:.1%} on average, {limits.skill:.1%} on a skill",
        ),
        ("share of the weak score that each domain keeps", f"{limits.domain:.0%}"),
        ("learned", f"{limits.learned:.0%} of the undefended model's gain"),
        ("ε_t, δ_h: later, and worse", f"{limits.slack:.0%} more steps, {limits.gap:.1%} of accuracy"),
    ]


def _ids(runs: Sequence[str]) -> str:
    return ", ".join(runs) if runs else "none"


def _cell(text: Any) -> str:
    return html.escape(str(text), quote=False).replace("|", "\\|").replace("\n", " ")


def _md(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(c) for c in line) + " |" for line in lines)


def _html(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(c))}</{tag}>" for c in cells) + "</tr>"

    return f"<table><thead>{line(head, 'th')}</thead><tbody>{''.join(line(r, 'td') for r in rows)}</tbody></table>"
