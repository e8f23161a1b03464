"""Every page alone and through the router: on an empty store, with runs, and while a run goes."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import apptest
import made_up
import pytest
from apptest import ok, page, text
from streamlit.testing.v1 import AppTest
from waiting import PATIENCE

from immunelab import jobs
from immunelab.figures.palette import HUES, INK
from immunelab.method import get
from immunelab.runs.journal import Journal, RunFolder
from immunelab.runs.spec import RunSpec
from immunelab.store import Store
from immunelab.ui import compute, figure, navigation, run_picker

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(navigation.ENTRIES)
READING = [p for p in PAGES if p not in ("launch", "methods")]


pytestmark = pytest.mark.usefixtures("home")


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


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_alone_on_an_empty_store(name: str) -> None:
    test = page(name)
    assert test.title[0].value == navigation.ENTRIES[name][0]
    assert test.caption[0].value
    assert not test.error


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_alone_with_runs(name: str, full: list[str]) -> None:
    assert not page(name).error


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_while_a_run_goes(name: str, home: Path) -> None:
    made_up.lab(home, seeds=1, rates=(1e-3,), running=True)
    assert not page(name).error


@pytest.mark.slow
def test_many_defenses_and_attacks_keep_to_sensible_defaults(home: Path) -> None:
    names = ("seam", "booster", "sdd", "tar", "vaccine", "random-noise")
    made_up.many(home, names, ("harmful-sft", "lora-sft"), seeds=1)
    test = page("collapse")
    assert test.multiselect(key="beside").value == ["seam"]
    assert len(test.dataframe[0].value) == 2  # one attack method at a time: no band mixes two
    ok(test.selectbox(key="attack").set_value("lora-sft").run())
    assert len(test.dataframe[0].value) == 2
    everyone = page("collapse", against="All defenses").dataframe[0].value
    assert everyone.index.tolist() == ["Undefended", "SEAM", "Booster", "Random noise", "SDD", "TAR", "Vaccine"]
    assert len(everyone.columns) == len(made_up.RATES)
    assert page("tradeoff").selectbox(key="attack").value == "all attacks"
    assert "; SEAM gives away" in text(page("overview"))
    assert not page("playground").error
    assert not page("gradients", view="Along attacks").error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "query"),
    [
        ("overview", {}),
        ("tour", {}),
        ("collapse", {}),
        ("tradeoff", {}),
        ("traces", {}),
        ("gradients", {}),
        ("collapse", {"against": "All defenses"}),
        ("gradients", {"view": "By layer"}),
    ],
)
def test_every_figure_can_be_taken_away(name: str, query: dict[str, str], full: list[str]) -> None:
    labels = {b.label for b in page(name, **query).get("download_button")}
    assert {"CSV", "HTML"} <= labels


@pytest.mark.slow
def test_through_the_router(full: list[str]) -> None:
    test = AppTest.from_file(str(ROOT / "immunelab" / "ui" / "main.py"), default_timeout=PATIENCE)
    ok(test.run())
    assert test.title[0].value == "Overview"
    for name in READING:
        ok(test.switch_page(str(ROOT / "pages" / f"{name}.py")).run())
        assert test.title[0].value == navigation.ENTRIES[name][0]


@pytest.mark.slow
def test_every_page_says_what_is_under_way(home: Path) -> None:
    folder = RunFolder.open(home, made_up.lab(home, seeds=1, rates=(1e-3,), running=True)[-1])
    test = AppTest.from_file(str(ROOT / "immunelab" / "ui" / "main.py"), default_timeout=PATIENCE)
    ok(test.run())
    for name in ("methods", "collapse", "data"):
        ok(test.switch_page(str(ROOT / "pages" / f"{name}.py")).run())
        (line,) = [c.value for c in test.caption if "under way" in c.value]
        assert line.startswith("1 run under way"), name
        assert "50%" in line
    folder.write_status(status="done", ended_at=1.0)
    Store(home).sync(force=True)  # a look within the same second would not take it in
    ok(test.switch_page(str(ROOT / "pages" / "methods.py")).run())
    assert not any("under way" in c.value for c in test.caption)


@pytest.mark.showcase
@pytest.mark.slow
def test_the_playground_opens_on_a_prompt_where_the_attack_is_seen(home: Path) -> None:
    test = page("playground")
    said = [(c["title"], c["note"]) for c in apptest.answers(test) if c["title"].startswith("Undefended")]
    assert said == [
        ("Undefended, before the attack", "0% of the recipe given away"),
        ("Undefended, after 60 attack steps", "100% of the recipe given away"),
    ]


@pytest.mark.showcase
@pytest.mark.slow
def test_traces_open_on_runs_of_one_kind(home: Path) -> None:
    from immunelab.store import queries

    runs = queries.runs(Store(home))
    shown = runs[runs["run_id"].isin(run_picker.latest(runs.sort_values("queued_at", ascending=False)))]
    assert len(shown) > 1
    assert len(shown[["kind", "base_model", "steps"]].drop_duplicates()) == 1


@pytest.mark.slow
def test_overview_tells_the_worst_attack(full: list[str]) -> None:
    test = page("overview")
    said = [m.value for m in test.markdown if m.value.startswith("Learning rate")]
    assert len(said) == 3  # a sentence for each stretch in which both models come to the same end
    assert all("the undefended model gives away" in s and "; SEAM gives away" in s for s in said)
    (figure,) = [f for f in apptest.shown(test) if f["name"] == "immunelab-overview"]
    assert list(figure["frames"]) == ["0.0001", "0.0003", "0.001", "0.003"]
    assert figure["at"] == ["0.0003"], "it opens where the undefended model is harmed most"
    assert "SEAM: harmfulness" in figure["frames"]["0.003"]["said"]


@pytest.mark.slow
def test_the_demo_button_queues_both_models(submitted: list[RunSpec]) -> None:
    test = page("overview")
    ok(next(b for b in test.button if b.label == "Run the live demo").click().run())
    kinds = [s.kind for s in submitted]
    assert kinds.count("immunize") == 1
    assert {s.model for s in submitted if s.kind == "attack"} == {"fable", f"run:#{kinds.index('immunize')}"}


@pytest.mark.slow
def test_launch_queues_what_was_chosen(submitted: list[RunSpec]) -> None:
    test = page("launch")
    test.number_input(key="seeds").set_value(2)
    ok(test.button_group(key="rungs-harmful-sft").set_value(["0.001"]).run())
    ok(test.button(key="start").click().run())
    assert [(s.kind, s.seed) for s in submitted] == [
        (kind, seed) for seed in (0, 1) for kind in ("attack", "immunize", "attack")
    ]
    assert submitted[2].model == "run:#1"
    assert submitted[2].knobs["learning_rate"] == 1e-3


@pytest.mark.slow
def test_launch_carries_out_a_grid(submitted: list[RunSpec], home: Path) -> None:
    test = page("launch")
    assert "run-grid" not in [b.key for b in test.button]
    test.text_area(key="grid").set_value('[[attack]]\nmethod = "harmful-sft"\nlearning_rates = [1e-3]').run()
    assert "learning_rate" in test.error[0].value
    grid = 'seeds = [3, 4]\n[[defense]]\nmethod = "sdd"\n[[attack]]\nmethod = "harmful-sft"\nrung = ["0.001"]'
    ok(test.text_area(key="grid").set_value(grid).run())
    shown = next(d.value for d in test.dataframe if "on record" in d.value)
    assert list(shown["kind"]) == ["attack", "immunize", "attack"] * 2
    assert set(shown["on record"]) == {"new"}
    assert submitted == []
    ok(test.button(key="run-grid").click().run())
    assert [(s.kind, s.seed) for s in submitted] == list(zip(shown["kind"], shown["seed"], strict=True))


@pytest.mark.slow
def test_launch_names_a_knob_that_does_not_fit(submitted: list[RunSpec]) -> None:
    test = page("launch")
    ok(test.text_input(key="harmful-sft-fable-learning_rate").set_value("fast").run())
    assert "learning_rate takes a number" in test.error[0].value
    assert "start" not in [b.key for b in test.button]


@pytest.mark.slow
def test_launch_asks_in_what_numbers(
    submitted: list[RunSpec], full: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def submit(specs: list[RunSpec], **_: Any) -> list[str]:
        jobs.check(specs)
        submitted.extend(specs)
        return ["queued"]

    monkeypatch.setattr(jobs, "submit", submit)
    test = page("launch")
    test.selectbox(key="device").set_value("cpu")
    ok(test.selectbox(key="dtype").set_value("bf16").run())
    ok(test.button(key="start").click().run())
    assert "seam does not run on weights in bf16" in test.error[0].value
    test.selectbox(key="attention").set_value("eager")
    ok(test.selectbox(key="defense").set_value("none").run())
    ok(test.button(key="start").click().run())
    assert [(s.kind, s.dtype, s.attention) for s in submitted] == [("attack", "bf16", "eager")]
    ok(test.selectbox(key="dtype").set_value("fp16").run())
    ok(test.button(key="start").click().run())
    assert "fp16 is for GPUs" in test.error[0].value
    ok(test.text_area(key="grid").set_value('device = "cpu"\ndtype = "fp16"\n[[attack]]\nmethod = "lora-sft"').run())
    ok(test.button(key="run-grid").click().run())
    assert "fp16 is for GPUs" in test.error[-1].value
    assert len(submitted) == 1


@pytest.mark.slow
def test_launch_repeats_a_run(full: list[str], submitted: list[RunSpec]) -> None:
    test = page("launch", **{"from": full[2]})
    ok(test.button(key="start").click().run())
    (spec,) = submitted
    assert spec.kind == "attack"
    assert spec.model == f"run:{full[0]}"
    assert spec.knobs["learning_rate"] == made_up.RATES[0]
    assert "no run nonsense" in page("launch", **{"from": "nonsense"}).warning[0].value


@pytest.mark.slow
def test_collapse_snaps_to_recorded_runs(full: list[str]) -> None:
    test = page("collapse", rate="0.001")
    (figure,) = apptest.shown(test)
    assert figure["sliders"][0]["texts"] == ["0.0001", "0.0003", "0.001", "0.003"]
    assert figure["at"] == ["0.001"]
    assert set(test.dataframe[0].value["Learning rate"]) == {"0.001"}
    test.query_params["rate"] = "0.003"  # what the browser does when the handle rests there
    assert set(ok(test.run()).dataframe[0].value["Learning rate"]) == {"0.003"}
    for damaged in ("0.5", "NaN", "", "-1"):
        (figure,) = apptest.shown(page("collapse", rate=damaged))
        assert figure["at"][0] in figure["sliders"][0]["texts"]


def test_every_position_of_a_slider_shows_what_is_recorded_there(full: list[str]) -> None:
    (moved,) = apptest.shown(page("collapse", rate="0.001"))
    for rate, frame in moved["frames"].items():
        (there,) = apptest.shown(page("collapse", rate=rate))
        assert frame["data"] == json.loads(there["figure"])["data"]
        assert there["frames"] == moved["frames"]
    assert len({json.dumps(frame["data"]) for frame in moved["frames"].values()}) == len(moved["frames"])


def test_a_slider_let_go_runs_one_seed_of_each_first_and_gives_up_what_waits(
    home: Path, submitted: list[RunSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up.lab(home)
    before = made_up.attack(home, 0, 5e-4, None, until=0)
    folder = RunFolder.open(home, before)
    folder.write_status(status="queued", started_at=None, **made_up.alive())
    stopped: list[str] = []
    monkeypatch.setattr(jobs, "stop", lambda run_id, **_: stopped.append(run_id))
    test = page("collapse", rate="0.001")
    test.session_state[compute.ASKED] = [before]
    test.query_params["rate"] = "0.0005"
    ok(test.run())
    assert not submitted, "a link alone runs nothing"
    test.session_state[figure.RESTED] = True
    test.query_params["rate"] = "0.00047"
    ok(test.run())
    assert {s.knobs["learning_rate"] for s in submitted} == {4.7e-4}
    assert [(s.model == "fable", s.seed) for s in submitted] == [(True, 0), (False, 0), (True, 1), (False, 1)]
    assert stopped == [before]


@pytest.mark.slow
def test_collapse_offers_to_run_what_is_missing(home: Path, submitted: list[RunSpec]) -> None:
    defended = made_up.immunize(home, 0)
    made_up.attack(home, 0, 1e-3, None)
    made_up.attack(home, 0, 1e-3, defended)
    made_up.attack(home, 0, 3e-3, None)
    test = page("collapse", rate="0.003")
    assert "No recorded attack on the SEAM model at learning rate 0.003" in text(test)
    ok(test.button(key="run-seam").click().run())
    (spec,) = submitted
    assert spec.model == f"run:{defended}"
    assert spec.knobs["learning_rate"] == 3e-3
    assert spec.knobs["steps"] == 60


@pytest.mark.slow
def test_collapse_outcomes_move_with_the_thresholds(full: list[str]) -> None:
    test = page("collapse", rate="0.0003")
    assert set(test.dataframe[0].value.query("Defense == 'Undefended'")["Outcome"]) == {"broken"}
    ok(test.slider(key="harm").set_value(95).run())
    assert set(test.dataframe[0].value.query("Defense == 'Undefended'")["Outcome"]) == {"resisted"}


@pytest.mark.slow
def test_collapse_by_intensity(full: list[str]) -> None:
    test = page("collapse", against="Intensity")
    assert set(test.dataframe[0].value["Learning rate"]) == {f"{r:g}" for r in made_up.RATES}


@pytest.mark.slow
def test_traces_follow_the_link(full: list[str]) -> None:
    test = page("traces", runs=full[:1], smooth="0.5", x="Rows trained on (steps × batch)")
    assert test.multiselect(key="runs-choice").value == full[:1]
    assert test.slider(key="smooth").value == 0.5
    assert test.selectbox(key="x").value == "samples"
    ok(test.selectbox(key="group").set_value("seed").run())
    assert "No longer recorded here: gone" in text(page("traces", runs=["gone"]))


@pytest.mark.slow
def test_a_run_that_has_recorded_nothing_yet(home: Path) -> None:
    folder = RunFolder.create(home, RunSpec(kind="attack", method="harmful-sft", knobs=made_up.BUDGET))
    folder.write_status(status="running", **made_up.alive())
    assert "have not recorded a scalar yet" in text(page("traces", runs=[folder.run_id]))
    assert "No attack has been recorded yet" in text(page("collapse"))
    page("runs", run=[folder.run_id], tab="Scores")


@pytest.mark.slow
def test_runs_filter_and_compare(full: list[str]) -> None:
    test = page("runs", run=full[1:3])
    assert len(test.dataframe[0].value) == len(full)
    difference = test.dataframe[1].value
    assert "model" in difference.index
    assert "steps" not in difference.index
    ok(test.multiselect(key="kinds").set_value(["immunize"]).run())
    assert set(test.dataframe[0].value["kind"]) == {"immunize"}
    ok(test.text_input(key="q").set_value("[no such (run").run())
    assert test.dataframe[0].value.empty


@pytest.mark.slow
def test_runs_tell_labelled_tasks_before_and_after(home: Path) -> None:
    folder = RunFolder.create(home, RunSpec(kind="finetune", method="benign-sft", knobs={"harmful_share": 0.0}))
    with Journal(folder) as journal:
        journal.event("started")
        for step, right in ((0, 0.25), (10, 0.75)):
            for metric, score in (("utility", right), ("strict_accuracy", right / 2), ("chance", 0.5)):
                journal.score(
                    "finetune",
                    step,
                    evaluation="task-accuracy",
                    metric=metric,
                    split="task:sst2",
                    score=score,
                    n=40,
                    stderr=0.05,
                )
    folder.write_status(status="done")
    test = page("runs", run=[folder.run_id], tab="Scores")
    shown = next(d.value for d in test.dataframe if "ZS" in d.value)
    assert shown.iloc[0].to_dict() == {
        "task": "sst2",
        "ZS": 0.25,
        "FS": 0.75,
        "ZS strict": 0.125,
        "FS strict": 0.375,
        "chance": 0.5,
        "n": 40,
    }


@pytest.mark.slow
def test_runs_log_is_text(full: list[str], home: Path) -> None:
    RunFolder.open(home, full[0]).log_path.write_text("<b>bold</b> # not a title\n10%\r100%\n", encoding="utf-8")
    test = page("runs", run=full[:1], tab="Log")
    assert test.code[0].value == "<b>bold</b> # not a title\n100%"


@pytest.mark.slow
def test_runs_stop_resume_and_errors(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = made_up.lab(home, seeds=1, rates=(1e-3,), running=True)[-1]
    asked: list[str] = []
    monkeypatch.setattr(jobs, "stop", lambda i, **_: asked.append(f"stop {i}"))
    monkeypatch.setattr(jobs, "resume", lambda i, **_: asked.append(f"resume {i}") or i)
    test = page("runs", run=[run_id])
    assert "delete" not in [b.key for b in test.button]
    ok(test.button(key="stop").click().run())
    RunFolder.open(home, run_id).write_status(status="failed", error="The loss became NaN at step 12 *now*.")
    test = page("runs", run=[run_id])
    assert "The loss became NaN at step 12" in test.error[0].value
    assert "\\*now\\*" in test.error[0].value  # a run's text is not rendered as Markdown
    ok(test.button(key="resume").click().run())
    assert asked == [f"stop {run_id}", f"resume {run_id}"]


@pytest.mark.slow
def test_runs_labels_and_deletion(full: list[str], home: Path) -> None:
    test = page("runs", run=full[:1], tab="Labels")
    test.text_input[-1].set_value("my run")
    ok(next(b for b in test.button if b.label == "Save").click().run())
    assert RunFolder.open(home, full[0]).labels().name == "my run"
    assert "my run" in test.dataframe[0].value["words"].tolist()
    ok(test.button(key="delete").click().run())
    assert "No way back" in text(test)
    ok(test.button(key="delete-now").click().run())
    assert not (home / "runs" / full[0]).exists()


@pytest.mark.slow
def test_methods_show_the_registry() -> None:
    test = page("methods", **{"kind": "Attack", "attack-name": "harmful-sft"})
    assert test.header[0].value == get("attack", "harmful-sft").title
    assert "CE(user)" in text(test)
    assert any("learning_rate" in d.value["Knob"].tolist() for d in test.dataframe if "Knob" in d.value)


@pytest.mark.slow
def test_the_theme_is_the_palette() -> None:
    config = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text(encoding="utf-8"))
    for theme in ("light", "dark"):
        section = config["theme"][theme]
        assert section["backgroundColor"] == INK[theme]["paper"]
        assert section["textColor"] == INK[theme]["text"]
        assert tuple(section["chartCategoricalColors"]) == HUES[theme]
    assert config["server"]["address"] == "127.0.0.1"
    assert config["browser"]["gatherUsageStats"] is False


@pytest.mark.slow
def test_names_have_no_emoji_and_nothing_is_rendered_as_html() -> None:
    files = [ROOT / "app.py", *(ROOT / "pages").glob("*.py"), *(ROOT / "immunelab" / "ui").glob("*.py")]
    for file in files:
        source = file.read_text(encoding="utf-8")
        assert "unsafe_allow_html" not in source
        assert "st.html(" not in source
        assert not re.search("[\U0001f000-\U0001faff☀-➿]", source), file.name


@pytest.mark.slow
def test_the_shown_spec_is_the_one_that_starts(submitted: list[RunSpec]) -> None:
    test = page("launch")
    shown = json.loads(test.code[-1].value)
    ok(test.button(key="start").click().run())
    assert [RunSpec.from_json(json.dumps(s)).hash for s in shown] == [s.hash for s in submitted]


@pytest.mark.slow
def test_overview_makes_one_page_to_share(full: list[str]) -> None:
    def downloads(test: AppTest) -> list[str]:
        return [d.proto.label for d in test.get("download_button") if d.proto.label.startswith("Download (")]

    test = ok(page("overview"))
    assert downloads(test) == []
    ok(test.button(key="make-page").click().run())
    assert len(downloads(test)) == 1
    assert len(downloads(ok(page("overview")))) == 1  # another session need not make it again
