"""Figures in a browser: the script that the app and exported pages share, and a page to take away."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import plotly.offline

from immunelab.figures.sliders import Sliders

HTML = (
    '<div class="immunelab-frame"><div class="immunelab-sliders"></div>'
    '<div class="immunelab-told" role="status"></div>'
    '<div class="immunelab-figure" role="img" tabindex="0"></div>'
    '<div class="immunelab-said" aria-live="polite"></div></div>'
)
ANSWERS_HTML = (
    '<div class="immunelab-frame"><div class="immunelab-sliders"></div>'
    '<div class="immunelab-told" role="status"></div><div class="immunelab-answers"></div></div>'
)
CSS = Path(__file__).with_name("figure.css").read_text(encoding="utf-8")
# A page of Streamlit's has its own fonts and colors; an exported one needs them.
PAGE_CSS = """body {
  font-family: "Source Sans", system-ui, sans-serif;
  margin: 24px auto;
  max-width: 1200px;
  padding: 0 16px;
}"""


def script(*names: str) -> str:
    """Our scripts of these names, one after the other: "sliders", "figure" and "answers"."""
    return "\n".join(Path(__file__).with_name(f"{name}.js").read_text(encoding="utf-8") for name in names)


def component(function: str, *names: str) -> str:
    """The module of a component: its `function(data, parentElement, send)`, from the scripts of these names."""
    call = f"{function}(data, parentElement, setTriggerValue)"
    return f"{script(*names)}\nexport default ({{ data, parentElement, setTriggerValue }}) => {call};\n"


def to_html(figures: Mapping[str, go.Figure], title: str, sliders: Mapping[str, Sliders] | None = None) -> str:
    """A self-contained page (about 5 MB: Plotly is inside) that needs no network. `sliders` of a figure work in it."""
    told = [drawing(name, figure, (sliders or {}).get(name)) for name, figure in figures.items()]
    parts = [f"<h2>{html.escape(name)}</h2>{HTML}" for name in figures]
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title><style>{PAGE_CSS}
{CSS}</style><body>{"".join(parts)}
<script>{plotly.offline.get_plotlyjs()}</script>
<script type="module">
{script("sliders", "figure")}
window.immunelabPlotly = Promise.resolve(window.Plotly);
const told = {script_json(told)};
document.querySelectorAll(".immunelab-frame").forEach((frame, i) =>
  drawFigure(told[i], frame, () => {{}}));
</script></body></html>
"""


def script_json(value: Any) -> str:
    """JSON that may stand in a script: no text in it can end the script."""
    return json.dumps(value).replace("<", "\\u003c")


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as HTML, its texts escaped."""
    lines = [f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows]
    return f"<table><tr>{''.join(f'<th>{html.escape(h)}</th>' for h in head)}</tr>{''.join(lines)}</table>"


def drawing(name: str, figure: go.Figure, sliders: Sliders | None = None) -> dict[str, Any]:
    """What the script needs to draw a figure."""
    data = {
        "figure": figure.to_json(remove_uids=False),
        "height": int(figure.layout.height or 400),
        "alt": name,
        "name": "immunelab",
        "missing": "Nobody has run this one; the picture is of the last recorded position.",
    }
    return data if sliders is None else data | {"sliders": sliders.json}
