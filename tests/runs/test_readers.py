"""The readers of journals, specs, statuses and labels, on whatever hypothesis comes up with."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import fuzz
from immunelab.errors import UserError
from immunelab.runs.journal import Journal, RunFolder
from immunelab.runs.spec import RunSpec
from immunelab.store import ingest

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
trees = st.recursive(scalars, lambda t: st.lists(t, max_size=4) | st.dictionaries(st.text(max_size=8), t, max_size=4))
mixed = st.sampled_from(sorted(fuzz.FIELDS))
quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@quick
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    fuzz.read(data)


@pytest.mark.slow
@quick
@given(st.dictionaries(mixed | st.text(max_size=8), trees, max_size=8))
def test_any_object(data: dict[str, Any]) -> None:
    fuzz.read(json.dumps(data).encode())


@quick
@given(st.sampled_from(fuzz.SEEDS), mixed, trees)
def test_one_field_of_a_good_one_is_off(seed: dict[str, Any], name: str, value: Any) -> None:
    fuzz.read(json.dumps(seed | {name: value}).encode())


finite = st.floats(allow_nan=False, allow_infinity=False, width=64)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


@quick
@given(st.dictionaries(names, finite, min_size=1, max_size=6), st.integers(0, 10**9))
def test_what_a_journal_writes_is_read_back_exactly(tmp_path_factory: Any, values: dict[str, float], step: int) -> None:
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    with Journal(folder) as journal:
        journal.points("attack", step, values)
    rows: list[tuple[Any, ...]] = []
    ingest.parse("run", 0, folder.journal_path.read_bytes().rstrip(b"\n"), lambda _, row: rows.append(row))
    assert {row[4]: row[5] for row in rows} == values
    assert {row[3] for row in rows} == {step}


@quick
@given(st.dictionaries(names, finite | st.booleans() | names, max_size=5), st.integers(0, 2**31 - 1))
def test_a_spec_is_the_same_after_reading(knobs: dict[str, Any], seed: int) -> None:
    with contextlib.suppress(UserError):
        spec = RunSpec(kind="attack", method="harmful-sft", knobs=knobs, seed=seed)
        again = RunSpec.from_json(spec.to_json())
        assert again == spec
        assert again.hash == spec.hash
