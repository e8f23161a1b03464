"""A server that only shows never loads torch, and learns of a new method without a restart."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import made_up
import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "peft", "sentence_transformers", "datasets", "accelerate", "optuna")
# What each page shows after a click, so that no part stays unseen. Widgets by kind and key.
SHOW = f"""
import sys
from pathlib import Path
from streamlit.testing.v1 import AppTest

import app

def seen(what, test):
    assert not test.exception, (what, test.exception[0].value, test.exception[0].stack_trace)
    loaded = [m for m in {HEAVY} if m in sys.modules]
    assert not loaded, (what, loaded)
    return test

def page(name, **query):
    test = AppTest.from_file(f"pages/{{name}}.py", default_timeout=300)
    for key, value in query.items():
        test.query_params[key] = value
    return seen((name, query), test.run())
"""
EVERY = """
for path in sorted(Path("pages").glob("*.py")):
    page(path.stem)
for kind in ("defense", "attack", "evaluation"):
    test = page("methods", kind=kind)
    test.session_state["source"] = test.session_state["glance"] = True
    seen("source", test.run())
for view in ("Lengths", "Overlap", "Rows", "Pairs"):
    page("data", view=view)
for defense in ("none", "sdd", "tar", "security-vectors"):
    test = page("launch")
    seen(defense, test.selectbox(key="defense").set_value(defense).run())
    assert test.selectbox(key="defense").value == defense
seen("no attack", page("launch").selectbox(key="attack").set_value("none").run())
test = AppTest.from_file("immunelab/ui/main.py", default_timeout=300)
seen("the router", test.run())
"""
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
NEW = f"""
from immunelab.method import catalogue
catalogue.LOOK_AGAIN = 0
before = page("launch").selectbox(key="attack")
assert "My own attack" not in before.options
Path("immunelab/attacks/mine.py").write_text({MINE!r})
test = page("launch")
assert "My own attack" in test.selectbox(key="attack").options
test.selectbox(key="attack").set_value("mine").run()
assert "0.5" in [box.value for box in test.text_input if box.label == "Strength"]
"""


def ran(code: str, root: Path, home: Path) -> None:
    given = os.environ | {"PYTHONPATH": str(root), "IMMUNELAB_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=given, capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr[-3000:]


@pytest.mark.slow
def test_every_page_is_shown_without_torch(home: Path) -> None:
    made_up.lab(home)
    ran(SHOW + EVERY, ROOT, home)


@pytest.mark.slow
def test_a_new_method_is_offered_without_a_restart(home: Path, tmp_path: Path) -> None:
    copy = tmp_path / "clone"
    skipped = shutil.ignore_patterns("__pycache__")
    for name in ("immunelab", "pages"):
        shutil.copytree(ROOT / name, copy / name, ignore=skipped)
    shutil.copy(ROOT / "app.py", copy)
    ran(SHOW + NEW, copy, home)
