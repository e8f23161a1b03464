"""The lab from Python, "open as notebook" on the pages, and the notebooks that ship."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import plotly.graph_objects as go
import apptest
import pytest
from nbclient import NotebookClient
from streamlit.testing.v1 import AppTest

import immunelab
from immunelab.errors import UserError
from immunelab.jobs import notebook_bars
from immunelab.lab import Lab, RunId
from immunelab.ui import figure, reads
import made_up
import recorded

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted((ROOT / "notebooks").glob("*.ipynb"))
_spec = importlib.util.spec_from_file_location("execute", ROOT / "notebooks" / "execute.py")
assert _spec
assert _spec.loader
execute = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(execute)


@pytest.fixture
def lab(home: Path) -> Lab:
    made_up.lab(home)
    return immunelab.open(home)


def test_frames_and_figures(lab: Lab) -> None:
    guarded = lab.runs().query("kind == 'immunize'")["run_id"].tolist()
    assert set(lab.points(guarded[0], "cosine/harmful-benign")["name"]) == {"cosine/harmful-benign"}
    assert set(lab.scores(guarded)["metric"]) >= {"harmfulness", "utility"}
    assert set(lab.curves(learning_rate=1e-3)["learning_rate"]) == {1e-3}
    for drawn in (lab.collapse(), lab.collapse(x="learning_rate"), lab.tradeoff(equal=True), lab.budget(by="compute")):
        assert isinstance(drawn, go.Figure)
        assert drawn.data
    assert lab.scorecard("seam").seeds == (0, 1)
    assert lab.scorecard(guarded[0], all_seeds=True).seeds == (0, 1)
    assert lab.sql("SELECT count(*) AS n FROM runs")["n"].item() == len(lab.runs())


def test_a_collapse_curve_is_of_one_attack(lab: Lab) -> None:
    for chosen in ({}, {"learning_rate": 1e-3}):
        drawn = [t for t in lab.collapse(**chosen).data if t.name and t.name.startswith("Undefended")]
        mine = lab.curves(defense="undefended", **chosen)
        rates = {r for r in mine["learning_rate"] if r in chosen.values()} or set(mine["learning_rate"])
        means = mine.groupby(["method", "learning_rate", "step"])["harmfulness"].mean()
        wanted = [[round(v, 6) for v in means.xs((m, r))] for m in set(mine["method"]) for r in rates]
        assert [round(float(v), 6) for v in drawn[0].y] in wanted  # not a mean over attacks


def test_what_is_not_there_is_told_in_a_sentence(lab: Lab, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No recorded attack fits"):
        lab.collapse(learning_rate=7.0)
    with pytest.raises(UserError, match="No finished immunization"):
        immunelab.open(tmp_path / "empty").scorecard()
    with pytest.raises(UserError, match="kind of run"):
        lab.spec("sweep", "seam")


def test_it_imports_no_torch_and_opens_nothing(home: Path) -> None:
    code = "import sys, immunelab; lab = immunelab.open(); lab.runs(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_specs_take_the_corpus_settings_and_know_runs(lab: Lab) -> None:
    guarded = lab.runs().query("kind == 'immunize'")["run_id"].iloc[0]
    spec = lab.spec("attack", "harmful-sft", model=guarded, rung="0.001", steps=7)
    assert (spec.model, spec.knobs["learning_rate"], spec.knobs["steps"]) == (f"run:{guarded}", 1e-3, 7)
    assert lab.spec("immunize", "seam").knobs["steps"] > 100
    with pytest.raises(UserError, match="rung"):
        lab.spec("attack", "harmful-sft", rung="nonesuch")


def code(notebook: bytes) -> str:
    cells = json.loads(notebook)["cells"]
    return "\n".join(c["source"].removesuffix("\nfigure") for c in cells if c["cell_type"] == "code")


@pytest.mark.parametrize(
    ("page", "query", "widgets"),
    [
        ("collapse", {"rate": "0.001"}, {}),
        ("collapse", {"against": "Intensity"}, {}),
        ("traces", {}, {"group": "seed", "smooth": 0.3}),
        ("tradeoff", {"rule": "Absolute"}, {}),
        ("tradeoff", {"show": "Attacker's budget"}, {}),
    ],
)
def test_a_pages_notebook_draws_the_same_figure(
    lab: Lab, page: str, query: dict[str, str], widgets: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[tuple[go.Figure, Callable[[], bytes]]] = []

    def downloads(drawn: go.Figure, _frame: Any, _key: str, _title: str, notebook: Any = None, _: Any = None) -> None:
        taken.append((drawn, notebook()))

    monkeypatch.setattr(figure, "downloads", downloads)
    test = apptest.page(page, **query)
    for key, value in widgets.items():
        (test.selectbox if key == "group" else test.slider)(key=key).set_value(value)
    if widgets:
        test.run()
    assert not test.exception
    drawn, notebook = taken[-1]
    nbformat.validate(nbformat.reads(notebook.decode(), as_version=4))
    space: dict[str, Any] = {}
    exec(code(notebook), space)
    shared = go.Figure(json.loads(drawn)) if isinstance(drawn, str) else drawn
    assert json.loads(space["figure"].to_json()) == json.loads(shared.to_json())


def executed(path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, **parameters: Any) -> list[list[Any]]:
    """Run a notebook in a kernel of its own; cells tagged `parameters` are replaced. The outputs of each code cell."""
    monkeypatch.setenv("IMMUNELAB_HOME", str(home))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    book = nbformat.read(path, as_version=4)
    for cell in book.cells:
        if parameters and "parameters" in cell.metadata.get("tags", []):
            cell.source = "\n".join(f"{k} = {v!r}" for k, v in parameters.items())
    NotebookClient(book, timeout=900, kernel_name="python3").execute()
    return [cell.outputs for cell in book.cells if cell.cell_type == "code"]


RUN = re.compile(r"\d{8}-\d{6}-[\w-]+-[0-9a-f]{6}")
TOOK = re.compile(r"(?:\d+ (?:h|min|s)\s?)+")
TOKEN = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?|[^\d\s]+")


def said(output: Any) -> list[str]:
    """The words and numbers of an output, without what differs from one run to the next."""
    text = "".join(output.get("data", {}).get("text/plain", output.get("text", "")))
    return TOKEN.findall(TOOK.sub("TIME", RUN.sub("RUN", text)))


def alike(mine: list[str], theirs: list[str]) -> bool:
    """Equal words, and numbers that a processor's rounding may have made differ."""

    def same(a: str, b: str) -> bool:
        try:
            return float(a) == pytest.approx(float(b), rel=0.02, abs=0.02)
        except ValueError:
            return a == b

    return len(mine) == len(theirs) and all(map(same, mine, theirs))


def compared(name: str, outputs: list[list[Any]]) -> None:
    """Each cell's outputs with those that are committed: texts and what figures draw."""
    book = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert len(cells) == len(outputs)
    for cell, found in zip(cells, outputs, strict=True):
        made = [o for o in found if o.output_type != "stream"]
        assert len(cell.outputs) == len(made), cell.source
        for shown, output in zip(cell.outputs, made, strict=True):
            if "figure" in shown.metadata:
                drawn = execute.told(output.data[execute.FIGURE])
                assert [(t, n) for t, n, _ in drawn] == [(t, n) for t, n, _ in shown.metadata["figure"]], cell.source
                wanted = [mean for _, _, mean in shown.metadata["figure"]]
                assert [mean for _, _, mean in drawn] == pytest.approx(wanted, abs=0.01), cell.source
            else:
                assert alike(said(output), said(shown)), cell.source


def test_notebooks_ship_with_outputs() -> None:
    names = ["adding_a_defense", "collapse_curve", "quick_start", "reading_the_store", "your_own_training"]
    assert [p.stem for p in SHIPPED] == names
    for path in SHIPPED:
        book = nbformat.read(path, as_version=4)
        nbformat.validate(book)
        assert path.stat().st_size < 400_000
        assert any(cell.get("outputs") for cell in book.cells), path.name
        for cell in book.cells:
            for output in cell.get("outputs", ()):
                assert output.output_type != "error", path.name
                assert execute.FIGURE not in output.get("data", {}), "a figure is committed as a picture"


@pytest.mark.showcase
@pytest.mark.parametrize("name", ["collapse_curve", "reading_the_store", "adding_a_defense"])
def test_notebooks_say_what_they_show(name: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared(name, executed(ROOT / "notebooks" / f"{name}.ipynb", home, monkeypatch))


def test_the_quick_start_runs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = {"steps": 4, "batch_size": 4, "warmup": 0.0}
    outputs = executed(ROOT / "notebooks" / "quick_start.ipynb", home, monkeypatch, budget=budget)
    assert len([o for cell in outputs for o in cell if execute.FIGURE in o.get("data", {})]) == 2
    bars = next(o for cell in outputs for o in cell if "done after" in o.get("data", {}).get("text/html", ""))
    assert bars.data["text/html"].count("done after") == 3
    book = nbformat.read(ROOT / "notebooks" / "quick_start.ipynb", as_version=4)
    kinds = [[o.output_type for o in cell.outputs] for cell in book.cells if cell.cell_type == "code"]
    assert [[o.output_type for o in cell if o.output_type != "stream"] for cell in outputs] == kinds


@pytest.mark.showcase
def test_ones_own_training_stands_beside_the_labs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "your_own_training"
    outputs = executed(ROOT / "notebooks" / f"{name}.ipynb", home, monkeypatch, budget={"max_steps": 4})
    book = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    kinds = [[o.output_type for o in cell.outputs] for cell in book.cells if cell.cell_type == "code"]
    assert [[o.output_type for o in cell if o.output_type != "stream"] for cell in outputs] == kinds
    runs = immunelab.open(home).runs(showcase=False)
    assert runs["recorded_by"].tolist() == ["transformers' Trainer", "own code", ""]
    assert set(runs["status"]) == {"done"}


def test_what_a_notebook_shows_of_the_lab(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMMUNELAB_APP", "https://lab.example/app/")
    runs = lab.runs()
    text = lab._repr_html_()
    assert 'href="https://lab.example/app/collapse"' in text
    newest = runs.sort_values("queued_at")["run_id"].iloc[-1]
    assert f'href="https://lab.example/app/runs?run={newest}"' in text
    assert f"{(runs['kind'] == 'attack').sum()} × attack done" in text
    run_id = RunId(newest, lab.home)
    assert run_id == newest
    assert f"seed {runs.set_index('run_id').loc[newest, 'seed']}: done" in run_id._repr_html_()
    card = lab.scorecard("seam")._repr_html_()
    assert all(condition.verdict in card for condition in lab.scorecard("seam").conditions)


def test_names_in_a_notebook_are_escaped(home: Path) -> None:
    folder = recorded.record(home, recorded.spec("attack", name="<script>alert(1)</script>"))
    assert "<script>" not in immunelab.open(home)._repr_html_()
    assert "<script>" not in notebook_bars.markup(["<script>"], [notebook_bars.Bar("<script>", 0.5, "<b>")])
    assert RunId(folder.run_id, home)._repr_html_().count("&lt;script&gt;") == 1


def test_the_example_is_the_one_of_the_docs() -> None:
    page = (ROOT / "docs" / "adding-a-defense.md").read_text(encoding="utf-8")
    book = nbformat.read(ROOT / "notebooks" / "adding_a_defense.ipynb", as_version=4)
    body = page.split("```python\n")[1].split("```")[0].split("from __future__ import annotations\n")[1].strip()
    assert book.cells[1].source.split("from __future__ import annotations\n")[1].strip() == body
