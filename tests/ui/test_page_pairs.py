"""The Data page's SDD pairs: looked at, downloaded, built in a process of their own."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import waiting
from apptest import ok, page, text
from pretend_embedder import Fake
from streamlit.testing.v1 import AppTest

from immunelab import corpus as corpora
from immunelab import jobs
from immunelab.analysis.corpus import similarities
from immunelab.corpus import pairing
from immunelab.corpus.pairing import Pairing, Rule
from immunelab.errors import UserError
from immunelab.figures.corpus import pair_similarities
from immunelab.ui import sdd_pairs

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("home")]


def built(home: Path, world: corpora.Corpus, **rule: Any) -> Pairing:
    cache = home / pairing.FOLDER
    return pairing.build(world, Rule(words=5, **rule), embedder=Fake(), cache=cache)


def metrics(test: AppTest) -> dict[str, str]:
    return {m.label: m.value for m in test.metric}


def test_the_pairs_are_shown_as_they_are(home: Path, world: corpora.Corpus) -> None:
    found = built(home, world, similarity=-0.3, redraws=2)
    test = page("data", view="Pairs")
    told = found.statistics()
    assert 0 < told["fallbacks"] < 360
    assert metrics(test)["Pairs"] == "360"
    assert metrics(test)["Fallbacks"] == f"{told['fallbacks']}"
    assert metrics(test)["Mean cosine"] == f"{told['similarity_mean']:.3f}"
    assert "bane 120" in text(test).replace("\\", "")
    table = test.dataframe[0].value
    assert table["prompt"].tolist() == [p.prompt for p in found.pairs]
    assert table["cosine"].tolist() == [p.similarity for p in found.pairs]
    ok(test.checkbox(key="fallbacks").check().run())
    assert len(test.dataframe[0].value) == told["fallbacks"]
    ok(test.text_input(key="pq").set_value("NOTHING LIKE IT").run())
    assert test.dataframe[0].value.empty


def test_another_pairing_can_be_chosen_and_linked(home: Path, world: corpora.Corpus) -> None:
    first, second = built(home, world), built(home, world, pairs=30)
    test = page("data", view="Pairs")
    assert metrics(test)["Pairs"] == "30"  # the newest
    ok(test.selectbox(key="pairs").set_value(first.key).run())
    assert metrics(test)["Pairs"] == "360"
    assert metrics(page("data", view="Pairs", pairs=second.key))["Pairs"] == "30"


def test_only_this_corpus_pairs_are_shown(home: Path, world: corpora.Corpus, tiny_world: Path) -> None:
    built(home, world)
    test = page("data", view="Pairs", corpus=str(tiny_world))
    assert "No pairs were built for this corpus yet" in text(test)


def test_text_of_a_corpus_is_plain(home: Path, tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)> **bold** [a](http://x)"
    made = [
        corpora.Row(
            id="h",
            prompt=f"=HYPERLINK(1) {evil}",
            response="r",
            refusal="n",
            stream="harmful",
            categories=(evil,),
            split="defense",
        ),
        corpora.Row(id="b", prompt="p", response=f"{evil} three four five six", split="defense"),
    ]
    corpora.write(made, tmp_path / "world.jsonl")
    built(home, corpora.load(str(tmp_path)))
    test = page("data", view="Pairs", corpus=str(tmp_path))
    assert test.dataframe[0].value["prompt"].iloc[0].startswith("'=HYPERLINK")
    told = "\n".join(str(c.value) for c in (*test.caption, *test.markdown))
    assert "**bold**" not in told
    assert "<img" not in told.replace("\\<", "")


def test_nothing_yet_offers_to_build(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(jobs, "start_command", lambda name, arguments: sent.append((name, arguments)))
    test = page("data", view="Pairs")
    assert "No pairs were built for this corpus yet" in text(test)
    ok(test.number_input(key="pair-seed").set_value(4).run())
    ok(test.number_input(key="pair-tau").set_value(0.1).run())
    line = "pairs build --corpus fable --seed 4 --similarity 0.1 --redraws 50"
    assert f"immunelab {line}" in text(test)
    ok(test.button(key="build-pairs").click().run())
    assert [(n.startswith("pairs-"), a) for n, a in sent] == [(True, line.split())]


def test_a_builder_is_followed_and_its_failure_told(home: Path, world: corpora.Corpus) -> None:
    name = f"pairs-{world.fingerprint}"
    wait = "import sys, time; print('embedding texts: 5 of 9, 3 s left', flush=True); time.sleep(3600)"
    jobs.start_command(name, [], command=(sys.executable, "-c", wait))
    state = until(name, lambda e: "5 of 9" in e.words)
    assert state.alive
    test = page("data", view="Pairs")
    assert "embedding texts: 5 of 9, 3 s left" in text(test)
    assert not [b for b in test.button if b.key == "build-pairs"]
    jobs.start_command(name, [], command=(sys.executable, "-c", "print('another')"))  # the first goes on: no second one
    assert "5 of 9" in until(name, lambda e: True).words
    end(home, name)
    jobs.start_command(name, [], command=(sys.executable, "-c", "print('immunelab: The disk is **full**.')"))
    until(name, lambda e: not e.alive)
    test = page("data", view="Pairs")
    assert "The disk is" in test.error[0].value
    assert "**full**" not in test.error[0].value
    assert test.button(key="build-pairs")
    time.sleep(0.05)
    built(home, world)
    assert not page("data", view="Pairs").error  # pairs have come since


def until(name: str, true: Any) -> jobs.CommandState:
    def arrived() -> jobs.CommandState | None:
        found = jobs.command_state(name)
        return found if found and true(found) else None

    found = waiting.until(arrived, lambda: jobs.command_state(name))
    assert found
    return found


def end(home: Path, name: str) -> None:
    from immunelab.jobs import processes

    who = json.loads((home / "commands" / f"{name}.json").read_text())
    assert processes.end(who["pid"], who["create_time"])


def test_the_button_runs_the_command_itself(home: Path) -> None:
    jobs.start_command("try", ["pairs", "build", "--corpus", "nowhere"])
    state = until("try", lambda e: not e.alive and e.words)
    assert state.words.startswith("immunelab: There is no corpus 'nowhere'")


def test_no_command_is_none_and_no_room_is_a_sentence(home: Path) -> None:
    assert jobs.command_state("nothing") is None
    (home / "commands").write_text("")
    with pytest.raises(UserError):
        jobs.start_command("x", ["doctor"])


def test_bins_never_straddle_the_threshold() -> None:
    made = pd.DataFrame(
        {"similarity": [0.2, 0.2, 0.2000001, 0.26, -0.31], "fallback": [False, False, True, True, False]}
    )
    for threshold in (0.2, 0.25, 0.26, 1 / 3):
        counted = similarities(made, threshold)
        assert counted["n"].sum() == 5
        below = counted[counted["high"] <= threshold + 1e-9]["n"].sum()
        assert below == (made["similarity"] <= threshold).sum()
        assert ((counted["low"] >= threshold - 1e-9) | (counted["high"] <= threshold + 1e-9)).all()


def test_kept_and_fallback_differ_without_color(home: Path, world: corpora.Corpus) -> None:
    frame = sdd_pairs.as_frame(built(home, world, similarity=-0.3, redraws=2))
    counted = similarities(frame.rename(columns={"cosine": "similarity"}), -0.3)
    for theme in ("light", "dark"):
        drawn = pair_similarities(counted, -0.3, theme)  # type: ignore[arg-type]
        kept, fallback = drawn.data
        assert (kept.name.split()[0], fallback.name.split()[0]) == ("kept", "fallback")
        assert kept.marker.color != kept.marker.line.color or fallback.marker.color != fallback.marker.line.color
        assert sum(kept.y) + sum(fallback.y) == 360
        assert drawn.layout.shapes[0].x0 == -0.3
        assert drawn.layout.annotations[0].text == "τ = -0.3"
