"""Execute the notebooks and write their outputs into them, with figures as pictures.

    python notebooks/execute.py [NAME …]

Each runs in a home of its own beside the shipped runs. A figure's picture is taken in Chromium; what it draws is told
in the output's metadata, which `tests/lab` compare. Opened in Jupyter and run, figures have their sliders.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import plotly.graph_objects as go
import plotly.offline
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).resolve().parent
FIGURE = "application/vnd.plotly.v1+json"
WIDTH, HEIGHT = 860, 430  # pixels of a picture, where the figure does not say its height
COLORS = 64
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> None:
    """Execute the named notebooks, or all."""
    read = argparse.ArgumentParser(description=__doc__)
    read.add_argument("names", nargs="*")
    wanted = read.parse_args().names or sorted(p.stem for p in FOLDER.glob("*.ipynb"))
    for name in wanted:
        path = FOLDER / f"{name}.ipynb"
        with tempfile.TemporaryDirectory() as home:
            os.environ["IMMUNELAB_HOME"] = home
            book = nbformat.read(path, as_version=4)
            NotebookClient(book, timeout=3600, kernel_name="python3").execute()
            for cell in book.cells:
                if cell.cell_type == "code":
                    cell.metadata.pop("execution", None)
                    cell.outputs = [tidy(output, home) for output in cell.outputs if output.output_type != "stream"]
        book.metadata = {key: book.metadata[key] for key in ("kernelspec", "language_info")}
        book.metadata["language_info"] = {"name": "python"}
        nbformat.write(book, path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


def tidy(output: Any, home: str) -> Any:
    """An output as it is committed: no paths of this machine, and a picture for a figure."""
    output = nbformat.from_dict(json.loads(json.dumps(output).replace(home, "lab")))
    data = output.get("data", {})
    output.pop("transient", None)
    if FIGURE in data:
        figure = data[FIGURE]
        output.metadata = {"figure": told(figure)}
        output.data = {"image/png": picture(figure), "text/plain": "a Plotly figure"}
    return output


def told(figure: dict[str, Any]) -> list[list[Any]]:
    """What a figure draws: of each trace its name, how many points it has, and the mean of those that are numbers."""
    found = []
    for trace in go.Figure(data=figure["data"], layout=figure["layout"]).data:
        values = [float(v) for v in numbers(trace.y) if v is not None and v == v]
        found.append([trace.name, len(values), round(sum(values) / len(values), 4) if values else None])
    return found


def numbers(values: Any) -> Any:
    """The numbers of an axis, which Plotly may have packed."""
    if isinstance(values, dict):
        return np.frombuffer(base64.b64decode(values["bdata"]), dtype=values["dtype"])
    return [] if values is None or any(isinstance(v, str) for v in values) else values


def picture(figure: dict[str, Any]) -> str:
    """A figure as a PNG, base64."""
    from playwright.sync_api import sync_playwright

    browser = next(filter(None, map(shutil.which, BROWSERS)))
    drawn = json.dumps({"data": figure["data"], "layout": figure["layout"]})
    height = figure["layout"].get("height") or HEIGHT
    page = f"<body style='margin:0'><div id=f style='width:{WIDTH}px;height:{height}px'></div>"
    page += f"<script>{plotly.offline.get_plotlyjs()}</script>"
    page += f"<script>const f = {drawn}; Plotly.newPlot('f', f.data, {{...f.layout, width: {WIDTH}}})</script>"
    with sync_playwright() as run, tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figure.html"
        file.write_text(page, encoding="utf-8")
        chromium = run.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        view = chromium.new_page(viewport={"width": WIDTH, "height": 1200})
        view.goto(file.as_uri())
        view.wait_for_selector(".main-svg")
        view.wait_for_timeout(500)
        taken = view.locator("#f").screenshot()
        chromium.close()
    small = io.BytesIO()
    Image.open(io.BytesIO(taken)).convert("RGB").quantize(COLORS).save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


if __name__ == "__main__":
    main()
