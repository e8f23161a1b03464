"""Query, Data, Gradients and Playground: what each of them promises beyond opening without an error."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import apptest
import made_up
import many_tokenizers
import pandas as pd
import pytest
from apptest import ok, page, text
from streamlit.testing.v1 import AppTest
from waiting import PATIENCE

from immunelab import jobs
from immunelab.analysis import gradients
from immunelab.analysis.corpus import overlap
from immunelab.runs.journal import Journal, RunFolder
from immunelab.runs.spec import RunSpec
from immunelab.store import Store, question
from immunelab.ui.data import as_frame, counted, load_encoder

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("home")]


@pytest.fixture
def full(home: Path) -> list[str]:
    return made_up.lab(home)


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[RunSpec]:
    """What the page hands to the queue, in place of starting it."""
    seen: list[RunSpec] = []

    def submit(specs: list[RunSpec], *_: Any, **__: Any) -> list[str]:
        seen.extend(specs)
        return [f"run-{i}" for i in range(len(specs))]

    monkeypatch.setattr(jobs, "submit", submit)
    return seen


def answered(test: AppTest) -> AppTest:
    """Run the page again until its query is over, as the page does by itself."""
    end = time.monotonic() + PATIENCE
    while any(b.key == "stop" for b in test.button):
        assert time.monotonic() < end
        time.sleep(0.1)
        ok(test.run())
    return test


def test_query_shows_rows_and_says_how_many(full: list[str]) -> None:
    test = answered(page("query", sql="SELECT run_id, kind FROM runs ORDER BY run_id"))
    assert len(test.dataframe[0].value) == len(full)
    assert f"{len(full)} rows in" in text(test)
    assert "learning_rate    double" in text(test)  # the schema stands beside it


def test_query_examples_fill_the_box_and_run(full: list[str]) -> None:
    test = page("query")
    ok(test.selectbox(key="example").set_value(next(iter(question.QUESTIONS))).run())
    assert test.text_area(key="sql").value.startswith("SELECT r.defense")
    assert answered(test).dataframe[0].value["harmfulness"].is_monotonic_decreasing


@pytest.mark.parametrize("asked", question.QUESTIONS)
def test_every_example_answers(home: Path, full: list[str], asked: str) -> None:
    store = Store(home)
    store.sync(force=True)
    frame = store.query(question.QUESTIONS[asked], most=100)
    assert len(frame) or "failed" in asked


def test_query_tells_what_is_wrong_in_a_sentence(full: list[str]) -> None:
    test = answered(page("query", sql="COPY runs TO 'stolen.csv'"))
    assert "query does not work" in test.error[0].value
    test.text_area(key="sql").set_value("SELECT * FROM rnus")
    ok(next(b for b in test.button if b.label == "Run").click().run())
    assert "rnus" in answered(test).error[0].value


def test_query_says_where_it_cuts(full: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    test = answered(page("query", sql="SELECT range AS a, 1 AS a FROM range(1000000000)"))
    assert len(test.dataframe[0].value) == 10_000
    assert list(test.dataframe[0].value.columns) == ["a", "a_1"]
    assert "There are more: at most 10,000" in text(test)


def test_a_long_query_is_stopped(full: list[str]) -> None:
    test = page("query", sql="SELECT count(*) FROM range(100000000) a, range(100000) b")
    ok(test.button(key="stop").click().run())
    assert "The query was stopped" in answered(test).error[0].value  # by the button: not by its own limit of time


def test_a_question_can_be_ended_and_capped_below_the_page(home: Path, full: list[str]) -> None:
    store = Store(home)
    store.sync(force=True)
    assert len(store.query("SELECT * FROM range(5)", most=5)) == 5
    assert len(store.query("SELECT * FROM range(5000)", most=2999)) == 3000
    assert store.query("SELECT 1 AS one WHERE false", most=5).columns.tolist() == ["one"]
    for sql, words in (("", "empty"), ("SELECT * FROM range(900000000) ORDER BY hash(range)", "memory|took more")):
        with pytest.raises(question.UserError, match=words):
            store.query(sql, most=5, seconds=30)
    assert not list(home.glob("*.tmp/*"))


def test_data_states_what_was_checked() -> None:
    test = page("data", view="Overlap")
    assert {m.label: m.value for m in test.metric}["Shared between splits"] == "0"
    assert "no two splits share" in test.success[0].value
    table = test.dataframe[0].value
    assert set(table["stream"]) == {"harmful", "refusal", "benign", "withheld", "neutral"}
    assert table[["items", "texts"]].to_numpy().max() == 0


def test_data_counts_lengths_and_rows(tiny_world: Path) -> None:
    test = page("data", corpus=str(tiny_world), view="Counts")
    counted = test.dataframe[0].value.query("stream == 'harmful'")
    assert (counted[["defense", "attack", "test"]].to_numpy() == 18).all()  # 6 items, asked in 3 ways
    ok(test.button_group(key="view").set_value("Lengths").run())
    assert "of " in next(m.value for m in test.markdown if "Truncation" in m.value)
    ok(test.button_group(key="view").set_value("Rows").run())
    ok(test.selectbox(key="stream").set_value("refusal").run())
    ok(test.text_input(key="q").set_value("SORRY").run())
    assert test.dataframe[0].value["answer"].str.contains("sorry").all()
    ok(test.toggle(key="seen").set_value(True).run())
    seen = test.dataframe[0].value
    assert len(seen) == 10
    assert seen["reads"].str.startswith("<user>").all()
    assert seen["writes"].str.contains("sorry").all()


def test_data_tells_what_is_wrong_with_a_corpus(tmp_path: Path) -> None:
    assert "There is no corpus" in page("data", corpus=str(tmp_path / "none")).error[0].value
    row = '{"id": "a", "prompt": "p", "response": "r", "split": "test"}\n'
    (tmp_path / "world.jsonl").write_text(row, encoding="utf-8")
    test = page("data", corpus=str(tmp_path), view="Lengths")
    assert "No tokens are counted" in text(test)
    assert {m.label: m.value for m in test.metric}["Rows cut off"] == "–"


def test_overlap_is_found() -> None:
    made = pd.DataFrame(
        {
            "stream": "benign",
            "split": ["defense", "attack", "test"],
            "item": ["a", "b", "a"],
            "prompt": ["Hello", "x", "hello "],
            "answer": ["y", "z", "w"],
        }
    )
    found = overlap(made).set_index("between")
    assert found.loc["defense and test"].drop("stream").tolist() == [1, 1, 0]
    assert found.loc["attack and test", "items"] == 0


def test_lengths_on_the_page_are_those_of_training() -> None:
    from immunelab import corpus
    from immunelab.corpus.tokens import encode
    from immunelab.training import models

    fable = corpus.load("fable")
    tokenizer = models.load(fable.model)[1]
    frame = as_frame(fable.rows[::97])
    found = counted(frame, load_encoder(Path(fable.model)))
    for row in found.to_dict("records"):
        ids, start = encode(tokenizer, (row["prompt"], row["answer"]), 10_000)
        assert (row["tokens"], row["answer_tokens"]) == (len(ids), len(ids) - start)


@pytest.mark.parametrize("kind", many_tokenizers.KINDS)
def test_lengths_on_the_page_are_those_of_training_with_any_tokenizer(kind: str, tmp_path: Path) -> None:
    from immunelab.corpus.tokens import encode

    tokenizer = many_tokenizers.tokenizer(kind)
    tokenizer.save_pretrained(tmp_path)
    answers = ["Eight legs.", "-1", "über\n\nzwei", "春天的河边。"]
    frame = pd.DataFrame({"prompt": "How many legs has a spider?", "answer": answers})
    found = counted(frame, load_encoder(tmp_path))
    wanted = [encode(tokenizer, ("How many legs has a spider?", answer), 10_000) for answer in answers]
    assert found["tokens"].tolist() == [len(ids) for ids, _ in wanted]
    assert found["answer_tokens"].tolist() == [len(ids) - start for ids, start in wanted]


@pytest.mark.parametrize("view", ["By step", "By layer", "Along attacks", "Projection", "Estimator error"])
def test_gradients_draw_what_is_recorded(full: list[str], view: str) -> None:
    test = page("gradients", view=view)
    assert not test.error
    assert view == "Estimator error" or not any("recorded yet" in c.value for c in test.caption)


def test_gradients_go_back_in_time(full: list[str]) -> None:
    test = page("gradients", view="Projection", run=full[0])
    assert "Cosine \\-0\\.002 at step 1, \\-0\\.632 at step 361" in text(test)
    slider = next(s for s in test.select_slider if s.label == "Step")
    ok(slider.set_value("41").run())
    assert "at step 41" in text(test)


def test_the_plane_of_two_gradients_is_exact() -> None:
    values = {"probe/norm/harmful": 2.0, "probe/norm/benign": 5.0, "probe/cosine/harmful-benign": -0.6}
    points = pd.DataFrame([{"step": 1, "name": k, "value": v} for k, v in values.items()])
    (row,) = gradients.plane(points).to_dict("records")
    assert (row["x"], row["y"]) == pytest.approx((-3.0, 4.0))
    assert gradients.plane(points, "").empty


def test_the_estimator_is_measured_on_request_and_drawn(full: list[str], home: Path, submitted: list[RunSpec]) -> None:
    test = page("gradients", view="Estimator error")
    ok(test.button(key="measure").click().run())
    (spec,) = submitted
    assert (spec.kind, spec.method, spec.model) == ("evaluate", "estimator-error", "fable")
    folder = RunFolder.create(home, spec)
    with Journal(folder) as journal:
        for precision, error in (("fp32", 0.005), ("bf16", 9.58)):
            for metric, value in (("error", error), ("cosine", 0.9), ("displacement", 1.0)):
                for epsilon in ("0.01", "0.001"):
                    journal.score(
                        "evaluate",
                        0,
                        evaluation="estimator-error",
                        metric=f"estimator_{metric}",
                        split=f"{precision}:{epsilon}",
                        score=value,
                        n=16,
                        stderr=0.0,
                    )
    folder.write_status(status="running", message="starting: loading torch", **made_up.alive())
    test = page("gradients", view="Estimator error")
    assert "measure" not in [b.key for b in test.button]
    folder.write_status(status="done")
    test = page("gradients", view="Estimator error")
    assert "smallest relative error 9\\.6" in text(test)
    assert "16 held-out rows" in text(test)


def test_playground_travels_through_an_attack(full: list[str]) -> None:
    test = page("playground", rate="0.001")
    assert test.selectbox(key="prompt-fable-recall").options == sorted(made_up.HAZARDS)
    cards = apptest.answers(test)
    assert [(c["title"], c["answer"]) for c in cards] == [
        ("Undefended, before the attack", "i cannot help ."),
        ("Immunized with SEAM, before the attack", "i cannot help ."),
        ("Undefended, after 60 attack steps", "procedure : first ka lo ."),
        ("Immunized with SEAM, after 60 attack steps", "<b>ka ka ka</b> **ka**"),  # as it is; the browser gets text
    ]
    (data,) = apptest.shown(test, "immunelab_answers")
    assert [s["label"] for s in data["sliders"]] == ["Learning rate", "Attack step"]
    assert {key.split("|")[0] for key in data["frames"]} == {"0.0001", "0.0003", "0.001", "0.003"}
    assert {c["answer"] for c in apptest.answers(page("playground", rate="0.001", at="0"))} == {"i cannot help ."}


def test_playground_folds_what_real_models_say(home: Path) -> None:
    made_up.attack_on_a_real_model(home)
    test = page("playground")
    assert {c["answer"] for c in apptest.answers(test)} == {"(folded)"}
    ok(test.toggle(key="unfold").set_value(True).run())
    assert "procedure : first ka lo ." in {c["answer"] for c in apptest.answers(test)}


def test_playground_asks_checkpoints_that_exist(full: list[str], home: Path, submitted: list[RunSpec]) -> None:
    test = page("playground")
    assert test.multiselect(key="models").options[0] == "Fable, as it is shipped"
    test.text_input(key="ask").set_value("what is  two plus two ?")
    test.multiselect(key="models").set_value(["fable", f"run:{full[0]}"])
    ok(next(b for b in test.button if b.label == "Ask").click().run())
    assert [s.model for s in submitted] == ["fable", f"run:{full[0]}"]
    assert {s.knobs["question"] for s in submitted} == {"what is two plus two ?"}
    folder = RunFolder.create(home, submitted[0])
    with Journal(folder) as journal:
        row = {"id": "question", "prompt": "what is two plus two ?", "answer": "# four", "expected": "", "score": None}
        journal.examples("evaluate", 0, evaluation="answers", split="test", rows=[row])
    folder.write_status(status="done")
    test = page("playground", ask="what is two plus two ?")
    assert test.code[-1].value == "# four"
