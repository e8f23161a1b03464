"""A page of the app in Streamlit's AppTest, which runs it without a browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from streamlit.testing.v1 import AppTest
from waiting import PATIENCE

from immunelab.ui import reads

ROOT = Path(__file__).resolve().parents[1]


def page(name: str, **query: Any) -> AppTest:
    """The page after its first run, under a link with these parameters."""
    reads.forget()  # the store looks at journals once a second; a test has just written some
    test = AppTest.from_file(str(ROOT / "pages" / f"{name}.py"), default_timeout=PATIENCE)
    for key, value in query.items():
        test.query_params[key] = value
    return ok(test.run())


def ok(test: AppTest) -> AppTest:
    """The page, if it raised nothing."""
    assert not test.exception, test.exception[0].value + "\n" + "\n".join(test.exception[0].stack_trace)
    return test


def without_error(test: AppTest) -> AppTest:
    """The page, if it raised nothing and shows no error."""
    assert not ok(test).error, test.error[0].value
    return test


def text(test: AppTest) -> str:
    """All that the page says in words."""
    parts = [*test.markdown, *test.caption, *test.text, *test.subheader, *test.warning, *test.error, *test.code]
    return "\n".join(str(p.value) for p in parts)


def shown(test: AppTest, component: str = "immunelab_figure") -> list[dict[str, Any]]:
    """What the page gives to its components of a name, with their sliders (`sliders`, `frames`, `at`) read."""
    found = []
    for element in test.get("bidi_component"):
        if element.proto.component_name.endswith(component):
            data = json.loads(element.proto.json or element.proto.mixed.json)
            found.append(data | json.loads(data.get("sliders", "{}")))
    return found


def answers(test: AppTest) -> list[dict[str, str]]:
    """The cards of answers where the sliders stand: title, answer, note."""
    (data,) = shown(test, "immunelab_answers")
    cards: list[dict[str, str]] = data["frames"]["|".join(data["at"])]["cards"]
    return cards
