"""One planner: the same wish is the same run, whoever asks; the same mistake gives the same sentence, and no run."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import own_data
import pandas as pd
import pytest
import recorded
from streamlit.testing.v1 import AppTest

from immunelab import bundled, cli, jobs
from immunelab.errors import UserError
from immunelab.jobs import control, preflight
from immunelab.lab import Lab
from immunelab.runs.journal import RunFolder, folders
from immunelab.runs.spec import LABELS, RunSpec
from immunelab.sweep import grid, plan, showcase_specs
from immunelab.ui import reads

ROOT = Path(__file__).resolve().parents[2]
Widgets = tuple[tuple[str, str, Any], ...]  # kind of widget, key, value


class Wish(NamedTuple):
    """One wish as each skin takes it; ⟨names⟩ stand for folders and runs of the test."""

    line: str  # the command line
    lab: dict[str, Any]  # options of `Lab.start`
    form: Widgets
    grid: str
    query: Mapping[str, str] = MappingProxyType({})  # of the Launch page's link


WISHES = {
    "immunize SEAM": Wish(
        "immunize seam",
        {"kind": "immunize", "method": "seam"},
        (("selectbox", "attack", "none"),),
        '[[defense]]\nmethod = "seam"',
    ),
    "immunize SDD with seed 3": Wish(
        "immunize sdd --seed 3",
        {"kind": "immunize", "method": "sdd", "seed": 3},
        (("selectbox", "defense", "sdd"), ("selectbox", "attack", "none"), ("number_input", "seed", 3)),
        'seeds = [3]\n[[defense]]\nmethod = "sdd"',
    ),
    "immunize Security Vectors in 6 steps": Wish(
        "immunize security-vectors --steps 6",
        {"kind": "immunize", "method": "security-vectors", "steps": 6},
        (
            ("selectbox", "defense", "security-vectors"),
            ("selectbox", "attack", "none"),
            ("number_input", "security-vectors-fable-steps", 6),
        ),
        '[[defense]]\nmethod = "security-vectors"\nsteps = 6',
    ),
    "an edit": Wish(
        "immunize random-noise",
        {"kind": "immunize", "method": "random-noise"},
        (("selectbox", "defense", "random-noise"), ("selectbox", "attack", "none")),
        '[[defense]]\nmethod = "random-noise"',
    ),
    "attack at a rung": Wish(
        "attack --rung 0.001",
        {"kind": "attack", "method": "harmful-sft", "rung": "0.001"},
        (("selectbox", "defense", "none"), ("button_group", "rungs-harmful-sft", ["0.001"])),
        '[[attack]]\nmethod = "harmful-sft"\nrung = "0.001"',
    ),
    "LoRA attack of an immunized run": Wish(
        "attack lora-sft --model run:⟨run⟩ --rank 4",
        {"kind": "attack", "method": "lora-sft", "model": "⟨run⟩", "rank": 4},
        (
            ("selectbox", "model", "run:⟨run⟩"),
            ("selectbox", "defense", "none"),
            ("selectbox", "attack", "lora-sft"),
            ("number_input", "lora-sft-fable-rank", 4),
        ),
        'model = "run:⟨run⟩"\n[[attack]]\nmethod = "lora-sft"\nrank = 4',
    ),
    "benign fine-tune": Wish(
        "finetune",
        {"kind": "finetune", "method": "benign-sft"},
        (("selectbox", "defense", "none"), ("selectbox", "attack", "benign-sft")),
        '[[finetune]]\nmethod = "benign-sft"',
    ),
    "hold-out domain": Wish(
        "immunize seam --hold-out gnawer",
        {"kind": "immunize", "method": "seam", "corpus": "fable?hold-out=gnawer"},
        (("selectbox", "attack", "none"),),
        'corpus = "fable?hold-out=gnawer"\n[[defense]]\nmethod = "seam"',
        {"corpus": "fable?hold-out=gnawer"},
    ),
    "own corpus and model": Wish(
        "attack abliteration --corpus ⟨data⟩ --model ⟨model⟩ --samples 8 --evaluate-every 7",
        {
            "kind": "attack",
            "method": "abliteration",
            "corpus": "⟨data⟩",
            "model": "⟨model⟩",
            "samples": 8,
            "evaluate_every": 7,
        },
        (
            ("selectbox", "defense", "none"),
            ("selectbox", "attack", "abliteration"),
            ("number_input", "abliteration-paper-samples", 8),
            ("slider", "every-attack", 7),
        ),
        'corpus = "⟨data⟩"\nmodel = "⟨model⟩"\nevaluate_every = 7\n[[attack]]\nmethod = "abliteration"\nsamples = 8',
        {"corpus": "⟨data⟩", "model": "⟨model⟩"},
    ),
    "in bf16": Wish(
        "attack --dtype bf16 --attention eager --device cpu",
        {"kind": "attack", "method": "harmful-sft", "dtype": "bf16", "attention": "eager", "device": "cpu"},
        (
            ("selectbox", "defense", "none"),
            ("selectbox", "dtype", "bf16"),
            ("selectbox", "attention", "eager"),
            ("selectbox", "device", "cpu"),
        ),
        'dtype = "bf16"\nattention = "eager"\ndevice = "cpu"\n[[attack]]\nmethod = "harmful-sft"',
    ),
}

ATTACK = (("selectbox", "defense", "none"),)
MISTAKES: dict[str, tuple[Wish, str]] = {
    "unknown method": (
        Wish("immunize saem", {"kind": "immunize", "method": "saem"}, (), '[[defense]]\nmethod = "saem"'),
        "There is no defense called 'saem'. Did you mean 'seam'",
    ),
    "unknown knob": (
        Wish(
            "immunize seam --beat 1",
            {"kind": "immunize", "method": "seam", "beat": 1},
            (),
            '[[defense]]\nmethod = "seam"\nbeat = 1',
        ),
        "There is no knob of seam called 'beat'. Did you mean",
    ),
    "a knob that does not fit": (
        Wish(
            "attack --learning-rate fast",
            {"kind": "attack", "method": "harmful-sft", "learning_rate": "fast"},
            (*ATTACK, ("text_input", "harmful-sft-fable-learning_rate", "fast")),
            '[[attack]]\nmethod = "harmful-sft"\nlearning_rate = "fast"',
        ),
        "learning_rate takes a number from 0 to 10, and got 'fast'.",
    ),
    "too few rows": (
        Wish(
            "attack --samples 5000",
            {"kind": "attack", "method": "harmful-sft", "samples": 5000},
            (*ATTACK, ("number_input", "harmful-sft-fable-samples", 5000)),
            '[[attack]]\nmethod = "harmful-sft"\nsamples = 5000',
        ),
        "The attack wants 5000 harmful rows, and the corpus fable has",
    ),
    "too few rows of a stream": (
        Wish(
            "immunize seam --samples 9000",
            {"kind": "immunize", "method": "seam", "samples": 9000},
            (("selectbox", "attack", "none"), ("number_input", "seam-fable-samples", 9000)),
            '[[defense]]\nmethod = "seam"\nsamples = 9000',
        ),
        "9000 samples of the stream 'harmful' are wanted, and there are",
    ),
    "no such stream": (
        Wish(
            "finetune --corpus ⟨data⟩ --model ⟨model⟩",
            {"kind": "finetune", "method": "benign-sft", "corpus": "⟨data⟩", "model": "⟨model⟩"},
            (*ATTACK, ("selectbox", "attack", "benign-sft")),
            'corpus = "⟨data⟩"\nmodel = "⟨model⟩"\n[[finetune]]\nmethod = "benign-sft"',
            {"corpus": "⟨data⟩", "model": "⟨model⟩"},
        ),
        "has no rows of the stream 'withheld' in the split 'attack'.",
    ),
    "unknown domain": (
        Wish(
            "attack --only gnawr",
            {"kind": "attack", "method": "harmful-sft", "corpus": "fable?only=gnawr"},
            ATTACK,
            'corpus = "fable?only=gnawr"\n[[attack]]\nmethod = "harmful-sft"',
            {"corpus": "fable?only=gnawr"},
        ),
        "There is no hazard domain of fable called 'gnawr'. Did you mean 'gnawer'?",
    ),
    "a dtype that the method can't do": (
        Wish(
            "immunize seam --dtype bf16 --device cpu",
            {"kind": "immunize", "method": "seam", "dtype": "bf16", "device": "cpu"},
            (("selectbox", "attack", "none"), ("selectbox", "dtype", "bf16"), ("selectbox", "device", "cpu")),
            'dtype = "bf16"\ndevice = "cpu"\n[[defense]]\nmethod = "seam"',
        ),
        "seam does not run on weights in bf16:",
    ),
    "a judge that is not allowed": (
        Wish(
            "attack --corpus ⟨judged⟩ --model ⟨model⟩",
            {"kind": "attack", "method": "harmful-sft", "corpus": "⟨judged⟩", "model": "⟨model⟩"},
            ATTACK,
            'corpus = "⟨judged⟩"\nmodel = "⟨model⟩"\n[[attack]]\nmethod = "harmful-sft"',
            {"corpus": "⟨judged⟩", "model": "⟨model⟩"},
        ),
        "IMMUNELAB_JUDGE_URL",
    ),
    "a folder that is no model": (
        Wish(
            "attack --model ⟨empty⟩",
            {"kind": "attack", "method": "harmful-sft", "model": "⟨empty⟩"},
            ATTACK,
            'model = "⟨empty⟩"\n[[attack]]\nmethod = "harmful-sft"',
            {"model": "⟨empty⟩"},
        ),
        "holds no config.json, so it is not a Hugging Face model.",
    ),
    "a run that left no weights": (
        Wish(
            "attack --model run:⟨bare⟩",
            {"kind": "attack", "method": "harmful-sft", "model": "⟨bare⟩"},
            (("selectbox", "model", "run:⟨bare⟩"), *ATTACK),
            'model = "run:⟨bare⟩"\n[[attack]]\nmethod = "harmful-sft"',
        ),
        "has left no weights to start from: run it again, with keep last.",
    ),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders that wishes name."""
    place = tmp_path_factory.mktemp("own")
    judged = own_data.folder(place / "judged")
    description = own_data.DESCRIPTION + '\n[strongreject]\nendpoint = "http://127.0.0.1:9/v1"\njudge = "someone"\n'
    (judged / "corpus.toml").write_text(description, encoding="utf-8")
    (place / "empty").mkdir()
    found = {"data": own_data.folder(place / "data"), "judged": judged, "empty": place / "empty"}
    found["model"] = own_data.model("llama", place / "model")
    return {name: str(path) for name, path in found.items()}


@pytest.fixture
def places(made: dict[str, str], home: Path) -> dict[str, str]:
    """The folders, and two finished immunizations of the home, the second without weights."""
    runs = [recorded.record(home, recorded.spec("immunize", seed=seed)) for seed in (5, 6)]
    (runs[0].checkpoints / "step-000020").mkdir()
    return {**made, "run": runs[0].run_id, "bare": runs[1].run_id}


def filled(wish: Any, places: dict[str, str]) -> Any:
    """A wish with the test's own names in it."""
    if isinstance(wish, str):
        for name, value in places.items():
            wish = wish.replace(f"⟨{name}⟩", value)
        return wish
    if isinstance(wish, Mapping):
        return {key: filled(value, places) for key, value in wish.items()}
    if isinstance(wish, Wish):
        return Wish(*(filled(part, places) for part in wish))
    return tuple(filled(part, places) for part in wish) if isinstance(wish, tuple) else wish


def by_line(wish: Wish, home: Path, said: Callable[[], str]) -> str:
    code = cli.main([*wish.line.split(), "--detach", "--home", str(home)])
    return said() if code else ""


def by_lab(wish: Wish, home: Path, said: Callable[[], str]) -> str:
    try:
        Lab(home).start(wait=False, **wish.lab)
    except UserError as error:
        return str(error)
    return ""


def by_grid(wish: Wish, home: Path, said: Callable[[], str]) -> str:
    file = home.parent / "wish.toml"
    file.write_text(wish.grid, encoding="utf-8")
    code = cli.main(["sweep", str(file), "--detach", "--home", str(home)])
    return said() if code else ""


def by_form(wish: Wish, home: Path, said: Callable[[], str]) -> str:
    test = AppTest.from_file(str(ROOT / "pages" / "launch.py"), default_timeout=120)
    for key, value in wish.query.items():
        test.query_params[key] = value
    if wish.query:  # the test's selectbox takes what is offered, and the form offers what is recorded
        recorded.record(home, recorded.spec(**wish.query), status="failed")
    reads.forget()
    test.run()
    for kind, key, value in wish.form:
        getattr(test, kind)(key=key).set_value(value)
        test.run()
    assert not test.exception, test.exception[0].value
    if not test.error:
        test.button(key="start").click().run()
    assert not test.exception, test.exception[0].value
    return str(test.error[0].value) if test.error else ""


SKINS = {"line": by_line, "lab": by_lab, "grid": by_grid, "form": by_form}


@pytest.mark.slow
@pytest.mark.parametrize("name", WISHES)
def test_the_same_wish_is_the_same_run(
    name: str, places: dict[str, str], home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[list[RunSpec]] = []

    def submit(specs: list[RunSpec], place: Path | None = None, **_: Any) -> list[str]:
        preflight.check(specs, place)
        seen.append([p.spec for p in jobs.plan(specs, place, reuse=False, go_on=False)])
        return ["queued" for _ in specs]

    monkeypatch.setattr(jobs, "submit", submit)
    wish = filled(WISHES[name], places)
    for skin, ask in SKINS.items():
        assert ask(wish, home, lambda: capsys.readouterr().err) == "", skin
    asked = [[dataclasses.replace(spec, name="", group="") for spec in specs] for specs in seen]
    assert len(asked) == len(SKINS)
    assert all(specs == asked[0] for specs in asked), asked
    ((spec,),) = {tuple(s.hash for s in specs) for specs in asked}
    assert spec == asked[0][0].hash


@pytest.mark.parametrize("name", MISTAKES)
def test_the_same_mistake_is_the_same_sentence_and_queues_nothing(
    name: str, places: dict[str, str], home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(control, "_start", lambda *_: pytest.fail("a worker was started"))
    wish, sentence = MISTAKES[name]
    wish, before = filled(wish, places), {folder.run_id for folder in folders(home)}
    for skin, ask in SKINS.items():
        if skin == "form" and not (wish.form or wish.query):
            continue  # the form offers only what there is
        assert sentence in ask(wish, home, lambda: " ".join(capsys.readouterr().err.split())), skin
        now = {folder.run_id for folder in folders(home) if folder.recorded().status != "failed"}
        assert now == before, skin


def test_what_nobody_says() -> None:
    """The defaults: a quarter of an immunization's steps, one number for attacks, one for benign fine-tunes."""
    made = [plan.choose("immunize", "seam", knobs={"steps": n}) for n in (300, 3, 1)]
    assert [plan.one(choice).evaluate_every for choice in made] == [75, 1, 1]
    assert plan.one(plan.choose("immunize", "lox")).evaluate_every == 0  # an edit
    assert plan.one(plan.choose("attack", "harmful-sft")).evaluate_every == 10
    assert plan.one(plan.choose("finetune", "benign-sft")).evaluate_every == 5
    assert plan.one(plan.choose("finetune", "benign-sft"), evaluate_every=0).evaluate_every == 0
    (given,) = grid.expand('evaluate_every = 0\n[[attack]]\nmethod = "harmful-sft"', "mine")
    assert given.evaluate_every == 0


def test_only_the_planner_makes_specs() -> None:
    files = [*(ROOT / "immunelab").rglob("*.py"), *(ROOT / "pages").glob("*.py")]
    makers = {p.relative_to(ROOT).as_posix() for p in files if "RunSpec(" in p.read_text(encoding="utf-8")}
    recorded = "immunelab/recording/elsewhere.py"  # of runs that nobody plans here
    assert makers == {"immunelab/sweep/plan.py", recorded}


def recorded_specs() -> pd.DataFrame:
    return pd.read_parquet(bundled.data() / "showcase" / "runs.parquet", columns=["run_id", "spec", "spec_hash"])


def test_every_shipped_run_is_still_planned_with_its_hash() -> None:
    shipped = recorded_specs()
    for row in shipped.itertuples():
        assert RunSpec.from_json(str(row.spec)).hash == row.spec_hash
    hashes: list[str] = []
    for spec in showcase_specs([0, 1, 2]):
        if spec.model.startswith("run:#"):
            spec = dataclasses.replace(spec, parent_hash=hashes[int(spec.model.removeprefix("run:#"))])
        hashes.append(spec.hash)
    assert sorted(hashes) == sorted(shipped["spec_hash"])


def test_the_runs_of_a_home_of_before_are_found(home: Path) -> None:
    """A home that holds the shipped runs of SEAM's first seed: the demo, and a grid, carry out none of them again."""
    shipped = [RunSpec.from_json(str(s)) for s in recorded_specs()["spec"]]
    named = dict(zip(recorded_specs()["run_id"], shipped, strict=True))
    wanted = [h.hash for h in shipped if h.seed == 0 and h.corpus == "fable" and h.kind in ("immunize", "attack")]
    ids: dict[str, str] = {}  # of a shipped run: its copy
    for old, spec in sorted(named.items(), key=lambda pair: bool(pair[1].parent)):
        if spec.hash in wanted and (spec.method == "seam" or not spec.parent or named[spec.parent].method == "seam"):
            if spec.parent:
                spec = dataclasses.replace(spec, model=f"run:{ids[spec.parent]}", parent=ids[spec.parent])
            folder = RunFolder.create(home, spec)
            folder.write_status(status="done")
            (folder.checkpoints / "step-000300").mkdir()
            ids[old] = folder.run_id
    text = '[[defense]]\nmethod = "seam"\n[[attack]]\nmethod = "harmful-sft"\nrung = "all"'
    for specs in (plan.demo_specs((0,)), grid.expand(text, "mine")):
        assert {p.state for p in jobs.plan(specs, home)} == {"done"}


def test_what_does_not_change_the_weights_does_not_keep_them_from_being_used(home: Path) -> None:
    choice = plan.choose("immunize", "seam")
    old = recorded.record(home, plan.one(choice, evaluate_every=0, evaluations=("refusal-rate",)))
    (old.checkpoints / "step-000300").mkdir()
    attack = plan.choose("attack", "harmful-sft", rung="0.001")
    wanted = plan.crossed([choice], [attack], seeds=[0], control=False)
    first = jobs.submit(wanted, home, start=False, reuse=True, go_on=True)
    assert first[0] == old.run_id
    child = RunFolder.open(home, first[1]).spec()
    assert (child.parent, child.parent_hash) == (old.run_id, old.spec().hash)
    assert jobs.submit(wanted, home, start=False, reuse=True, go_on=True) == first
    # Alone it is wanted for its curve, which the old one has not got.
    assert [p.state for p in jobs.plan(wanted[:1], home)] == ["new"]
    # An equal run comes before one that only leaves the same weights.
    equal = recorded.record(home, wanted[0])
    (equal.checkpoints / "step-000300").mkdir()
    assert jobs.plan(wanted, home)[0].run_id == equal.run_id
    # Other weights are other weights.
    for changed in ({"seed": 1}, {"dtype": "bf16"}, {"knobs": {**choice.knobs, "steps": 299}}, {"device": "cpu"}):
        other = dataclasses.replace(wanted[0], **changed)
        assert other.weights_hash != wanted[0].weights_hash
        assert jobs.plan([other, wanted[1]], home)[0].state == "new"


def test_labels_and_measuring_are_all_that_the_weights_do_not_depend_on() -> None:
    spec = plan.one(plan.choose("immunize", "seam"))
    same = {"evaluations": ("x",), "evaluate_every": 1, "layers_every": 1, "probe_every": 1, "checkpoint_every": 1}
    same |= {"judge": "x", "name": "x", "group": "x", "parent": "x", "keep": "none"}
    other = {"kind": "attack", "method": "sdd", "knobs": {}, "model": "x", "corpus": "x", "seed": 1, "device": "cpu"}
    other |= {"dtype": "bf16", "attention": "eager", "parent_hash": "x", "recorded_by": "x"}
    assert {*same, *other} == {field.name for field in dataclasses.fields(RunSpec)}
    for name, value in (same | other).items():
        changed = dataclasses.replace(spec, **{name: value})
        assert (changed.weights_hash == spec.weights_hash) == (name in same), name
        assert (changed.hash == spec.hash) == (name in (*LABELS, "keep")), name


def test_a_full_disk_is_told_before_anything_is_written(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "_free", lambda place: 1_000_000)
    specs = plan.demo_specs((0,))
    with pytest.raises(UserError, match=r"The weights that 13 runs leave take .* 1 MB are free"):
        jobs.submit(specs, home, start=False)
    assert not folders(home)
    few = [dataclasses.replace(spec, keep="none") for spec in specs]
    with pytest.raises(UserError, match="The weights that 1 runs leave"):  # the attacks start from SEAM's
        jobs.submit(few, home, start=False)


def test_checking_a_list_needs_no_torch(home: Path) -> None:
    code = (
        "import sys\nfrom immunelab import jobs\nfrom immunelab.lab import Lab\n"
        "from immunelab.sweep import demo_specs\n"
        f"jobs.submit(demo_specs((0,)), {str(home)!r}, start=False)\n"
        f"Lab({str(home)!r}).spec('immunize', 'seam')\nsys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert len(folders(home)) == 13


def test_a_spec_from_a_file_is_checked_too(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "specs.json"
    file.write_text(json.dumps([{"kind": "attack", "method": "harmful-sft", "knobs": {"samples": 5000}}]))
    assert cli.main(["run", str(file), "--home", str(home)]) == 2
    assert "wants 5000 harmful rows" in capsys.readouterr().err
    assert not folders(home)
