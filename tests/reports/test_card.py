"""What a scorecard is read from: pairs of questions, prefilled answers, and runs with a domain held out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import recorded

from immunelab import corpus as corpora
from immunelab import reports
from immunelab.attacks.prefill import Prefill
from immunelab.defenses.seam import Seam
from immunelab.errors import UserError
from immunelab.experiment import execute
from immunelab.runs.journal import Journal, RunFolder
from immunelab.runs.spec import RunSpec
from immunelab.store import Store, queries

pytestmark = pytest.mark.usefixtures("home")


def synced(home: Path) -> Store:
    store = Store(home)
    store.sync(force=True)
    return store


def test_stability_of_real_runs_is_paired_by_question(home: Path, tiny_world: Path) -> None:
    def run(kind: str, method: Any, parent: RunFolder | None = None) -> RunFolder:
        of = {"model": f"run:{parent.run_id}", "parent": parent.run_id} if parent else {}
        spec = RunSpec(
            kind=kind, method=method.name, knobs=method.settings(), corpus=str(tiny_world), device="cpu", **of
        )
        folder = RunFolder.create(home, spec)
        assert execute(folder) == "done"
        folder.write_status(status="done")
        return folder

    guarded = run("immunize", Seam(learning_rate=1e-2, steps=2, batch_size=4))
    for parent in (None, guarded):
        run("attack", Prefill(prefix="procedure"), parent)
    found = reports.of(synced(home), [guarded.run_id])
    table = found.skills.set_index(["measure", "skill"])
    for measure, interval in (
        ("capability", "paired by question"),
        ("harm after a prefilled answer", "paired by question"),
        ("refusals of safe questions", "not paired"),
    ):
        row = table.loc[(measure, "all skills")]
        assert (row["interval"], row["n"]) == (interval, 1)
        assert row["questions"] > 0
        assert row["low"] <= row["change"] <= row["high"]
    assert len(table.loc["capability"]) == 7  # the mean, five skills and recipes
    stability = next(c for c in found.conditions if c.name == "stability")
    assert len(stability.runs) == 2
    assert len(stability.controls) == 1
    assert "Not measured" not in stability.missing
    assert found.fingerprints == (corpora.load(str(tiny_world)).fingerprint,)
    assert f"| data, by the hash of its rows | {found.fingerprints[0]} |" in reports.markdown(found)
    several = dataclasses.replace(found, fingerprints=("a", "b"))
    assert "a, b (it changed between runs)" in reports.markdown(several)


def held_out(home: Path, corpus: str = "fable", seed: int = 0) -> tuple[str, list[str]]:
    """An immunization on a corpus, and attacks on it and on the undefended model, each on this corpus and the rest."""
    guarded = recorded.record(home, recorded.spec("immunize", corpus=corpus, seed=seed), utility=(1.0, 1.0))
    attacks = []
    for data in {corpus, corpus.replace("hold-out", "only")}:
        for parent in (guarded, None):
            spec = recorded.spec("attack", parent, corpus=data, seed=seed)
            attacks.append(recorded.record(home, spec, utility=(1.0, 0.9)).run_id)
    return guarded.run_id, attacks


@pytest.mark.slow
def test_a_defense_is_scored_with_its_twin_that_saw_less(home: Path) -> None:
    whole, _ = held_out(home)
    part, attacks = held_out(home, "fable?hold-out=gnawer")
    store = synced(home)
    runs = queries.runs(store)
    assert reports.find(runs, "seam") == [whole]  # though the other one is newer
    assert reports.seeds_of(runs, part) == [part]
    for chosen in (whole, part):
        found = reports.of(store, [chosen])
        crossing = next(c for c in found.conditions if c.name == "generalization, cross-domain")
        assert crossing.verdict == "nothing to generalize"  # the defended model falls in its own domains
        assert {*crossing.runs, *crossing.controls} == set(attacks)
        assert found.crossings["cell"].tolist() == ["gnawer"]
    assert not set(attacks) & {i for c in reports.of(store, [whole]).conditions[:2] for i in (*c.runs, *c.controls)}


@pytest.mark.slow
def test_what_a_provider_did_is_known_from_the_record(home: Path) -> None:
    guarded = recorded.record(home, recorded.spec("immunize", method="security-vectors"))
    inside = recorded.record(home, recorded.spec("attack", guarded))
    outside = recorded.record(home, recorded.spec("attack", guarded, method="drop-vector"))
    free = recorded.record(home, recorded.spec("attack"))
    with Journal(inside) as journal:
        journal.event("provider", defense="security-vectors")
    found = reports.of(synced(home), [guarded.run_id])
    behind = {c.title: (c.runs, c.controls) for c in found.conditions if c.name == "resistance, weak"}
    assert behind == {
        "resistance, weak: through the provider": ((inside.run_id,), (free.run_id,)),
        "resistance, weak: weights in hand": ((outside.run_id,), (free.run_id,)),
    }


def test_a_scorecard_is_of_immunizations(home: Path) -> None:
    attack = recorded.record(home, recorded.spec("attack"))
    with pytest.raises(UserError, match="is of immunizations"):
        reports.of(synced(home), [attack.run_id])
