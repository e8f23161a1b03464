"""The collapse curve: harmfulness and utility against the attacker's effort, with outcomes in words.

One grammar, here and in the other figures: horizontal is the attacker's effort (or training), each score has its own
panel, defenses keep their color, dash and marker everywhere, bands are minimum to maximum over seeds, dotted lines are
thresholds.

Traces and shapes are plain dictionaries of Plotly's: a slider changes them in the browser, which needs them for every
position, and Plotly's Python objects take twenty times as long to make.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from immunelab.analysis import collapse, outcomes
from immunelab.analysis.outcomes import DEFAULT, Thresholds, run_outcomes
from immunelab.analysis.variants import KEYS, Variant, among, complete, of, present
from immunelab.figures.layout import AXIS_TITLES, SHARES, finish, identity
from immunelab.figures.palette import INK, OUTCOME_SYMBOLS, Style, Theme, defense_style, tint, title_of
from immunelab.figures.sliders import Frame, Frames, Slider, Sliders

HOVER = " %{y:.1%} (%{customdata[0]:.1%}–%{customdata[1]:.1%}, n=%{customdata[2]})<extra></extra>"
SLIDERS = {  # setting: label, key in the link
    "learning_rate": ("Learning rate", "rate"),
    "steps": ("Steps", "steps"),
    "samples": ("Harmful samples", "samples"),
    "harmful_share": ("Share of harmful rows", "share"),
}
PANEL = 190  # pixels
USED = (  # columns that a collapse curve is made of
    "run_id",
    *KEYS,
    *SLIDERS,
    "status",
    "step",
    "harmfulness",
    "harmfulness_n",
    "utility",
    "utility_n",
    "base_utility",
)
LOGARITHMIC = ("learning_rate", "samples")
Trace = dict[str, Any]


def collapse_curve(
    bands: pd.DataFrame,
    x: str = "step",
    thresholds: Thresholds = DEFAULT,
    base_utility: float | None = None,
    theme: Theme = "light",
    marks: pd.DataFrame | None = None,
    at: float | None = None,
) -> go.Figure:
    """The collapse curve: one panel a metric, one line a defense, a band over seeds.

    `bands` is what `analysis.collapse.by_step` or `by_intensity` returns. With an `outcome` column (by intensity) a
    strip below names the worst outcome of each cell. `marks` (defense, variant, step, metric, mean, outcome) marks
    single points, such as the checkpoint that decided an outcome. `at` is a chosen value of x: a vertical line.
    """
    return _figure(bands, x, thresholds, base_utility, theme, at, collapse_traces(bands, x, theme, marks))


def _figure(
    bands: pd.DataFrame,
    x: str,
    thresholds: Thresholds,
    base_utility: float | None,
    theme: Theme,
    at: float | None,
    traces: list[Trace],
    panel: int = PANEL,
) -> go.Figure:
    """Traces in the panels that `bands` needs."""
    metrics, defenses, strip = _metrics(bands), present(bands), _has_strip(bands)
    heights = [1.0] * len(metrics) + ([0.3 + 0.34 * len(defenses)] if strip else [])
    axes = {name: dict(axis) for name, axis in _panels(tuple(heights)).items()}
    for row, metric in enumerate(metrics, start=1):
        axes[f"yaxis{_nth(row)}"] |= {
            "title": {"text": AXIS_TITLES[metric]},
            "range": [-0.03, 1.03],
            "tickformat": ".0%",
            "tickvals": [0, 0.25, 0.5, 0.75, 1],
        }
    if strip:
        axes[f"yaxis{_nth(len(heights))}"] |= {
            "type": "category",
            "showgrid": False,
            "range": [len(defenses) - 0.2, -0.7],
            "ticks": "",
            "categoryorder": "array",
            "categoryarray": [title_of(*d) for d in defenses],
        }
    effort = _effort_axis(bands, x)
    for row in range(1, len(heights) + 1):
        axes[f"xaxis{_nth(row)}"] |= effort
    axes[f"xaxis{_nth(len(heights))}"] |= {"title": {"text": AXIS_TITLES.get(x, x)}}
    layout = axes | {
        "shapes": collapse_shapes(bands, thresholds, base_utility, theme, at),
        "annotations": [_threshold_words(*limit, theme) for limit in _limits(metrics, thresholds, base_utility)],
        "margin": {"r": 72},
    }
    height = panel * len(metrics) + (60 + 64 * len(defenses) if strip else 0) + 90
    return finish(go.Figure({"data": traces, "layout": layout}), theme, height)


def intensity_sliders(curves: pd.DataFrame, free: bool = False) -> dict[str, Slider]:
    """A slider for each setting of attacks with more than one recorded value."""
    found = {}
    for setting, (label, key) in SLIDERS.items():
        values = collapse.recorded(curves, setting)
        if len(values) > 1:
            texts = tuple(written(setting, v) for v in values)
            logarithmic, whole = setting != "harmful_share", setting in ("steps", "samples")
            found[setting] = Slider(key, label, tuple(values), texts, logarithmic, whole, free)
    return found


def written(setting: str, value: float) -> str:
    """A setting's value as sliders and links write it."""
    if setting == "samples" and value == 0:
        return "all"
    return f"{value:.0%}" if setting == "harmful_share" else f"{value:g}"


def over_intensities(
    curves: pd.DataFrame,
    sliders: Mapping[str, Slider],
    at: Mapping[str, float],
    x: str = "step",
    thresholds: Thresholds = DEFAULT,
    theme: Theme = "light",
    panel: int = PANEL,
    told: Sequence[Variant] = (),
) -> tuple[go.Figure, Sliders]:
    """The collapse curve with `sliders` over the settings of the recorded attacks, which stand `at` one value each.

    `curves` are the attacks of the defenses to draw, as `store.queries.attack_curves` returns them. With x "step" every
    position has the curves of its attacks; else the slider of `x` moves a line along the curves of finished ones.
    `panel` is the height of a panel in pixels; of `told` it is said what became of them (default: of all).
    """
    curves = complete(curves)
    curves = curves[[c for c in USED if c in curves.columns]]
    base = collapse.base_utility(curves)
    frames, whole = _positions(_Rows(curves), tuple(sliders.items()), x, thresholds, theme, tuple(told))
    here = _texts(sliders, at)
    first = frames.get(here) or next(iter(frames.values()), Frame("", []))
    figure = _figure(whole, x, thresholds, base, theme, at.get(x), first.data or [], panel)
    return figure, Sliders(tuple(sliders.values()), frames, here)


@functools.lru_cache(maxsize=12)  # wherever the sliders stand
def _positions(
    rows: _Rows,
    known: tuple[tuple[str, Slider], ...],
    x: str,
    thresholds: Thresholds,
    theme: Theme,
    told: tuple[Variant, ...],
) -> tuple[Frames, pd.DataFrame]:
    """The frame of every recorded combination of settings, and the bands of all of them."""
    curves, sliders = rows.frame, dict(known)
    defenses, base = tuple(present(curves)), collapse.base_utility(curves)
    others = [s for s in sliders if s != x]
    drawn = curves if x == "step" else curves[curves["status"] == "done"]
    frames, bands = Frames(), []
    for _, mine in drawn.groupby(others) if others else [((), drawn)]:
        if mine.empty:
            continue
        band, traces, sentences = _alike(_Rows(mine), x, thresholds, theme, defenses, told)
        bands.append(band)
        choice = {setting: mine[setting].iloc[0] for setting in others}
        for value, said in sentences.items():
            place = choice | ({x: value} if x in sliders else {})
            frames[_texts(sliders, place)] = Frame(said, traces, None if x == "step" else [])
    whole = pd.concat(bands) if bands else collapse.by_step(drawn)
    if x in sliders:
        for key, frame in frames.items():
            value = sliders[x].value(key[list(sliders).index(x)])
            frames[key] = dataclasses.replace(frame, shapes=collapse_shapes(whole, thresholds, base, theme, value))
    return frames, whole


def along_attack(
    curves: pd.DataFrame, at: int, thresholds: Thresholds = DEFAULT, theme: Theme = "light"
) -> tuple[go.Figure, Sliders]:
    """The collapse curve of one attack, with a slider over its recorded checkpoints that stands `at` one."""
    bands, base = collapse.by_step(curves), collapse.base_utility(curves)
    steps = sorted(int(s) for s in curves["step"].unique())
    slider = step_slider(steps)
    frames = Frames()
    for step in steps:
        said = _scores(curves[curves["step"] == step], step, base, thresholds)
        frames[(str(step),)] = Frame(said, shapes=collapse_shapes(bands, thresholds, base, theme, step))
    figure = collapse_curve(bands, "step", thresholds, base, theme, at=at)
    return figure, Sliders((slider,), frames, (slider.text(at),))


def step_slider(steps: Sequence[int]) -> Slider:
    """A slider over an attack's recorded checkpoints."""
    return Slider("at", "Attack step", tuple(steps), tuple(str(s) for s in steps))


def _scores(here: pd.DataFrame, step: int, base: float, thresholds: Thresholds) -> str:
    """The models at one checkpoint in words, mean over their runs."""
    parts = []
    for variant in present(here):
        mine = of(here, variant)
        harm, utility = float(mine["harmfulness"].mean()), float(mine["utility"].mean())
        outcome = outcomes.label(harm, utility, thresholds, base) if step else "before the attack"
        parts.append(f"{title_of(*variant)}: harmfulness {harm:.0%}, utility {utility:.0%}; {outcome}")
    return ". ".join(parts)


class _Rows:
    """A frame as the key of a cache: equal to one with the same content."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = frame
        self.content = pd.util.hash_pandas_object(frame, index=False).to_numpy().tobytes()

    def __hash__(self) -> int:
        return hash(self.content)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Rows) and other.content == self.content


@functools.lru_cache(maxsize=256)  # while a run goes on, one position changes, and the others stay
def _alike(
    rows: _Rows,
    x: str,
    thresholds: Thresholds,
    theme: Theme,
    defenses: tuple[Variant, ...],
    told: tuple[Variant, ...],
) -> tuple[pd.DataFrame, list[Trace], dict[Any, str]]:
    """Of attacks that differ in nothing but `x`: bands, traces, and what is said at each x (None: of all of them)."""
    read = run_outcomes(rows.frame, thresholds)
    about = among(read, told) if told and len(read) else read
    if x == "step":
        band = collapse.by_step(rows.frame)
        marks = collapse.marks(read[read["status"] == "done"])
        return band, collapse_traces(band, x, theme, marks, defenses), {None: sentence(about)}
    band = collapse.by_intensity(rows.frame, x, thresholds)
    said = {value: sentence(about[about[x] == value]) for value in sorted(band[x].unique())}
    return band, collapse_traces(band, x, theme, None, defenses), said


def _texts(sliders: Mapping[str, Slider], place: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(slider.text(place[setting]) for setting, slider in sliders.items())


def sentence(read: pd.DataFrame) -> str:
    """What became of the attacks of a figure, in words; `read` is what `run_outcomes` returns.

    Only finished ones count: of an attack under way nobody knows yet what it comes to.
    """
    parts = []
    for variant in present(read):
        mine = of(read, variant)
        mine = mine[mine["status"] == "done"] if "status" in mine else mine
        if mine.empty:
            parts.append(f"{title_of(*variant)}: under way")
            continue
        scores = f"harmfulness {mine['harmfulness'].mean():.0%}, utility {mine['utility'].mean():.0%} after the attack"
        found = collapse.describe(mine["outcome"]) or "no outcome yet"
        parts.append(f"{title_of(*variant)}: {scores}; {found}")
    return ". ".join(parts)


def collapse_traces(
    bands: pd.DataFrame,
    x: str,
    theme: Theme,
    marks: pd.DataFrame | None = None,
    defenses: Sequence[Variant] | None = None,
) -> list[Trace]:
    """What `collapse_curve` draws into its panels, as Plotly's dictionaries. `defenses` are those that share the
    figure at any position of a slider: a line keeps its look when another one is not recorded there."""
    shown, metrics = present(bands), _metrics(bands)
    known = defenses or shown
    found: list[Trace] = []
    for name in shown:
        style = defense_style(name, known, theme)
        for row, metric in enumerate(metrics, start=1):
            line = of(bands[bands["metric"] == metric], name).sort_values(x)
            found += _curve(line, x, name, style, row)
    if _has_strip(bands):
        found += _strip(bands, x, known, len(metrics) + 1, theme)
    if marks is not None:
        found += _marks(marks, metrics, known, theme)
    return [trace | {"uid": identity(trace)} for trace in found]


def collapse_shapes(
    bands: pd.DataFrame,
    thresholds: Thresholds,
    base_utility: float | None = None,
    theme: Theme = "light",
    at: float | None = None,
) -> list[dict[str, Any]]:
    """The lines behind the curves: thresholds, and a chosen value of x."""
    ink, metrics = INK[theme], _metrics(bands)
    found: list[dict[str, Any]] = [
        _line(row, {"color": ink["muted"], "width": 1.2, "dash": "dot"}, y=value)
        for row, value, _ in _limits(metrics, thresholds, base_utility)
    ]
    if at is not None:
        rows = len(metrics) + _has_strip(bands)
        chosen = {"color": ink["line"], "width": 6}
        found += [_line(row, chosen, x=at) | {"opacity": 0.45, "layer": "below"} for row in range(1, rows + 1)]
    return found


def _has_strip(bands: pd.DataFrame) -> bool:
    return "outcome" in bands.columns and not bands.empty


def _metrics(bands: pd.DataFrame) -> list[str]:
    known = ["harmfulness", "utility"]
    return [m for m in known if m in set(bands["metric"])] or known


@functools.lru_cache(maxsize=64)
def _panels(heights: tuple[float, ...]) -> Mapping[str, Mapping[str, Any]]:
    """The axes of panels above one another, which share the horizontal one."""
    made = make_subplots(len(heights), 1, shared_xaxes=True, vertical_spacing=0.07, row_heights=list(heights))
    return {k: v for k, v in made.layout.to_plotly_json().items() if k.startswith(("xaxis", "yaxis"))}


def _nth(row: int) -> str:
    """How Plotly numbers the axes of a panel: the first has no number."""
    return str(row) if row > 1 else ""


def _limits(metrics: Sequence[str], thresholds: Thresholds, base_utility: float | None) -> list[tuple[int, float, str]]:
    """Row, value and words of the thresholds that are known."""
    found = []
    for row, metric in enumerate(metrics, start=1):
        limit = thresholds.harm if metric == "harmfulness" else thresholds.floor(base_utility or float("nan"))
        if limit == limit:
            found.append((row, limit, f"{'broken above' if metric == 'harmfulness' else 'lost below'} {limit:.0%}"))
    return found


def _line(row: int, line: dict[str, Any], *, x: float | None = None, y: float | None = None) -> dict[str, Any]:
    """A line across one panel, at one x or one y."""
    across, up = (("x domain", "y"), ("x", "y domain"))[x is not None]
    ends = {"x0": 0, "x1": 1, "y0": y, "y1": y} if x is None else {"x0": x, "x1": x, "y0": 0, "y1": 1}
    here = {"xref": across.replace("x", f"x{_nth(row)}"), "yref": up.replace("y", f"y{_nth(row)}")}
    return {"type": "line", "line": line} | ends | here


def _threshold_words(row: int, value: float, text: str, theme: Theme) -> dict[str, Any]:
    return {
        "text": text.replace(" ", "<br>", 1),
        "x": 1.005,  # in the margin, where no curve runs through it
        "y": value,
        "xref": f"x{_nth(row)} domain",
        "yref": f"y{_nth(row)}",
        "xanchor": "left",
        "yanchor": "middle",
        "align": "left",
        "showarrow": False,
        "font": {"size": 11, "color": INK[theme]["muted"]},
    }


def _effort_axis(bands: pd.DataFrame, x: str) -> dict[str, Any]:
    values = sorted(float(v) for v in bands[x].unique())
    if x in LOGARITHMIC and values and values[0] > 0:
        return {"type": "log", "tickvals": values, "ticktext": [f"{v:g}" for v in values]}
    if x in SHARES:
        return {"tickformat": ".0%", "tickvals": values}
    return {"tickvals": values} if x != "step" else {}


def _curve(line: pd.DataFrame, x: str, defense: Variant, style: Style, row: int) -> list[Trace]:
    """A defense's line in one panel, and the band over its seeds."""
    if line.empty:
        return []
    title, name = title_of(*defense), defense.label
    place = {"type": "scatter", "legendgroup": name, "xaxis": f"x{_nth(row)}", "yaxis": f"y{_nth(row)}"}
    at, mean, low, high, n = (line[c].tolist() for c in (x, "mean", "low", "high", "n"))
    drawn = {
        "x": at,
        "y": mean,
        "name": f"{title} (n={max(n)})",
        "showlegend": row == 1,
        "mode": "lines+markers",
        "line": {"color": style.color, "dash": style.dash, "width": 2.4},
        "marker": {"symbol": style.marker, "size": 7},
        # the last one is what a click says: whose runs stand behind this point
        "customdata": [[a, b, k, f"{name}|{value!r}"] for a, b, k, value in zip(low, high, n, at, strict=True)],
        "hovertemplate": title + HOVER,
    }
    if max(n) < 2:
        return [place | drawn]
    filled = {
        "x": [*at, *reversed(at)],
        "y": [*high, *reversed(low)],
        "fill": "toself",
        "fillcolor": tint(style.color, 0.16),
        "line": {"width": 0},
        "mode": "lines",
        "hoverinfo": "skip",
        "showlegend": False,
    }
    return [place | filled, place | drawn]


def _strip(bands: pd.DataFrame, x: str, defenses: Sequence[Variant], row: int, theme: Theme) -> list[Trace]:
    """In its own row of the figure: the worst outcome of each defense at each x, as a symbol and a word."""
    cells = complete(bands).drop_duplicates([*KEYS, x])
    places, near = _sides(sorted(cells[x].unique()), logarithmic=x in LOGARITHMIC)
    found = []
    for name in defenses:
        style, mine = defense_style(name, defenses, theme), of(cells, name)
        shown = mine["outcome"].fillna("not scored")
        found.append(
            {
                "type": "scatter",
                "x": mine[x].tolist(),
                "y": [title_of(*name)] * len(mine),
                "mode": "markers+text",
                "marker": {
                    "symbol": [OUTCOME_SYMBOLS.get(o, "line-ew") for o in shown],
                    "size": 10,
                    "color": style.color,
                    "line": {"width": 1.5, "color": style.color},
                },
                "text": [
                    o.replace("-and-", "-and-<br>").replace("self-", "self-<br>") for o in _words(mine[x], shown, near)
                ],
                "textposition": [places[v] for v in mine[x]],
                "textfont": {"size": 11, "color": INK[theme]["text"]},
                "hovertext": mine["outcomes"].fillna("").tolist(),
                "hovertemplate": "%{hovertext}<extra></extra>",
                "cliponaxis": False,
                "legendgroup": name.label,
                "showlegend": False,
                "xaxis": f"x{_nth(row)}",
                "yaxis": f"y{_nth(row)}",
            }
        )
    return found


def _words(values: pd.Series, outcomes: pd.Series, near: set[float]) -> list[str]:
    """The outcomes in words; none where the symbol beside it has the same word and too little room for two."""
    said, before = [], None
    for value, outcome in sorted(zip(values, outcomes, strict=True)):
        said.append((value, "" if outcome == before and value in near else str(outcome)))
        before = outcome
    words = dict(said)
    return [words[value] for value in values]


def _sides(values: Sequence[float], logarithmic: bool) -> tuple[dict[float, str], set[float]]:
    """Where words stand: below, but above where the word of the value before would be run into. And those values that
    have another one close before them."""
    at = [math.log(v) if logarithmic and v > 0 else v for v in values]
    span, places, close = (at[-1] - at[0]) or 1.0, {values[0]: "bottom center"}, set()
    for before, value, left, right in zip(values, values[1:], at, at[1:], strict=False):
        near = (right - left) / span < 0.16
        places[value] = "top center" if near and places[before] == "bottom center" else "bottom center"
        close |= {value} if near else set()
    return places, close


def _marks(marks: pd.DataFrame, metrics: Sequence[str], defenses: Sequence[Variant], theme: Theme) -> list[Trace]:
    """Single points with their outcome: `marks` has defense, variant, step, metric, mean, outcome."""
    last: dict[str, float] = {}
    found = []
    for mark in complete(marks).sort_values("mean", ascending=False).to_dict("records"):
        crowded = last.get(mark["metric"], 2.0) - mark["mean"] < 0.12
        last[mark["metric"]] = mark["mean"]
        name = Variant(mark["defense"], mark["variant"])
        style, row = defense_style(name, defenses, theme), metrics.index(mark["metric"]) + 1
        found.append(
            {
                "type": "scatter",
                "x": [mark["step"]],
                "y": [mark["mean"]],
                "mode": "markers+text",
                "text": [mark["outcome"]],
                "textposition": "bottom left" if crowded or mark["mean"] > 0.85 else "top left",
                "textfont": {"size": 12, "color": style.color},
                "marker": {
                    "symbol": OUTCOME_SYMBOLS[mark["outcome"]],
                    "size": 13,
                    "color": style.color,
                    "line": {"width": 2, "color": INK[theme]["paper"]},
                },
                "cliponaxis": False,
                "hoverinfo": "skip",
                "legendgroup": name.label,
                "showlegend": False,
                "xaxis": f"x{_nth(row)}",
                "yaxis": f"y{_nth(row)}",
            }
        )
    return found
