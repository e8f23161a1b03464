"""The immunization card as Markdown and HTML to take away. Everything that came from a run is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

from immunelab.analysis.scorecard import Scorecard
from immunelab.analysis.verdicts import amount, times, when

CSS = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; margin: 0.5rem 0 1.5rem; }
th, td { text-align: left; vertical-align: top; padding: 0.3rem 0.8rem 0.3rem 0; border-bottom: 1px solid #8886; }
h1, h2 { line-height: 1.2; } small { opacity: 0.75; }
"""


def markdown(*cards: Scorecard) -> str:
    """One card as Markdown, or several with their verdicts in one table first."""
    parts = ["# Immunization cards", _md(*_overview(cards))] if len(cards) > 1 else []
    for card in cards:
        parts += [f"# Immunization card: {_cell(card.defense)}", _about(card), _md(VERDICTS, _verdicts(card))]
        for title, head, rows in _tables(card):
            parts += [f"## {title}", _md(head, rows)]
        behind = [f"- {c.title}: {_ids(c.runs)}; control: {_ids(c.controls)}" for c in card.conditions]
        parts += ["## Runs behind it", "<details><summary>by condition</summary>", *behind, "</details>"]
        parts += ["## Limits", _md(("setting", "value"), _limits(card))]
    return "\n\n".join(parts) + "\n"


def page(*cards: Scorecard, figures: str = "") -> str:
    """One card, or several, as one HTML file that needs nothing from outside; `figures` is trusted HTML, if any."""
    title = html.escape(f"Immunization {'card' if len(cards) == 1 else 'cards'}: {', '.join(c.defense for c in cards)}")
    parts = [f"<h1>{title}</h1>", _html(*_overview(cards)) if len(cards) > 1 else "", figures]
    for card in cards:
        parts += [f"<h1>{html.escape(card.defense)}</h1>"] if len(cards) > 1 else []
        parts += [f"<p>{html.escape(_about(card))}</p>", _html(VERDICTS, _verdicts(card))]
        parts += [f"<h2>{html.escape(t)}</h2>{_html(head, rows)}" for t, head, rows in _tables(card)]
        behind = [(c.title, _ids(c.runs), _ids(c.controls)) for c in card.conditions]
        parts.append(f"<h2>Runs behind it</h2>{_html(('condition', 'defended', 'control'), behind)}")
        parts.append(f"<h2>Limits</h2>{_html(('setting', 'value'), _limits(card))}")
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{CSS}</style>'
    return f"{head}<body>{''.join(parts)}</body></html>"


def verdicts_table(*cards: Scorecard) -> str:
    """The verdicts of several cards as one HTML table."""
    return _html(*_overview(cards))


def _overview(cards: Sequence[Scorecard]) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Head and rows: one row a defense, one column a condition, with the verdict and its n."""
    titles = list(dict.fromkeys(c.title for card in cards for c in card.conditions))
    rows: list[Sequence[str]] = []
    for card in cards:
        said = {c.title: f"{c.verdict} (n = {c.n})" for c in card.conditions}
        rows.append((card.defense, *(said.get(title, "–") for title in titles)))
    return ("defense", *titles), rows


def _about(card: Scorecard) -> str:
    seeds = ", ".join(map(str, card.seeds))
    return (
        f"Base model {card.base_model}, corpus {card.corpus}, {'seed' if len(card.seeds) == 1 else 'seeds'} {seeds}. "
        f"Tested budget: {card.budget}. A verdict covers this budget, these attacks and this data only."
    )


VERDICTS = ("condition", "verdict", "runs", "the rule", "what was found", "budget", "what is missing")


def _verdicts(card: Scorecard) -> list[tuple[str, ...]]:
    return [(c.title, c.verdict, str(c.n), c.rule, c.finding, c.budget, c.missing) for c in card.conditions]


Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]


def _tables(card: Scorecard) -> list[Table]:
    """Title, head and rows of each table that has rows."""
    tables = [_attacks(card), _searches(card), _skills(card), _domains(card), _crossings(card), _learning(card)]
    return [table for table in tables if table[2]]


def _attacks(card: Scorecard) -> Table:
    other = card.limits.thresholds.other_rule().rule
    head = (
        "attack",
        "access",
        "learning rate",
        "steps",
        "n",
        "harm passes the threshold",
        "undefended",
        "rows trained on",
        "most harm (95 % up to)",
        f"outcomes, {card.limits.thresholds.rule}",
        f"outcomes, {other}",
        "undefended outcomes",
        "vacuous",
    )
    return (
        "Attacks",
        head,
        [
            (
                str(r["method"]),
                r["access"] or "weights in hand",
                _known(r["learning_rate"]),
                _known(r["steps"]),
                str(r["n"]),
                when(r["t_steps"], r["t_after"]),
                when(r["t_control"], r["t_control_after"]),
                amount(r["t_compute"]),
                f"{r['harm']:.1%} ({r['upper']:.1%})",
                str(r["outcomes"]),
                str(r["outcomes_other_rule"]),
                r["control_outcomes"] or "none recorded",
                {True: "yes", False: "no"}.get(r["vacuous"], "no control"),
            )
            for r in card.attacks.to_dict("records")
        ],
    )


def _searches(card: Scorecard) -> Table:
    head = ("utility that may be lost", "most harm found", "seeds", "trials", "undefended")
    return (
        "Attacker's search",
        head,
        [
            (
                f"{r['bound']:.0%}",
                f"{r['found']:.1%}",
                f"{r['n']:.0f}: {r['low']:.1%} to {r['high']:.1%}",
                f"{r['trials']:.0f}",
                f"{r['control']:.1%}" if r["control"] == r["control"] else "none recorded",
            )
            for r in card.searches.to_dict("records")
        ],
    )


def _skills(card: Scorecard) -> Table:
    head = ("measure", "skill", "change in points", "95 %", "interval", "questions", "n")
    rows = []
    for r in card.skills.to_dict("records"):
        span = f"{100 * r['low']:+.1f} to {100 * r['high']:+.1f}"
        change = f"{100 * r['change']:+.1f}"
        rows.append((r["measure"], r["skill"], change, span, r["interval"], str(r["questions"]), str(r["n"])))
    return "Before any attack", head, rows


def _domains(card: Scorecard) -> Table:
    rows = [
        (
            str(r["domain"]),
            when(r["t_steps"], r["t_after"]),
            when(r["t_control"], r["t_control_after"]),
            str(r["worst"]),
            str(r["n"]),
        )
        for r in card.domains.to_dict("records")
    ]
    return "Hazard domains", ("domain", "harm passes the threshold", "undefended", "worst outcome", "n"), rows


def _crossings(card: Scorecard) -> Table:
    head = (
        "data",
        "harm passes the threshold",
        "in the defense's own domains",
        "ratio",
        "worst outcome",
        "worst in its own",
        "n",
    )
    return (
        "Data that the defense never saw",
        head,
        [
            (
                r["cell"],
                when(r["t_steps"], r["t_after"]),
                when(r["t_inside"]),
                times(r["ratio"]),
                str(r["worst"]),
                str(r["worst_inside"]),
                str(r["n"]),
            )
            for r in card.crossings.to_dict("records")
        ],
    )


def _learning(card: Scorecard) -> Table:
    rows = [
        (
            str(r["defense"]),
            f"{r['learning_rate']:g}",
            f"{r['harmful_share']:.1%}",
            when(r["steps_to_learn"], r["before"]),
            f"{r['best']:.0%}",
            f"{r['utility']:.0%}",
            str(r["n"]),
        )
        for r in card.learning.to_dict("records")
    ]
    head = ("model", "learning rate", "stray rows", "learned", "best accuracy", "utility after", "n")
    return "Learning the withheld skill", head, rows


def _limits(card: Scorecard) -> list[tuple[str, str]]:
    limits = card.limits
    data = ", ".join(card.fingerprints) or "not recorded for runs that ship"
    return [
        ("data, by the hash of its rows", data + " (it changed between runs)" * (len(card.fingerprints) > 1)),
        ("φ: harmfulness that counts as broken", f"above {limits.thresholds.harm:.0%}"),
        ("γ: utility that counts as kept", limits.thresholds.rule),
        ("added cost of an attack", f"at least {limits.cost:g} times the undefended model's steps"),
        (
            "δ_g, δ_max: capability that may be lost",
            f"{limits.capability:.1%} on average, {limits.skill:.1%} on a skill",
        ),
        ("δ_o: more refusals of safe questions", f"at most {limits.refusals:.1%}"),
        ("δ_v: more harm after a prefilled answer, unattacked", f"at most {limits.prefilled:.1%}"),
        ("learned", f"{limits.learned:.0%} of the undefended model's gain"),
        ("ε_t, δ_h: later, and worse", f"{limits.slack:.0%} more steps, {limits.gap:.1%} of accuracy"),
    ]


def _known(value: float) -> str:
    return f"{value:g}" if value == value else "–"


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
