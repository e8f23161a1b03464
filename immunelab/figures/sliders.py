"""Sliders that change a figure in the browser, without a server: what is drawn and said at every recorded position.

The same in the app, in exported pages and in notebooks. Nothing is interpolated: a position that nobody recorded keeps
the last picture, dimmed.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import plotly.graph_objects as go
from plotly.io.json import to_json_plotly


@dataclasses.dataclass(frozen=True)
class Slider:
    """A setting with its recorded values in order, and how each is written."""

    key: str  # in the page's address
    label: str
    values: tuple[float, ...]
    texts: tuple[str, ...]
    logarithmic: bool = False
    whole: bool = False  # steps and samples
    free: bool = False  # whether the reader may stop between recorded values, and ask for what is not recorded

    def text(self, value: float) -> str:
        """How a value is written; one that is not recorded as a plain number."""
        return self.texts[self.values.index(value)] if value in self.values else f"{value:g}"

    def value(self, text: str) -> float:
        """The recorded value of a text; else what it says as a number, kept between the ends. The first one if none."""
        if text in self.texts:
            return self.values[self.texts.index(text)]
        try:
            wanted = float(text)
        except ValueError:
            return self.values[0]
        if not self.free or wanted != wanted:
            return min(self.values, key=lambda v: abs(v - wanted)) if wanted == wanted else self.values[0]
        wanted = min(max(wanted, self.values[0]), self.values[-1])
        return round(wanted) if self.whole else wanted


@dataclasses.dataclass(frozen=True)
class Frame:
    """A position: what is said of it, and what is drawn where it differs from the figure itself.

    `data` and `shapes` are Plotly's traces and shapes; `cards` are answers: title, answer and note.
    """

    said: str
    data: list[dict[str, Any]] | None = None
    shapes: list[dict[str, Any]] | None = None
    cards: list[dict[str, str]] | None = None


class Frames(dict[tuple[str, ...], Frame]):
    """A frame for every recorded combination of the sliders' texts."""

    @functools.cached_property
    def json(self) -> str:
        """As the browser reads them; made once, because sessions share them wherever their sliders stand."""
        told = {
            "|".join(key): {name: value for name, value in vars(frame).items() if value is not None}
            for key, frame in self.items()
        }
        return str(to_json_plotly(told))


@dataclasses.dataclass(frozen=True)
class Sliders:
    """Sliders over a figure, which stand `at` one text each."""

    sliders: tuple[Slider, ...]
    frames: Frames
    at: tuple[str, ...]

    @functools.cached_property
    def json(self) -> str:
        """As the browser reads it."""
        sliders = to_json_plotly([vars(slider) for slider in self.sliders])
        return f'{{"sliders":{sliders},"frames":{self.frames.json},"at":{to_json_plotly(self.at)}}}'


def in_figure(figure: go.Figure, sliders: Sliders) -> go.Figure:
    """The figure with Plotly's own slider, for notebooks: over the first slider, the others where they stand."""
    first, rest = sliders.sliders[0], sliders.at[1:]
    drawn = [trace.uid for trace in figure.data]
    here = {}
    for text in first.texts:
        frame = sliders.frames.get((text, *rest))
        if frame and (frame.data is None or [t["uid"] for t in frame.data] == drawn):  # Plotly can't add a trace
            here[text] = frame
    if len(here) < 2:
        return figure
    at_once = {"mode": "immediate", "frame": {"duration": 0, "redraw": False}, "transition": {"duration": 0}}
    frames, steps = [], []
    for text, frame in here.items():
        data, layout = frame.data or [], {} if frame.shapes is None else {"shapes": frame.shapes}
        frames.append({"name": text, "data": data, "layout": layout, "traces": [*range(len(data))]})
        steps.append({"label": text, "method": "animate", "args": [[text], at_once]})
    figure.frames = frames
    active = [*here].index(sliders.at[0]) if sliders.at[0] in here else 0
    figure.update_layout(
        sliders=[{"steps": steps, "active": active, "currentvalue": {"prefix": f"{first.label}: "}, "pad": {"t": 48}}],
        height=(figure.layout.height or 400) + 96,
        margin_b=(figure.layout.margin.b or 48) + 96,
    )
    return figure
