"""Figures: styles that do not move, lines told apart without color, stable identities, nothing from outside."""

from __future__ import annotations

import itertools
import json
import re

import pandas as pd
import pytest

from immunelab.analysis import collapse, outcome_table, traces
from immunelab.analysis.estimate import estimate
from immunelab.analysis.variants import Variant
from immunelab.figures.browser import to_html
from immunelab.figures.collapse import collapse_curve, over_intensities
from immunelab.figures.layout import empty
from immunelab.figures.outcome_map import outcome_map
from immunelab.figures.palette import HUES, INK, Theme, defense_style, run_styles
from immunelab.figures.traces import scalar_traces
from immunelab.sweep import Choice, on

THEMES: tuple[Theme, Theme] = ("light", "dark")


def curves() -> pd.DataFrame:
    rows = [
        {
            "run_id": f"{d}{s}{r}",
            "defense": d,
            "seed": s,
            "learning_rate": r,
            "step": k,
            "harmfulness": h * k / 20,
            "utility": 0.9,
            "base_utility": 0.95,
        }
        for d, h in (("undefended", 0.8), ("seam", 0.05))
        for s in (0, 1)
        for r in (1e-4, 1e-3)
        for k in (0, 10, 20)
    ]
    return pd.DataFrame(rows)


def luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("theme", THEMES)
def test_colors_stand_out_from_the_paper(theme: Theme) -> None:
    paper = luminance(INK[theme]["paper"])
    for color in (*HUES[theme], INK[theme]["text"], INK[theme]["muted"]):
        lighter, darker = sorted((luminance(color), paper), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= (4.5 if color in INK[theme].values() else 3), color


def test_defenses_keep_their_style_and_differ_without_color() -> None:
    seam, *others = map(Variant, ("seam", "undefended", "sdd", "tar", "booster", "vaccine"))
    names = [seam, *others]
    assert defense_style(seam, [seam]) == defense_style(seam, names)
    looks = [defense_style(n, names)[1:] for n in names]
    assert len(set(looks)) == len(names)


def test_seventeen_defenses_are_told_apart_and_keep_their_looks() -> None:
    baseline, seam = Variant("undefended"), Variant("seam")
    names = [baseline, seam, *(Variant(f"defense-{i}") for i in range(15))]
    assert len({defense_style(n, names) for n in names}) == len(names)
    assert len({defense_style(n, names)[1:] for n in names}) == len(names)  # without color too
    alone = [defense_style(n, [baseline, seam, n]) for n in names[:2]]
    assert alone == [defense_style(n, names) for n in names[:2]]
    hues = [defense_style(n, names).color for n in names]
    assert hues.count(defense_style(seam, names).color) == 1  # SEAM's hue is its own
    both = [Variant("seam", f"beta {b}") for b in (1, 2)]
    variants = [defense_style(v, both) for v in both]
    assert len({v.color for v in variants}) == 1
    assert len(set(variants)) == 2


@pytest.mark.parametrize("theme", THEMES)
def test_the_map_of_outcomes_says_each_cell_in_words(theme: Theme) -> None:
    figure = outcome_map(outcome_table.outcome_table(curves()), theme=theme)
    drawn = figure.data[0]
    assert list(drawn.y) == ["Undefended", "SEAM"]
    assert list(drawn.x) == ["0.0001", "0.001"]
    assert drawn.text[0][0] == "broken<br>80% · 90%"
    assert drawn.text[1][1] == "resisted<br>5% · 90%"
    assert drawn.customdata[1][1] == "seam|0.001"  # a click opens the runs behind the cell
    text, paper = luminance(INK[theme]["text"]), [luminance(color) for _, color in drawn.colorscale]
    for shade in paper:  # readable on every shade
        light, dark = sorted((text, shade), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_points_of_the_collapse_curve_name_the_runs_behind_them() -> None:
    figure = collapse_curve(collapse.by_step(curves()), base_utility=0.95)
    line = next(t for t in figure.data if t.name == "SEAM (n=4)")
    assert [point[-1] for point in line.customdata] == ["seam|0", "seam|10", "seam|20"]


def test_a_later_run_does_not_recolor_earlier_ones() -> None:
    ids = [f"2026010{i}-seam-{i:06x}" for i in range(1, 9)]
    for n in range(1, 8):
        fewer, more = run_styles(ids[:n]), run_styles(ids[: n + 1])
        assert all(more[i] == fewer[i] for i in fewer)
    assert len(set(run_styles(ids).values())) == len(ids)


@pytest.mark.parametrize("theme", THEMES)
def test_the_collapse_curve(theme: Theme) -> None:
    figure = collapse_curve(collapse.by_step(curves()), base_utility=0.95, theme=theme)
    names = [t.name for t in figure.data if t.showlegend]
    assert names == ["Undefended (n=4)", "SEAM (n=4)"]  # the control first
    assert figure.layout.template.layout.paper_bgcolor == INK[theme]["paper"]
    assert {a.text for a in figure.layout.annotations} == {"broken<br>above 10%", "lost<br>below 57%"}
    line = next(t for t in figure.data if t.name == "Undefended (n=4)")
    assert list(line.y) == pytest.approx([0, 0.4, 0.8])


def test_the_outcome_of_each_cell_is_written_out() -> None:
    figure = collapse_curve(collapse.by_intensity(curves()), x="learning_rate", at=1e-3)
    words = list(itertools.chain.from_iterable(t.text for t in figure.data if t.text is not None))
    assert words == ["broken", "broken", "resisted", "resisted"]


def test_lines_have_stable_identities() -> None:
    def ids(frame: pd.DataFrame) -> list[str]:
        drawn = json.loads(collapse_curve(collapse.by_step(frame)).to_json(remove_uids=False))
        return [t["uid"] for t in drawn["data"]]

    assert ids(curves()) == ids(curves()[curves()["step"] < 20])
    odd = curves().assign(variant=curves()["defense"].map({"seam": "β 0.1, x", "undefended": ""}))
    assert all(re.fullmatch(r"[\w-]+", uid) for uid in ids(odd))  # they end up in a CSS selector
    assert len(set(ids(curves()))) == len(ids(curves()))


def test_traces_smooth_and_keep_gaps() -> None:
    values = pd.Series([1.0, float("nan"), 3.0])
    smooth = traces.smooth(values, 0.5)
    assert smooth.isna().tolist() == [False, True, False]
    assert smooth[0] == pytest.approx(1)  # bias-corrected: the first value stands
    assert smooth[2] == pytest.approx((0.25 * 1 + 0.5 * 3) / 0.75)
    assert traces.smooth(values, 0).equals(values)


def test_axes_are_never_made_up() -> None:
    points = pd.DataFrame({"run_id": ["a", "b"], "phase": "attack", "step": [5, 5], "at": [60.0, 60.0], "value": 1.0})
    runs = pd.DataFrame({"run_id": ["a", "b"], "batch_size": [8, None], "steps": [10, 10]})
    assert traces.with_x(points, "samples", runs)[["run_id", "x"]].to_numpy().tolist() == [["a", 40.0]]
    assert traces.with_x(points, "progress", runs)["x"].tolist() == [0.5, 0.5]


def test_a_user_label_is_no_markup() -> None:
    points = pd.DataFrame({"run_id": "a", "name": "loss", "x": [1, 2], "value": 1.0, "low": 1.0, "high": 1.0})
    figure = scalar_traces(points, {"a": "<a href='x'>%{y}</a>"})
    assert "<a" not in figure.data[0].hovertemplate.removesuffix("<extra></extra>")
    assert "<a" not in figure.data[0].name


def test_the_page_to_take_away_needs_no_network() -> None:
    page = to_html({"One <b>": empty("nothing")}, "T")
    assert "One &lt;b&gt;" in page
    assert "showSendToCloud: false" in page
    assert 'src="http' not in page


def test_estimates_say_what_they_rest_on() -> None:
    done = {"status": "done", "method": "harmful-sft", "batch_size": 8, "device": "cpu", "showcase": False}
    runs = pd.DataFrame([done | {"seconds": 6.0, "steps": 60}, done | {"seconds": 12.0, "steps": 60}])
    choice = Choice("attack", "harmful-sft", {"steps": 120, "batch_size": 8})
    wanted = [spec for seed in (0, 1) for spec in on("fable", [choice], seed=seed)]
    assert estimate(wanted, runs).seconds == pytest.approx(2 * 120 * 0.15)
    assert "2 finished runs (cpu)" in str(estimate(wanted, runs))
    assert "No estimate yet" in str(estimate(wanted, runs.iloc[:0]))


def test_what_is_said_of_an_attack_counts_finished_runs_only() -> None:
    """In the middle of an attack its scores are no end."""
    frame = curves().assign(status="done")
    going = frame["run_id"].isin(frame.loc[frame["defense"] == "seam", "run_id"].unique()[:1])
    frame.loc[going, "status"] = "running"
    frame.loc[going, ["harmfulness", "utility"]] = 0.123
    _, sliders = over_intensities(frame, {}, {})
    _, finished = over_intensities(frame[~going], {}, {})
    assert sliders.frames[()].said == finished.frames[()].said
    _, none = over_intensities(frame[going | (frame["defense"] == "undefended")], {}, {})
    assert none.frames[()].said.endswith(". SEAM: under way")


def test_words_of_neighbors_do_not_run_into_each_other() -> None:
    frame = pd.concat([curves().assign(learning_rate=rate) for rate in (1e-5, 9e-4, 1e-3)], ignore_index=True)
    frame["run_id"] = frame["run_id"] + frame["learning_rate"].astype(str)
    figure = collapse_curve(collapse.by_intensity(frame), x="learning_rate")
    words = [list(t.text) for t in figure.data if t.text is not None]
    assert words == [["broken", "broken", ""], ["resisted", "resisted", ""]]
