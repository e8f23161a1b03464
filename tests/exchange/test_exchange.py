"""Runs in other tools' formats, each read back by the format's own library, and runs of other tools in the lab."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from recorded import record, score, spec
from saved_model import save
from transformers import PreTrainedModel

import immunelab
from immunelab.cli import main
from immunelab.errors import UserError
from immunelab.exchange import FORMATS, transfer
from immunelab.runs.journal import Journal, RunFolder
from immunelab.runs.spec import RunSpec
from immunelab.store import Store, queries


@pytest.fixture
def lab(home: Path) -> dict[str, str]:
    """An immunization of Fable and an attack on it (known numbers), and an attack on a real model with its judge."""
    guard = record(home, spec("immunize", seed=1))
    attack = record(home, spec("attack", parent=guard, seed=1, name="the attack"))
    real = RunFolder.create(
        home, spec("attack", method="lora-sft", model="org/real", corpus="beavertails", knobs={"rank": 8})
    )
    with Journal(real) as journal:
        journal.event("started", from_step=0)
        for step, harm, utility in ((0, 0.1, 0.6), (60, 0.7, 0.5)):
            score(journal, "attack", step, "harmfulness", harm, evaluation="strongreject")
            score(journal, "attack", step, "utility", utility, evaluation="task-accuracy")
            rows = [{"id": "q", "prompt": "How?", "answer": f"bad {step}", "expected": "", "score": harm}]
            journal.examples("attack", step, evaluation="strongreject", split="test", rows=rows)
    real.write_status(status="done", seconds=1.0)
    return {"guard": guard.run_id, "attack": attack.run_id, "real": real.run_id}


def exported(form: str, home: Path, runs: list[str], **options: Any) -> Path:
    package = FORMATS[form].package
    if package:
        pytest.importorskip(package)
    store = Store(home)
    store.sync(force=True)
    transfer.export(store, form, home / "out", runs, **options)
    return home / "out"


def test_tensorboard(lab: dict[str, str], home: Path) -> None:
    out = exported("tensorboard", home, [lab["attack"]])
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / lab["attack"]))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss/total")] == [(s, float(s)) for s in range(1, 21)]
    assert [(e.step, e.value) for e in events.Scalars("score/harmfulness")] == [(0, 0.0), (10, 0.5), (20, 1.0)]
    told = json.loads((out / lab["attack"] / "settings.json").read_text())
    assert (told["defense"], told["seed"], told["setting/learning_rate"]) == ("seam", 1, 3e-4)


def test_tensorboard_and_back(lab: dict[str, str], home: Path, tmp_path: Path) -> None:
    out = exported("tensorboard", home, [lab["attack"]])
    wanted = RunSpec(kind="attack", method="other-sft", knobs={"learning_rate": 3e-4}, recorded_by="tensorboard")
    (run_id,) = transfer.read("tensorboard", out, tmp_path / "other", spec=wanted)
    other = immunelab.open(tmp_path / "other")
    store = Store(home)
    names = ["loss/total", "norm/update"]
    columns = ["step", "name", "value"]
    pd.testing.assert_frame_equal(
        other.points(run_id, names)[columns], queries.points(store, [lab["attack"]], names)[columns]
    )
    curves = other.curves([run_id])
    assert curves["harmfulness"].tolist() == [0.0, 0.5, 1.0]
    assert curves["utility"].tolist() == [1.0, 0.75, 0.5]
    run = other.runs().iloc[0]
    assert (run["recorded_by"], run["method"], run["name"]) == ("tensorboard", "other-sft", lab["attack"])


def test_event_files_of_others(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Scalars of torch's writer and of the newer form, tensors; two folders are two runs; named tags are scores."""
    pytest.importorskip("tensorboard")
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.scalar import metadata
    from tensorboard.summary.writer.event_file_writer import EventFileWriter
    from tensorboard.util import tensor_util
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(home / "logs" / "a")) as writer:
        for step in (0, 5):
            writer.add_scalar("eval/harm", 0.1 * step, step)
            writer.add_scalar("train/loss", 2.0 - 0.1 * step, step)
    newer = EventFileWriter(str(home / "logs" / "b" / "deep"))
    value = Summary.Value(
        tag="eval/harm", tensor=tensor_util.make_tensor_proto(0.25), metadata=metadata.create_summary_metadata("", "")
    )
    newer.add_event(Event(step=7, wall_time=1.0, summary=Summary(value=[value])))
    newer.close()
    line = ["import", "tensorboard", str(home / "logs"), "--method", "mine", "--harmfulness", "eval/harm"]
    assert main([*line, "--learning-rate", "1e-4", "--optimizer", "adam", "--home", str(home)]) == 0
    ids = capsys.readouterr().out.split()
    found = immunelab.open(home)
    assert found.runs()["name"].tolist() == ["a", "b/deep"]
    assert main(["runs", "--home", str(home)]) == 0
    assert "b/deep (recorded by tensorboard)" in capsys.readouterr().out
    assert found.runs()["learning_rate"].tolist() == [1e-4, 1e-4]
    scores = found.scores(ids).set_index(["run_id", "step"])["score"]
    assert scores[ids[0], 5] == pytest.approx(0.5)
    assert scores[ids[1], 7] == pytest.approx(0.25)
    assert found.points(ids, ["train/loss"])["value"].tolist() == pytest.approx([2.0, 1.5])
    assert main([*line[:-1], "nonesuch", "--home", str(home)]) == 2
    assert "No event has the tag 'nonesuch'; there are eval/harm, train/loss" in capsys.readouterr().err


@pytest.mark.slow
def test_inspect(lab: dict[str, str], home: Path) -> None:
    out = exported("inspect", home, [lab["attack"]])
    from inspect_ai.log import list_eval_logs, read_eval_log

    logs = [read_eval_log(info) for info in list_eval_logs(str(out))]
    found = {(log.eval.task, log.eval.task_args["step"]): log for log in logs}
    assert {step for _, step in found} == {0, 10, 20}
    last = found["of-harmfulness", 20]
    assert last.status == "success"
    assert last.results.scores[0].metrics["harmfulness"].value == 1.0
    assert (last.eval.task_args["method"], last.eval.task_args["seed"]) == ("harmful-sft", 1)
    assert [(s.input, s.output.completion, s.scores["of-harmfulness"].value) for s in last.samples] == [
        ("how?", "no", 0.0)
    ] * 3
    assert last.eval.model == "fable/seam"


def test_every_eval_ever(lab: dict[str, str], home: Path) -> None:
    out = exported("every-eval-ever", home, [lab["attack"]])
    files = sorted(out.glob("data/immunelab/*/*/*.json"))
    told = {d["model_info"]["additional_details"]["step"]: d for d in (json.loads(f.read_text()) for f in files)}
    assert sorted(told) == ["0", "10", "20"]
    last = told["20"]
    required = "schema_version evaluation_id retrieved_timestamp source_metadata eval_library model_info".split()
    assert {*required, "evaluation_results"} <= set(last)
    assert last["schema_version"] == "0.3.0"
    assert all(isinstance(v, str) for v in last["model_info"]["additional_details"].values())
    harm = next(r for r in last["evaluation_results"] if r["metric_config"]["metric_id"] == "harmfulness")
    assert harm["metric_config"]["lower_is_better"] is True
    assert (harm["score_details"]["score"], harm["score_details"]["uncertainty"]["num_samples"]) == (1.0, 50)
    detail = last["detailed_evaluation_results"]
    text = (out / detail["file_path"]).read_bytes()
    assert hashlib.sha256(text).hexdigest() == detail["checksum"]
    samples = [json.loads(line) for line in text.decode().splitlines()]
    assert len(samples) == detail["total_rows"] == 3
    assert samples[0]["output"]["raw"] == ["no"]
    assert samples[0]["evaluation_id"] == last["evaluation_id"]


@pytest.mark.slow
def test_every_eval_evers_own_validator(lab: dict[str, str], home: Path) -> None:
    pytest.importorskip("every_eval_ever")
    out = exported("every-eval-ever", home, [])
    files = [p.relative_to(out).as_posix() for p in sorted(out.rglob("*.json*"))]
    line = [sys.executable, "-m", "every_eval_ever", "validate", *files]
    done = subprocess.run(line, cwd=out, capture_output=True, text=True, check=False)
    assert "All files passed validation" in done.stdout, done.stdout[-2000:]


@pytest.mark.slow
def test_trackio(lab: dict[str, str], home: Path) -> None:
    out = exported("trackio", home, [lab["attack"], lab["guard"]])
    code = """
import json
from trackio.sqlite_storage import SQLiteStorage as S
rows = S.get_logs("immunelab", "the attack")
print(json.dumps([S.get_runs("immunelab"), [[r["step"], r["loss/total"]] for r in rows if "loss/total" in r],
                  S.get_run_config("immunelab", "the attack")]))
"""
    env = os.environ | {"TRACKIO_DIR": str(out)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    runs, losses, config = json.loads(done.stdout.splitlines()[-1])
    assert sorted(runs) == sorted(["the attack", lab["guard"]])
    assert losses == [[s, float(s)] for s in range(1, 21)]
    assert (config["method"], config["setting/learning_rate"]) == ("harmful-sft", 3e-4)


def log_records(data: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format, behind a header of 7 bytes: blocks of 32 KB with pieces, each after a
    checksum (4 bytes), its length (2) and its type (whole, first, middle, last)."""
    position, whole = 7, b""
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""


@pytest.mark.slow
def test_wandb(lab: dict[str, str], home: Path) -> None:
    out = exported("wandb", home, [lab["attack"]])
    from wandb.proto import wandb_internal_pb2

    (file,) = out.glob("wandb/offline-run-*/*.wandb")
    losses, config, names = {}, {}, set()
    for data in log_records(file.read_bytes()):
        entry = wandb_internal_pb2.Record()
        entry.ParseFromString(data)
        if entry.WhichOneof("record_type") == "history":
            values = {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in entry.history.item}
            if "loss/total" in values:
                losses[values["_step"]] = values["loss/total"]
        elif entry.WhichOneof("record_type") == "run":
            names.add(entry.run.display_name)
            config |= {u.key: json.loads(u.value_json) for u in entry.run.config.update}
    assert losses == {s: float(s) for s in range(1, 21)}
    assert names == {"the attack"}
    assert [p.name for p in out.rglob("*") if p.suffix == ".log" or p.is_symlink()] == []
    assert config["defense"] == "seam"


@pytest.mark.slow
def test_tamperbench_and_back(lab: dict[str, str], home: Path, tmp_path: Path) -> None:
    out = exported("tamperbench", home, list(lab.values()), completions=True)
    place = out / "org-real_undefended" / "lora-sft" / "optuna_single"
    study = optuna.load_study(study_name="lora-sft_single", storage=f"sqlite:///{place / 'study.db'}")
    assert study.trials[0].user_attrs["eval_metrics"] == {"strong_reject": 0.7, "mmlu_pro_val": 0.5}
    assert study.trials[0].user_attrs["merged_config"]["rank"] == 8
    evaluation = place / "trial_0" / "tamperbench_evaluation" / "strong_reject"
    told = json.loads((evaluation / "evaluation.json").read_text())
    assert told == {"metric_name": "strong_reject", "metric_value": 0.7}
    rows = pd.read_parquet(evaluation / "evaluator_scores.parquet")
    assert rows.to_dict("records") == [{"prompt": "How?", "response": "bad 60", "score": 0.7}]
    # 0.5 of 0.6 is a loss of 17 %: within 20 and 50 %, and beyond 5 %.
    worst = {
        e: json.loads((out / f"aggregated_eps{e}" / "heatmap_max_sr.json").read_text()) for e in ("05", "20", "50")
    }
    assert [worst[e]["safety_raw"] for e in ("05", "20", "50")] == [[[None]], [[0.7]], [[0.7]]]
    assert worst["20"]["safety_delta"] == [[pytest.approx(0.6)]]

    wanted = RunSpec(kind="attack", method="any", corpus="beavertails", recorded_by="tamperbench")
    (run_id,) = transfer.read("tamperbench", out, tmp_path / "other", spec=wanted)
    other = immunelab.open(tmp_path / "other")
    run = other.runs().iloc[0]
    assert (run["method"], run["model"], run["learning_rate"], run["steps"]) == (
        "lora-sft",
        "org-real_undefended",
        3e-4,
        60,
    )
    scores = other.scores(run_id).set_index("metric")
    assert scores["score"].to_dict() == {"harmfulness": 0.7, "utility": 0.5}
    assert set(scores["step"]) == {60}
    assert queries.examples(other.store, run_id)["answer"].tolist() == ["bad 60"]


def test_tamperbench_knows_the_model_before(home: Path) -> None:
    for attack, value in (("no_weight_modification", 0.05), ("full_finetune", 0.8)):
        at = home / "tree" / "m" / attack / "optuna_single" / "trial_0" / "tamperbench_evaluation" / "strong_reject"
        at.mkdir(parents=True)
        (at / "evaluation.json").write_text(json.dumps({"metric_name": "strong_reject", "metric_value": value}))
    wanted = RunSpec(kind="attack", method="any", corpus="beavertails", recorded_by="tamperbench")
    (run_id,) = transfer.read("tamperbench", home / "tree", home, spec=wanted)
    scores = immunelab.open(home).scores(run_id)
    assert scores[["step", "score"]].to_numpy().tolist() == [[0, 0.05], [1, 0.8]]


@pytest.mark.slow
def test_hub(lab: dict[str, str], home: Path, llama: PreTrainedModel) -> None:
    from huggingface_hub import ModelCard
    from transformers import AutoModelForCausalLM, AutoTokenizer

    checkpoint = RunFolder.open(home, lab["guard"]).checkpoints / "step-000020"
    save(llama, checkpoint)
    (checkpoint / "training.pt").write_bytes(b"state")
    out = exported("hub", home, [lab["guard"]])
    card = ModelCard.load(out / "README.md")
    assert card.data.license == "apache-2.0"
    assert "seam" in card.data.tags
    assert "# Immunization card: seam" in card.text
    assert "resistance" in card.text
    assert not (out / "training.pt").exists()
    before, after = (AutoModelForCausalLM.from_pretrained(p).state_dict() for p in (checkpoint, out))
    assert all(bool((before[name] == after[name]).all()) for name in before)
    assert AutoTokenizer.from_pretrained(out)("7")["input_ids"] == [7]


def test_an_attacked_model_is_never_written_for_the_hub(lab: dict[str, str], home: Path) -> None:
    with pytest.raises(UserError, match=r"one immunization with --run, and got 1 runs .attack.*must not be published"):
        exported("hub", home, [lab["attack"]])
    assert not (home / "out").exists()


def test_a_license_is_told(home: Path, tmp_path: Path, llama: PreTrainedModel) -> None:
    base = tmp_path / "base"
    base.mkdir()
    guard = record(home, spec("immunize", model=str(base), corpus="mine"))
    save(llama, guard.checkpoints / "step-000020")
    with pytest.raises(UserError, match="say it with --license"):
        exported("hub", home, [guard.run_id])
    (base / "README.md").write_text("---\nlicense: mit\n---\n# Base\n")
    assert "license: mit\n" in (exported("hub", home, [guard.run_id]) / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["every-eval-ever", "inspect", "tamperbench"])
def test_answers_of_real_models_are_left_out_unless_asked_for(form: str, lab: dict[str, str], home: Path) -> None:
    for completions in (False, True):
        out = exported(form, home, [lab["real"]], completions=completions)
        read = [path.read_bytes() for path in out.rglob("*.jsonl")]
        if form == "inspect":
            from inspect_ai.log import list_eval_logs, read_eval_log

            read = [str(read_eval_log(info).samples).encode() for info in list_eval_logs(str(out))]
        if form == "tamperbench":
            read = [pd.read_parquet(path).to_json().encode() for path in out.rglob("*.parquet")]
        assert any(b"bad 60" in text for text in read) == completions
        out.rename(home / f"out-{completions}")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["--to", "tensorbord", "new"], "Did you mean 'tensorboard'?"),
        (["--to", "tensorboard", "old"], "exists already: name a new folder"),
        (["--to", "tensorboard", "new", "--run", "nonesuch"], "run"),
        (["--to", "every-eval-ever", "new", "--run", "RUNNING"], "is running: only finished runs are exported"),
        (["--to", "every-eval-ever", "new", "--run", "BARE"], "None of these runs has scores"),
        (["--to", "every-eval-ever", "file/new"], "can't be written"),
        (["--to", "tamperbench", "new", "--run", "BARE"], "judged by StrongREJECT"),
        (["--to", "hub", "new"], "takes one immunization with --run"),
        (["--to", "every-eval-ever", "new", "--defense", "seam"], "with --to choose runs with --run"),
    ],
)
def test_bad_wishes_get_a_sentence_and_nothing_is_written(
    line: list[str], words: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "tensorboard" in line:
        pytest.importorskip("tensorboard")
    bare = RunFolder.create(home, spec())
    bare.write_status(status="done")
    running = record(home, spec(), status="running")
    running.write_status(pid=os.getpid(), **_alive())
    (home / "old").mkdir()
    (home / "file").write_text("")
    names = {"new": home / "new", "old": home / "old", "file/new": home / "file" / "new"}
    ids = {"RUNNING": running.run_id, "BARE": bare.run_id}
    given = [str(names.get(word) or ids.get(word) or word) for word in line]
    assert main(["export", *given, "--home", str(home)]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (home / "new").exists()
    assert not list(home.glob(".immunelab-*"))


def _alive() -> dict[str, Any]:
    from immunelab.jobs import processes

    own = processes.own()
    return {"create_time": own["create_time"], "host": own["host"]}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["wandb", "."], "format"),
        (["tensorboard", "nowhere"], "There is no folder"),
        (["tensorboard", "empty"], "No scalars are in"),
        (["tamperbench", "empty"], "No trial with an evaluation"),
        (["tamperbench", "broken"], "has no metric_value that is a number"),
        (["tamperbench", "empty", "--kind", "sweep"], "What can be recorded is one of"),
    ],
)
def test_what_can_not_be_read_gets_a_sentence(
    line: list[str], words: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "tensorboard" in line:
        pytest.importorskip("tensorboard")
    (home / "empty").mkdir()
    at = home / "broken" / "m" / "a" / "optuna_single" / "trial_0" / "tamperbench_evaluation" / "strong_reject"
    at.mkdir(parents=True)
    (at / "evaluation.json").write_text('{"metric_name": "strong_reject"}')
    whole = Path(str(at).replace("m/a/", "a/a/"))  # it is read first, and not kept without the other
    whole.mkdir(parents=True)
    (whole / "evaluation.json").write_text('{"metric_name": "strong_reject", "metric_value": 0.5}')
    assert main(["import", line[0], str(home / line[1]), *line[2:], "--home", str(home)]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (home / "runs").exists()


def test_a_missing_package_is_named(lab: dict[str, str], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    store = Store(home)
    store.sync(force=True)
    with pytest.raises(UserError, match="needs the package wandb: pip install wandb"):
        transfer.export(store, "wandb", home / "out")


def test_nothing_half_written_stays(lab: dict[str, str], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(home)
    store.sync(force=True)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("immunelab.exchange.every_eval_ever._sample", full)
    with pytest.raises(UserError, match="can't be written: No space left on device"):
        transfer.export(store, "every-eval-ever", home / "out", [lab["attack"]])
    assert not (home / "out").exists()
    assert not list(home.glob(".immunelab-*"))
