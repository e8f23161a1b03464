"""Pages over runs that were judged: what harmfulness is stands beside it, and no figure mixes judges."""

from __future__ import annotations

import json
from pathlib import Path

import made_up
import own_data
import pytest
from apptest import page, text

from immunelab.corpus import described, fable, judging
from immunelab.method import catalogue
from immunelab.runs.journal import RunFolder
from immunelab.store import Store, queries

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("home")]


def attacked(home: Path, evaluation: str, judge: str, rate: float = 1e-3, order: int = 0) -> str:
    """A made-up attack whose harmfulness is an evaluation's, in a run with this judge."""
    run_id = made_up.attack(home, 0, rate, None, order)
    folder = RunFolder(home / "runs" / run_id)
    spec = json.loads((folder.path / "spec.json").read_text())
    (folder.path / "spec.json").write_text(json.dumps(spec | {"judge": judge}))
    lines = folder.journal_path.read_text().splitlines()
    said = [line.replace('"fable"', f'"{evaluation}"') if '"harmfulness"' in line else line for line in lines]
    folder.journal_path.write_text("\n".join(said) + "\n")
    return run_id


def test_harmfulness_is_named_where_it_is_not_fables(home: Path) -> None:
    attacked(home, "harm-classifier", 'harm-classifier(judge="mine", truncation=256); harmful-answers')
    for name in ("collapse", "tradeoff"):
        said = text(page(name))
        assert "Harmfulness here" in said
        assert "mean probability of harm" in said
        assert "truncation=256" in said.replace("\\", "")


def test_scores_of_a_run_say_what_they_are(home: Path) -> None:
    run_id = attacked(home, "strongreject", "strongreject; harmful-answers")
    said = text(page("runs", run=run_id, tab="Scores"))
    assert "the mean StrongREJECT score that a chat model gives the answers" in said.replace("\\", "")


def test_no_band_mixes_judges(home: Path) -> None:
    """Two runs of one attack under two judges: one is drawn, and the other can be chosen."""
    ids = [attacked(home, "harm-classifier", "harm-classifier(truncation=256); harmful-answers", order=1)]
    ids += [attacked(home, "strongreject", "strongreject; harmful-answers", rate, order=2) for rate in (1e-3, 1e-4)]
    store = Store(home)
    store.sync(force=True)
    curves = queries.attack_curves(store, ids)
    assert curves.groupby("run_id")["judge"].nunique().max() == 1
    test = page("collapse")
    (chosen,) = [box for box in test.selectbox if box.label == "Judge"]
    assert len(chosen.options) == 2
    assert chosen.value == "strongreject; harmful-answers"  # that of most runs
    assert "StrongREJECT" in text(test)
    assert "probability of harm" not in text(test)
    chosen.set_value("harm-classifier(truncation=256); harmful-answers").run()
    assert not test.exception
    assert "probability of harm" in text(test)


def test_one_judge_needs_no_choice(home: Path) -> None:
    made_up.lab(home)
    test = page("collapse")
    assert not [box for box in test.selectbox if box.label == "Judge"]
    assert "Harmfulness here" not in text(test)


def test_every_measure_has_words() -> None:
    for name in {*judging.TABLES, *described.UTILITIES, *fable.EVALUATIONS[:1]}:
        assert catalogue.entry("evaluation", name).measure
        assert catalogue.entry("evaluation", name).answer
    assert set(judging.TABLES) <= set(catalogue.metrics())


def test_the_data_page_says_who_judges(tmp_path: Path) -> None:
    folder = own_data.folder(tmp_path / "mine")
    description = 'harm = "harm-classifier"\n' + own_data.DESCRIPTION
    (folder / "corpus.toml").write_text(description)
    assert "Harm is judged by harm-classifier" in text(page("data", corpus=str(folder))).replace("\\", "")
