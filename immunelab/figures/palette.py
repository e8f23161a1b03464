"""One palette for the whole lab: Okabe-Ito hues (color-blind-safe), with a dash and a marker to each, light and dark.

Importable without Streamlit: pages, the HTML report and notebooks draw with the same colors.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Literal, NamedTuple

import plotly.graph_objects as go

from immunelab.analysis.variants import BASELINE, Variant
from immunelab.method import catalogue

Theme = Literal["light", "dark"]


class Style(NamedTuple):
    """How one series looks: never told apart by color alone."""

    color: str
    dash: str
    marker: str


# Okabe & Ito (2008); the dark column is lightened to 4.5:1 or more on the dark background.
HUES: dict[Theme, tuple[str, ...]] = {
    "light": ("#0072B2", "#009E73", "#B4568E", "#B87800", "#3A8FC2", "#6F6A00", "#5B4FA2", "#D55E00"),
    "dark": ("#56B4E9", "#2FC79A", "#E29AC6", "#F0B23C", "#8CCBF0", "#D8CF4A", "#A9A0E8", "#F28A4A"),
}
UNDEFENDED: dict[Theme, str] = {"light": "#C8500A", "dark": "#F28A4A"}
DASHES = ("solid", "dash", "dot", "solid", "dashdot", "dot", "dash", "dashdot")  # like hues, unlike dashes
MARKERS = ("circle", "diamond", "triangle-up", "triangle-down", "star", "hexagon", "pentagon", "cross")

# The pinned baseline is always vermilion, dashed, with squares; SEAM is always blue, solid, with circles.
_FIXED_SLOTS = {"seam": 0}

OUTCOME_SYMBOLS = {
    "broken": "x",
    "broken-and-degraded": "x-open",
    "self-destructed": "diamond-tall",
    "resisted": "circle",
}
INK: dict[Theme, dict[str, str]] = {
    "light": {"text": "#1F2430", "muted": "#5B6270", "grid": "#E7E9EE", "line": "#B9BEC9", "paper": "#FFFFFF"},
    "dark": {"text": "#E8EAF0", "muted": "#A3AAB8", "grid": "#2A2F3A", "line": "#4A5160", "paper": "#12151C"},
}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans', sans-serif"


def title_of(defense: str, variant: str = "") -> str:
    """How a defense is written in legends and tables."""
    known = catalogue.entries("defense").get(defense)
    name = known.display if known else defense[:1].upper() + defense[1:].replace("-", " ")
    return Variant(name, variant).label


def defense_style(name: Variant, known: Iterable[Variant], theme: Theme = "light") -> Style:
    """The style of a defense among the shown ones (`known`): no two shown defenses look alike, up to 48 of them.

    A style follows from the name, so that showing another defense recolors none, unless their hues collide; the
    undefended model and SEAM never change.
    """
    if name == BASELINE:
        return Style(UNDEFENDED[theme], "dash", "square")
    hues = HUES[theme][:-1]  # the last hue is the baseline's
    shown = sorted({*known, name}, key=lambda v: v.label)
    if name.defense in _FIXED_SLOTS:
        slot, alike = _FIXED_SLOTS[name.defense], [v for v in shown if v.defense == name.defense]
        turn = slot + alike.index(name)  # variants of one method share its hue
        return Style(hues[slot], DASHES[turn % len(DASHES)], MARKERS[turn % len(MARKERS)])
    uses = [0] * (len(hues) - len(_FIXED_SLOTS))  # SEAM keeps its hue for itself
    for other in [v for v in shown if v.defense not in {*_FIXED_SLOTS, BASELINE.defense}]:
        slot = zlib.crc32(other.label.encode()) % len(uses)
        while uses[slot] > min(uses):
            slot = (slot + 1) % len(uses)
        if other == name:
            break
        uses[slot] += 1
    turn, hue = uses[slot], slot + len(_FIXED_SLOTS)
    return Style(hues[hue], DASHES[(hue + turn) % len(DASHES)], MARKERS[(hue + 3 * turn) % len(MARKERS)])


def run_styles(keys: Iterable[str], theme: Theme = "light") -> dict[str, Style]:
    """A style for each run (or group): it follows from its id, so adding a later run never recolors earlier ones."""
    hues = HUES[theme]
    uses = [0] * len(hues)
    styles = {}
    for key in sorted(set(keys)):
        slot = zlib.crc32(key.encode()) % len(hues)
        while uses[slot] > min(uses):
            slot = (slot + 1) % len(hues)
        styles[key] = Style(hues[slot], DASHES[(slot + uses[slot]) % len(DASHES)], MARKERS[slot])
        uses[slot] += 1
    return styles


def tint(color: str, alpha: float) -> str:
    """A hex color as rgba text, for bands."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def mix(color: str, paper: str, share: float) -> str:
    """A hex color laid on the paper so thinly that text stays readable on it."""
    both = [(int(color[i : i + 2], 16), int(paper[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(share * a + (1 - share) * b):02X}" for a, b in both)


def template(theme: Theme) -> go.layout.Template:
    """Our own template: importing Streamlit's Plotly support would make its placeholder colors the default."""
    ink = INK[theme]
    axis = {
        "gridcolor": ink["grid"],
        "linecolor": ink["line"],
        "zeroline": False,
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": ink["line"],
        "tickfont": {"color": ink["muted"], "size": 12},
        "title": {"font": {"color": ink["muted"], "size": 13}, "standoff": 8},
        "automargin": True,
    }
    return go.layout.Template(
        layout={
            "font": {"family": FONT, "size": 13, "color": ink["text"]},
            "paper_bgcolor": ink["paper"],
            "plot_bgcolor": ink["paper"],
            "colorway": list(HUES[theme]),
            "xaxis": axis,
            "yaxis": axis,
            "legend": {"orientation": "h", "yanchor": "bottom", "xanchor": "left", "x": 0},
            "margin": {"l": 56, "r": 40, "t": 56, "b": 48},
            "modebar": {"orientation": "v"},  # at the right edge, beside plots and a legend of any number of rows
            "hovermode": "x unified",
            "hoverlabel": {"bgcolor": ink["paper"], "bordercolor": ink["line"], "font": {"color": ink["text"]}},
            "annotationdefaults": {"font": {"color": ink["muted"], "size": 12}, "showarrow": False},
        }
    )
