"""The Methods page: what a step costs, who has to be there, what was recorded; and the measurement behind it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import made_up
import pytest
from apptest import page, text

from benchmarks.step_cost import Bench
from immunelab import bundled
from immunelab.method import catalogue, get, names
from immunelab.ui import methods

ROOT = Path(__file__).resolve().parents[2]
MEASURED: dict[str, Any] = {
    "date": "2026-01-02",
    "machine": "an abacus",
    "command": "python benchmarks/step_cost.py",
    "defenses": {
        "seam": {"fable": {"step": 6.44, "plain_ms": 30.0}, "paper": {"step": 8.0, "plain_ms": 30.0}},
        "panacea": {"fable": {"user_step": 2.9, "serving": 29.6, "plain_ms": 30.0}},
        "security-vectors": {"fable": {"step": 5.0, "user_step": 1.2, "plain_ms": 30.0}},
    },
}


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("home")]


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "step_cost.json"
    path.write_text(json.dumps(MEASURED), encoding="utf-8")
    monkeypatch.setattr(bundled, "measured", lambda name: path if name == path.name else None)
    return path


def test_every_defense_stands_in_one_cell_of_the_overview() -> None:
    table = methods.overview()
    cells = [name for column in table for cell in table[column] if cell for name in cell.split(", ")]
    assert sorted(cells) == names("defense")
    assert "lisa" in table.loc["fine-tuning", methods.WHO["trains"]].split(", ")
    assert table.loc["inference", methods.WHO["serves"]] == "ptst"
    assert "seam" in table.loc["alignment", methods.WHO["released"]].split(", ")


def test_costs_in_words() -> None:
    def said(name: str) -> str:
        return methods.cost_words(catalogue.entry("defense", name), MEASURED)

    assert said("seam") == "6.4 for a step (fable); 8.0 for a step (paper)"
    assert said("panacea") == "2.9 for a user's step and 30 for serving once (fable)"
    assert said("security-vectors") == "5.0 for a step and 1.2 for a user's step (fable)"
    assert said("lox") == "no step: the weights change once"
    assert said("ptst") == ""


def test_the_page_tells_cost_and_origin(measured: Path) -> None:
    shown = text(page("methods"))
    assert "Costs in plain fine-tuning steps: 6.4 for a step (fable)" in shown
    assert "Measured on the Fable model on 2026-01-02 (an abacus)" in shown
    assert "Costs in plain" not in text(page("methods", **{"defense-name": "ptst"}))
    measured.write_text("{", encoding="utf-8")
    assert "is not what `python benchmarks/step_cost.py` writes" in text(page("methods"))


def test_all_defenses_at_a_glance(measured: Path) -> None:
    test = page("methods")
    test.session_state["glance"] = True
    test.run()
    assert not test.exception
    glance = next(d.value for d in test.dataframe if "Cost in plain steps" in d.value)
    assert glance["Defense"].tolist() == names("defense")
    row = glance.set_index("Defense").loc["t-vaccine"]
    assert (ROOT / row["File"]).is_file()
    assert row["Cost in plain steps"] == "not measured"


def test_recorded_outcomes_of_a_defense(home: Path, measured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not [h for h in page("methods").subheader if h.value == "Recorded"]
    made_up.lab(home)
    links: list[dict[str, Any]] = []
    monkeypatch.setattr(methods.navigation, "link", lambda name, label, **query: links.append(query))
    test = page("methods")
    assert [h for h in test.subheader if h.value == "Recorded"]
    wide = next(d.value for d in test.dataframe if any("Learning rate" in str(c) for c in d.value.columns))
    assert list(wide.index) == ["Undefended", "SEAM"]
    assert "no break along the paper" in text(test)
    assert {"beside": ["SEAM"]} in links  # as the choice on Collapse writes it into its address


def test_a_wheel_brings_the_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bundled.measured("tracing.json") == ROOT / "benchmarks" / "results" / "tracing.json"
    monkeypatch.setattr(bundled, "CLONE", tmp_path / "data")
    monkeypatch.setattr(bundled, "installed", lambda: [tmp_path])
    assert bundled.measured("step_cost.json") is None
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "step_cost.json").write_text("{}", encoding="utf-8")
    assert bundled.measured("step_cost.json") == tmp_path / "benchmarks" / "step_cost.json"


def test_the_measurement_tells_a_long_step_from_one_that_is_left_alone() -> None:
    bench = Bench(rounds=3)
    assert bench.cost(get("defense", "seam").presets["fable"])["step"] > 2
    ptst = bench.cost(get("defense", "ptst").presets["fable"])  # does nothing to a step
    assert 0.3 < ptst["user_step"] < 3
    assert ptst["serving"] < 0.5
