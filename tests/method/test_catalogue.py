"""The catalogue says what the classes say, renews itself where a file of a method changes, and needs no torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from immunelab.errors import UserError
from immunelab.method import catalogue, registry
from immunelab.method.registry import configure, describe, get

ROOT = Path(__file__).resolve().parents[2]
METHODS = [(kind, name) for kind in registry.FOLDERS for name in registry.names(kind)]  # type: ignore[arg-type]
MINE = '''
from dataclasses import dataclass
from typing import ClassVar

from immunelab.method import Attack, knob, register


@register("attack")
@dataclass(frozen=True, kw_only=True)
class Mine(Attack):
    """L = mine."""

    name: ClassVar[str] = "mine"
    title: ClassVar[str] = "My own attack"
    stage: ClassVar[str] = "fine-tuning"
    streams: ClassVar[tuple[str, ...]] = ("harmful",)
    strength: float = knob(0.5, "how hard", low=0, high=1)
'''


def test_the_shipped_file_is_what_the_classes_say() -> None:
    assert catalogue.SHIPPED.read_text(encoding="utf-8") == registry.catalogue(), (
        "Write it anew with: python -m immunelab.method"
    )
    assert json.loads(registry.catalogue())["broken"] == {}


@pytest.mark.parametrize(("kind", "name"), METHODS)
def test_an_entry_is_its_class(kind: Any, name: str) -> None:
    cls, entry = get(kind, name), catalogue.entry(kind, name)
    assert entry == describe(kind, cls)
    assert entry.settings({}) == cls().settings()
    assert {p: configured.settings() for p, configured in cls.presets.items()} == entry.presets
    for corpus, ladder in cls.ladders.items():
        assert {rung: configured.settings() for rung, configured in ladder.items()} == entry.ladders[corpus]
    assert entry.source.read_text(encoding="utf-8").count(f'"{name}"')
    assert json.loads(json.dumps(entry.plain()))["name"] == name


@pytest.mark.parametrize(("kind", "name"), METHODS)
def test_settings_are_those_that_the_class_gives(kind: Any, name: str) -> None:
    """With each preset and each knob at an end of its range, as a number and as a text; refusals word for word."""
    entry = catalogue.entry(kind, name)
    wishes: list[tuple[dict[str, Any], str]] = [({}, preset) for preset in ["", "nonesuch", *entry.presets]]
    wishes.append(({"nonesuch": 1}, ""))
    for knob in entry.knobs:
        if not entry.validates:  # such a class is asked in a process of its own, which takes seconds: below
            ends = [e for e in (knob.low, knob.high, *knob.choices) if e is not None] or [True, "0"]
            wishes += [({knob.name: end}, "") for end in ends] + [({knob.name: str(ends[0])}, "")]
        if knob.kind != "str":
            wishes += [({knob.name: "much"}, ""), ({knob.name: None}, "")]
    for values, preset in wishes:
        its = said(lambda v, p: configure(kind, name, v, p).settings(), values, preset)
        assert said(entry.settings, values, preset) == its


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name", "values"),
    [
        ("defense", "lisa", {"alignment_steps": 0, "user_steps": "0"}),
        ("defense", "tar", {"inner_rates": "fast"}),
        ("evaluation", "harm-classifier", {"form": "just the {answer}"}),
        ("defense", "lisa", {"alignment_steps": 3}),
    ],
)
def test_a_class_that_checks_its_settings_is_asked(kind: Any, name: str, values: dict[str, Any]) -> None:
    assert catalogue.entry(kind, name).validates
    mine, its = (
        said(f, values, "")
        for f in (catalogue.entry(kind, name).settings, lambda v, p: configure(kind, name, v, p).settings())
    )
    assert mine == its


def said(settings: Any, values: dict[str, Any], preset: str) -> Any:
    """The settings, or the sentence of the refusal; numbers as JSON tells them apart."""
    try:
        return json.dumps(settings(dict(values), preset), sort_keys=True)
    except UserError as error:
        return f"UserError: {error}"


def test_unknown_names_have_the_registrys_sentences() -> None:
    for kind, name in (("defense", "saem"), ("attack", "nonesuch"), ("spell", "seam")):
        with pytest.raises(UserError) as mine:
            catalogue.entry(kind, name)
        with pytest.raises(UserError) as its:
            get(kind, name)  # type: ignore[arg-type]
        assert str(mine.value) == str(its.value)


def test_every_recorded_score_has_words() -> None:
    metrics = catalogue.metrics()
    assert list(metrics)[:2] == ["harmfulness", "utility"]
    assert {"withheld", "perplexity", "strongreject", "harm-classifier", "harmful-answers"} <= set(metrics)
    assert metrics["strongreject"].words.startswith(catalogue.entry("evaluation", "strongreject").measure)
    assert all(metric.words for metric in metrics.values())


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package, whose methods may be changed."""
    shutil.copytree(ROOT / "immunelab", tmp_path / "immunelab", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "immunelab"


def asked(package: Path, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python with that copy; it must not have imported torch."""
    code = f"import sys\nfrom immunelab.method import catalogue\n{code}\nassert 'torch' not in sys.modules"
    given = os.environ | {"PYTHONPATH": str(package.parent), "XDG_CACHE_HOME": str(package.parent / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=package.parent,
        env=given | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr
    return done


def test_an_unchanged_copy_is_read_as_it_is(package: Path) -> None:
    done = asked(package, "print(catalogue.entry('defense', 'seam').title)")
    assert done.stdout == "SEAM: self-destructive model\n"
    assert done.stderr == ""


@pytest.mark.slow
def test_a_new_changed_and_removed_file_is_noticed(package: Path) -> None:
    file = package / "attacks" / "mine.py"
    file.write_text(MINE, encoding="utf-8")
    done = asked(package, "print(catalogue.entry('attack', 'mine').settings({'strength': '1'})['strength'])")
    assert done.stdout == "1.0\n"
    assert "attacks/mine.py" in done.stderr
    assert asked(package, "catalogue.entry('attack', 'mine')").stderr == ""  # kept in the package
    code = f"""
import pathlib, time
catalogue.LOOK_AGAIN = 0
file = pathlib.Path({str(file)!r})
file.write_text(file.read_text().replace("My own", "Her own"))
print(catalogue.entry("attack", "mine").title)
file.unlink()
print("mine" in catalogue.names("attack"))
"""
    done = asked(package, code)
    assert done.stdout == "Her own attack\nFalse\n"
    assert (package / "method" / "catalogue.json").read_bytes() == catalogue.SHIPPED.read_bytes()


@pytest.mark.slow
def test_a_broken_file_is_named_and_the_rest_goes_on(package: Path) -> None:
    (package / "defenses" / "my_own.py").write_text("import nonesuch_package\n", encoding="utf-8")
    code = """
from immunelab.errors import UserError
print(catalogue.entry("defense", "seam").title)
print(*catalogue.problems())
for name in ("my-own", "saem"):
    try:
        catalogue.entry("defense", name)
    except UserError as error:
        print(error)
"""
    done = asked(package, code)
    title, problem, again, unknown = done.stdout.splitlines()
    assert title == "SEAM: self-destructive model"
    assert (
        problem
        == again
        == ("immunelab/defenses/my_own.py can't be imported: ModuleNotFoundError: No module named 'nonesuch_package'")
    )
    assert "Did you mean 'seam'" in unknown
    assert problem in done.stderr
    assert asked(package, "catalogue.entry('defense', 'seam')").stderr == ""  # and not tried again


@pytest.mark.slow
def test_where_nothing_can_be_imported_the_old_catalogue_stays(package: Path) -> None:
    contract = package / "method" / "registry.py"
    contract.write_text(contract.read_text(encoding="utf-8") + "\n# changed\n", encoding="utf-8")
    (package / "defenses" / "hasty.py").write_text("import os; os._exit(3)\n", encoding="utf-8")
    done = asked(package, "print(catalogue.entry('defense', 'seam').title)\nprint(*catalogue.problems()[:1])")
    assert done.stdout.splitlines()[0] == "SEAM: self-destructive model"
    assert "can't be read" in done.stdout


@pytest.mark.slow
def test_a_package_that_can_not_be_written_keeps_it_in_the_cache(package: Path) -> None:
    (package / "attacks" / "mine.py").write_text(MINE, encoding="utf-8")
    shipped = package / "method" / "catalogue.json"
    before = shipped.read_bytes()
    forbid = f"""
import pathlib, tempfile
make = tempfile.mkstemp
def mkstemp(dir=None, **rest):
    if pathlib.Path(dir or "/") == pathlib.Path({str(package / "method")!r}):
        raise PermissionError(dir)
    return make(dir=dir, **rest)
tempfile.mkstemp = mkstemp
"""
    assert asked(package, f"{forbid}\ncatalogue.entry('attack', 'mine')").stderr
    assert shipped.read_bytes() == before
    assert len(list((package.parent / "cache" / "immunelab").glob("*.json"))) == 1
    assert asked(package, "catalogue.entry('attack', 'mine')").stderr == ""


@pytest.mark.slow
def test_two_processes_renew_at_once(package: Path) -> None:
    (package / "attacks" / "mine.py").write_text(MINE, encoding="utf-8")
    code = "from immunelab.method import catalogue; print(catalogue.entry('attack', 'mine').title)"
    two = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=package.parent,
            env=os.environ | {"PYTHONPATH": str(package.parent)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    assert [process.communicate()[0] for process in two] == ["My own attack\n"] * 2
    assert json.loads((package / "method" / "catalogue.json").read_text(encoding="utf-8"))["format"] == 1
    assert not list((package / "method").glob(".catalogue-*"))
