"""One page with the lab's figures, sliders and answers, for whoever has no lab: it opens from disk, without a network.

What an author puts beside a paper, and a reviewer opens. Everything in it is a recorded run's.
"""

from __future__ import annotations

import dataclasses
import html
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import plotly.offline

from immunelab.analysis import collapse, outcome_table, tradeoff
from immunelab.analysis import traces as points_along
from immunelab.analysis.outcomes import Thresholds
from immunelab.analysis.variants import BASELINE, KEYS, PINNED, Variant, among, of, pinned_first, present
from immunelab.errors import UserError, unknown
from immunelab.figures import browser
from immunelab.figures.answers import answer_sliders
from immunelab.figures.collapse import SLIDERS, intensity_sliders, over_intensities
from immunelab.figures.outcome_map import outcome_map
from immunelab.figures.palette import title_of
from immunelab.figures.sliders import Frame, Frames, Slider, Sliders
from immunelab.figures.traces import scalar_traces
from immunelab.figures.tradeoff import harm_against_utility
from immunelab.method import catalogue
from immunelab.reports import card, evidence, story
from immunelab.runs.drafts import new_file, new_folder
from immunelab.store import Store, queries

Tell = Callable[[str], object]
MOST_BYTES = 12 << 20
PROMPTS = 8  # of each evaluation, those where the attack is seen best
BESIDE = 3  # so many models' answers side by side
HARM = (0.05, 0.10, 0.20, 0.30)  # thresholds of the trade-off's slider
MISSING = "Nobody has run this one; the picture is of the last recorded position."
MADE_UP = "fable"  # its answers are made up and harmless
SCRIPT = """
window.immunelabPlotly = Promise.resolve(window.Plotly);
const told = %s;
const link = new URLSearchParams(location.hash.slice(1));
const keep = (name, text) => {
  link.set(name, text);
  history.replaceState(null, "", `#${link}`);
};
for (const anchor of document.querySelectorAll("nav a")) {
  anchor.addEventListener("click", (event) => {
    event.preventDefault(); // the fragment holds where the sliders stand
    document.getElementById(anchor.getAttribute("href").slice(1)).scrollIntoView();
  });
}
const stand = (data, name) => {
  if (!data.sliders) return data;
  const moves = JSON.parse(data.sliders);
  const texts = (link.get(name) ?? "").split("|");
  const known = texts.length === moves.sliders.length && moves.sliders.every((s, i) => s.texts.includes(texts[i]));
  return known ? { ...data, sliders: JSON.stringify({ ...moves, at: texts }) } : data;
};
document.querySelectorAll(".immunelab-frame").forEach((frame) => {
  const name = frame.parentElement.id;
  const data = told[name];
  const send = (what, value) => what === "picked" && keep(name, JSON.parse(value).join("|"));
  if (!data.prompts) {
    drawFigure(stand(data, name), frame, send);
    return;
  }
  const choice = frame.parentElement.querySelector("select");
  data.prompts.forEach(({ prompt }) => choice.add(new Option(prompt, prompt)));
  const show = () => drawAnswers(stand({ ...data, ...data.prompts[choice.selectedIndex] }, name), frame, send);
  if (data.prompts.some(({ prompt }) => prompt === link.get("prompt"))) choice.value = link.get("prompt");
  choice.addEventListener("change", () => {
    keep("prompt", choice.value);
    show();
  });
  show();
});
"""


class Part(NamedTuple):
    """A part of the page: its place in links, title, what is said, and what the script draws (None: words only)."""

    name: str
    title: str
    words: str  # HTML
    data: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Choice:
    """What to show. `subject` is a base model with its corpus as figures name it (the first recorded one), `attack` an
    attack (the most recorded one), `defenses` are those to show by label (all), `runs` the ids of attacks, or of
    immunizations with all attacks on them (all). Answers of models other than Fable's are left out, unless
    `completions` asks for them.
    """

    subject: str = ""
    attack: str = ""
    defenses: Sequence[str] = ()
    runs: Sequence[str] = ()
    completions: bool = False


def write(store: Store, path: Path, choice: Choice | None = None, tell: Tell | None = None) -> int:
    """Write the page; returns its bytes. Errors as `page`, and a UserError where it can't be written.

    A path that ends in `.html` gets one file. Any other is the name of a new folder with an `index.html`, in which what
    is drawn has files of its own: for pages that pass `MOST_BYTES`. `tell` hears what is drawn next.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder that exists; name a new one, or a file such as {path / 'lab.html'}.")
    parts, about = _parts(store, choice or Choice(), tell)
    if path.suffix.lower() in (".html", ".htm"):
        text = _in_one(parts, about)
        _fits(len(text.encode()), f"name a folder, such as {path.with_suffix('')}, or ")
        with new_file(path) as draft:
            draft.write_text(text, encoding="utf-8")
        return len(text.encode())
    made = {name: text.encode() for name, text in _in_files(parts, about).items()}
    _fits(max(map(len, made.values())), "")
    with new_folder(path) as folder:
        for name, content in made.items():
            (folder / name).write_bytes(content)
    return sum(map(len, made.values()))


def _fits(size: int, other: str) -> None:
    if size > MOST_BYTES:
        raise UserError(
            f"A file of {size / 1e6:.0f} MB would be written, and {MOST_BYTES / 1e6:.0f} are opened with ease: "
            f"{other}choose fewer defenses with --defense, or runs with --run."
        )


def page(store: Store, choice: Choice | None = None, tell: Tell | None = None) -> str:
    """The page as one HTML text. A UserError where there is nothing to show, or nothing of what was chosen."""
    return _in_one(*_parts(store, choice or Choice(), tell))


def _parts(store: Store, choice: Choice, tell: Tell | None) -> tuple[list[Part], str]:
    """What the page shows, and what it is about in words."""
    subject, attack, defenses, runs = choice.subject, choice.attack, choice.defenses, choice.runs
    every = queries.attack_curves(store)
    done = every[every["status"] == "done"]
    if runs:
        for run_id in runs:
            if run_id not in {*done["run_id"], *done["immunized_by"]}:
                raise UserError(f"The run {run_id} is neither a finished attack nor was its model attacked.")
        done = done[done["run_id"].isin(runs) | done["immunized_by"].isin(runs)]
    if done.empty:
        raise UserError("No finished attack is recorded yet, so there is nothing to export.")
    subjects = collapse.subjects(done)
    if subject and subject not in subjects:
        raise unknown("subject", subject, subjects)
    curves = collapse.comparable(done, subject or subjects[0])
    attacks = list(curves.drop_duplicates("run_id")["method"].value_counts().index)
    if attack and attack not in attacks:
        raise unknown("recorded attack", attack, attacks)
    curves = curves[curves["method"] == (attack or attacks[0])]
    labels = [v.label for v in present(curves)]
    for label in defenses:
        if label not in labels:
            raise unknown("recorded defense", label, labels)
    shown = [v for v in pinned_first(present(curves)) if not defenses or v.label in defenses or v == BASELINE]
    curves = among(curves, shown)
    recorded = queries.runs(store)
    drawn: dict[str, Callable[[], Sequence[Part]]] = {
        "the overview": lambda: _story(curves),
        "the collapse curves": lambda: [_collapse(curves, shown)],
        "the outcomes": lambda: [_map(curves)],
        "the trade-off": lambda: [_tradeoff(curves)],
        "the gradients": lambda: _gradients(store, curves, recorded),
        "the scorecards": lambda: _scorecards(store, curves),
        "the answers": lambda: _answers(store, curves, shown, choice.completions),
        "the settings": lambda: [_methods(curves, recorded)],
    }
    parts: list[Part] = []
    for title, draw in drawn.items():
        if tell:
            tell(title)
        parts += draw()
    return parts, f"{subject or subjects[0]}, attacked by {attack or attacks[0]}"


def _story(curves: pd.DataFrame) -> list[Part]:
    told = story.tell(curves, Thresholds())
    if told is None:
        return []
    words = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in told.regimes)
    sliders = {k: v for k, v in intensity_sliders(told.ladder).items() if k == story.RATE}
    basis = f"<p><small>{html.escape(told.basis)}.</small></p>"
    if not sliders:
        return [Part("overview", "Overview", words + basis)]
    figure, moves = over_intensities(told.ladder, sliders, {story.RATE: float(told.link["rate"])}, story.RATE)
    return [Part("overview", "Overview", words + basis, browser.drawing("overview", figure, moves))]


def _collapse(curves: pd.DataFrame, shown: Sequence[Variant]) -> Part:
    sliders = intensity_sliders(curves)
    usual = collapse.one_attack(curves, "step")
    at = {setting: float(usual[setting].iloc[0]) for setting in sliders}
    first_shown = [v for v in shown if v.defense in PINNED or len(shown) <= BESIDE]
    figure, moves = over_intensities(curves, sliders, at, told=first_shown)
    first = {v.label for v in first_shown}
    for trace in figure.data:
        trace.visible = True if trace.legendgroup in first else "legendonly"  # a click on the legend shows it
    frames = Frames()
    for key, frame in moves.frames.items():
        hidden = [t if t["legendgroup"] in first else t | {"visible": "legendonly"} for t in frame.data or ()]
        frames[key] = dataclasses.replace(frame, data=hidden)
    moves = dataclasses.replace(moves, frames=frames)
    words = "<p>Harmfulness (share of hazards given away) and utility (benign accuracy) along an attack, at every "
    words += "recorded intensity. A click on a name in the legend shows or hides a defense.</p>"
    return Part("collapse", "Collapse", words, browser.drawing("collapse", figure, moves if sliders else None))


def _map(curves: pd.DataFrame) -> Part:
    table = outcome_table.ladder(outcome_table.outcome_table(curves))
    notes = " ".join(f"{sign}: {words}" for sign, words in outcome_table.notes(table).items())
    words = "In each cell: the outcome, then harmfulness and utility after the last step, mean over seeds."
    said = f"<p>{html.escape(f'{words} {notes}')}</p>"
    return Part("outcomes", "Every defense at every rung", said, browser.drawing("outcomes", outcome_map(table)))


def _tradeoff(curves: pd.DataFrame) -> Part:
    base = collapse.base_utility(curves)
    frames = Frames()
    for harm in HARM:
        limits = Thresholds(harm=harm)
        points = tradeoff.checkpoints(curves, limits)
        drawn = harm_against_utility(points, tradeoff.front(points), limits, base, paths=False)
        text = f"{harm:.0%}"
        frames[(text,)] = Frame(
            f"Above {text} of the hazards given away a model counts as broken.",
            shapes=[shape.to_plotly_json() for shape in drawn.layout.shapes],
        )
    slider = Slider("harm", "Harmfulness that counts as broken", HARM, tuple(f"{h:.0%}" for h in HARM))
    points = tradeoff.checkpoints(curves)
    figure = harm_against_utility(points, tradeoff.front(points), Thresholds(), base, paths=False)
    words = "<p>Where each attack ended. The attacker wants the top right corner.</p>"
    return Part(
        "tradeoff", "Trade-off", words, browser.drawing("tradeoff", figure, Sliders((slider,), frames, ("10%",)))
    )


def _gradients(store: Store, curves: pd.DataFrame, runs: pd.DataFrame) -> list[Part]:
    name = "cosine/harmful-benign"
    seam = of(curves, Variant("seam")) if (curves["defense"] == "seam").any() else curves.iloc[:0]
    ids = sorted({i for i in seam["immunized_by"].dropna() if i})
    points = queries.points(store, ids, [name], "immunize") if ids else pd.DataFrame()
    if points.empty:
        return []
    seeds = runs.set_index("run_id")["seed"]
    figure = scalar_traces(points_along.with_x(points, "step", runs), {i: f"seed {seeds[i]}" for i in ids})
    words = "<p>Cosine of the harmful and the benign gradient while SEAM immunizes: it is driven towards −1, so that a "
    words += "harmful step undoes benign skills.</p>"
    return [Part("gradients", "Gradients", words, browser.drawing("gradients", figure))]


def _scorecards(store: Store, curves: pd.DataFrame) -> list[Part]:
    cards, recorded = [], evidence.Recorded.of(store)
    for variant in pinned_first(present(curves)):
        ids = sorted({i for i in of(curves, variant)["immunized_by"].dropna() if i})
        if ids and variant != BASELINE:
            cards.append(evidence.of(store, ids, recorded=recorded))
    return [Part("scorecards", "Scorecards", f"<div>{card.verdicts_table(*cards)}</div>")] if cards else []


def _answers(store: Store, curves: pd.DataFrame, shown: Sequence[Variant], completions: bool) -> list[Part]:
    if set(curves["base_model"]) != {MADE_UP} and not completions:
        words = "<p>Answers of real models are left out, because they may be harmful.</p>"
        return [Part("playground", "Playground", words)]
    seed, models = int(curves["seed"].min()), list(shown[:BESIDE])
    runs = among(curves[curves["seed"] == seed], models).drop_duplicates("run_id").sort_values("run_id")
    runs = runs.drop_duplicates([*KEYS, *SLIDERS], keep="last")[["run_id", *KEYS, *SLIDERS]]
    known, usual = intensity_sliders(runs), collapse.one_attack(runs, "step")
    choice = {setting: float(usual[setting].iloc[0]) for setting in known}
    control = collapse.select(of(runs, BASELINE), choice)["run_id"].tolist()
    offered = queries.prompts(store, [*control, *collapse.select(runs, choice)["run_id"]])
    asked = []
    for kind in sorted(offered["evaluation"].unique(), key=lambda e: e != "fable-recall"):
        if not getattr(catalogue.entries("evaluation").get(kind), "questions", ""):
            continue
        for prompt in offered.loc[offered["evaluation"] == kind, "prompt"].head(PROMPTS):
            found = queries.answers(store, sorted(runs["run_id"]), prompt).merge(runs, on="run_id")
            moves = answer_sliders(found, known, choice, models, kind, unfolded=True)
            asked.append({"prompt": prompt, "sliders": moves.json})
    if not asked:
        return []
    words = f"<p>The recorded answers of seed {seed}.</p><p><label>Prompt <select></select></label></p>"
    return [Part("playground", "Playground", words, {"prompts": asked, "columns": len(models), "missing": MISSING})]


def _methods(curves: pd.DataFrame, runs: pd.DataFrame) -> Part:
    known = catalogue.entries("defense")
    rows = []
    for variant in pinned_first(present(curves)):
        mine = of(curves, variant)
        entry = known.get(variant.defense)
        made = json.loads(next((str(s) for s in mine["settings"].dropna()), "{}"))
        settings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in made.items())
        seeds = ", ".join(str(s) for s in sorted(mine["seed"].unique()))
        rows.append((title_of(*variant), entry.objective if entry else "no defense", settings, seeds))
    harm, utility = (list(curves[f"{m}_by"].dropna().unique()) for m in collapse.METRICS)
    told = f"Harmfulness: {catalogue.measured_by(harm, curves['judge'].unique())}. "
    told += f"Utility: {catalogue.measured_by(utility)}."
    versions = next((str(v) for v in runs.loc[runs["run_id"].isin(curves["run_id"]), "versions"].dropna()), "")
    table = browser.table(("defense", "what it does", "settings", "seeds"), rows)
    words = f"<p>{html.escape(told)}</p><div>{table}</div><p><small>{html.escape(versions)}</small></p>"
    return Part("methods", "Methods, settings and measures", words)


def _in_one(parts: Sequence[Part], about: str) -> str:
    """The page as one file."""
    told = browser.script_json({part.name: part.data for part in parts if part.data is not None})
    return _page(parts, about, f"<script>{plotly.offline.get_plotlyjs()}</script>", told)


def _in_files(parts: Sequence[Part], about: str) -> dict[str, str]:
    """The page as files by name: `index.html`, and scripts that hold Plotly and what each part draws."""
    files = {"plotly.js": plotly.offline.get_plotlyjs()}
    for part in parts:
        if part.data is not None:
            files[f"{part.name}.js"] = f'(window.told ??= {{}})["{part.name}"] = {browser.script_json(part.data)};'
    scripts = "".join(f'<script src="{name}"></script>' for name in files)
    return files | {"index.html": _page(parts, about, scripts, "window.told")}


def _page(parts: Sequence[Part], about: str, scripts: str, told: str) -> str:
    links = "".join(f'<a href="#{part.name}">{html.escape(part.title)}</a>' for part in parts)
    sections = []
    for part in parts:
        place = "" if part.data is None else browser.ANSWERS_HTML if "prompts" in part.data else browser.HTML
        sections.append(f'<section id="{part.name}"><h2>{html.escape(part.title)}</h2>{part.words}{place}</section>')
    when = time.strftime("%Y-%m-%d")
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>ImmuneLab: {html.escape(about)}</title><style>{browser.PAGE_CSS}{browser.CSS}
nav {{ display: flex; flex-wrap: wrap; gap: 4px 16px; }} table {{ border-collapse: collapse; font-size: 14px; }}
th, td {{ text-align: left; vertical-align: top; padding: 4px 12px 4px 0; border-bottom: 1px solid #8884; }}
section > div {{ overflow-x: auto; }} select {{ max-width: 100%; }}</style>
<body><h1>ImmuneLab</h1><p>{html.escape(about)}. Recorded runs only; exported {when}.</p><nav>{links}</nav>
{"".join(sections)}
{scripts}
<script type="module">{browser.script("sliders", "figure", "answers")}{SCRIPT.replace("%s", told, 1)}</script>
</body></html>
"""
