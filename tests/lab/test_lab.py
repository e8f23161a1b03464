"""The lab from Python, "open as notebook" on the pages, and the notebooks that ship."""

from __future__ import annotations

import json
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
from immunelab.lab import Lab
from immunelab.ui import figure, reads
import made_up

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted((ROOT / "notebooks").glob("*.ipynb"))


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


def executed(path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, **parameters: Any) -> list[Any]:
    """Run a notebook in a kernel of its own; cells tagged `parameters` are replaced."""
    monkeypatch.setenv("IMMUNELAB_HOME", str(home))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    book = nbformat.read(path, as_version=4)
    for cell in book.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = "\n".join(f"{k} = {v!r}" for k, v in parameters.items())
    NotebookClient(book, timeout=900, kernel_name="python3").execute()
    return [o for c in book.cells if c.cell_type == "code" for o in c.outputs]


def test_notebooks_ship_without_outputs() -> None:
    assert [p.stem for p in SHIPPED] == ["adding_a_defense", "collapse_curve", "quick_start", "reading_the_store"]
    for path in SHIPPED:
        book = nbformat.read(path, as_version=4)
        nbformat.validate(book)
        assert not any(c.get("outputs") or c.get("execution_count") for c in book.cells), path.name


@pytest.mark.showcase
@pytest.mark.parametrize("name", ["collapse_curve", "reading_the_store"])
def test_reading_notebooks_run(name: str, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    assert executed(ROOT / "notebooks" / f"{name}.ipynb", lab.home, monkeypatch)


@pytest.mark.parametrize("name", ["quick_start", "adding_a_defense"])
def test_training_notebooks_run(name: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = executed(
        ROOT / "notebooks" / f"{name}.ipynb", home, monkeypatch, budget={"steps": 4, "batch_size": 4, "warmup": 0.0}
    )
    assert outputs
    if name == "quick_start":
        figures = [o for o in outputs if "application/vnd.plotly.v1+json" in o.get("data", {})]
        assert len(figures) == 2


def test_the_example_is_the_one_of_the_docs() -> None:
    page = (ROOT / "docs" / "adding-a-defense.md").read_text(encoding="utf-8")
    book = nbformat.read(ROOT / "notebooks" / "adding_a_defense.ipynb", as_version=4)
    body = page.split("```python\n")[1].split("```")[0].split("from __future__ import annotations\n")[1].strip()
    assert book.cells[1].source.split("from __future__ import annotations\n")[1].strip() == body
