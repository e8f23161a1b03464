"""From a wish to specs: the only code that makes them, so that the same wish is the same run whoever asks.

Command line, pages, `lab`, grid files, the demo, the showcase and searches call `one` for a run, `crossed` for
defenses × attacks × seeds, `joined` to put lists together. In a list, the model `run:#k` is what its k-th run makes,
counted from 0; `jobs.submit` resolves it. Methods are read from the catalogue, so nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from immunelab.errors import UserError, unknown
from immunelab.method import catalogue
from immunelab.runs.spec import KIND_OF_METHOD, CorpusName, RunSpec, corpus_place, place

# Steps between evaluations, for whoever does not say; an immunization is evaluated at each quarter.
EVALUATE_EVERY = {"attack": 10, "finetune": 5}
METHODS = {**KIND_OF_METHOD, "evaluate": "evaluation"}  # kind of run: kind of its method


@dataclasses.dataclass(frozen=True)
class Choice:
    """A method with all of its settings, the kind of run that it is carried out as, and a label for it."""

    kind: str
    method: str
    knobs: Mapping[str, Any]
    name: str = ""


def choose(
    kind: str,
    method: str,
    corpus: str = "fable",
    *,
    preset: str | None = None,
    rung: str | None = None,
    knobs: Mapping[str, Any] | None = None,
    name: str = "",
) -> Choice:
    """A method for a run of `kind`, its settings filled in; knobs, which may be texts, go on top.

    `rung` names a step of the attack's ladder. Without it and without a preset the method's settings for the corpus
    are taken (`suited`): what suits a model of 7 billion parameters does nothing to Fable's. A UserError says what
    does not fit.
    """
    if kind not in METHODS:
        raise unknown("kind of run with a method", kind, METHODS)
    entry, values = catalogue.entry(METHODS[kind], method), dict(knobs or {})
    if rung:
        if preset:
            raise UserError("A rung and a preset both name settings: give one, and knobs on top of it.")
        ladder = rungs(method, corpus)
        if rung not in ladder:
            raise unknown(f"rung of {method} for the corpus {corpus}", rung, ladder)
        values = {**ladder[rung], **values}
    elif preset is None:
        preset = suited(kind, method, corpus)
    return Choice(kind, method, entry.settings(values, preset or ""), name)


def one(choice: Choice, *, evaluate_every: int | None = None, **where: Any) -> RunSpec:
    """A choice as a run; `where` takes the other fields of a spec: model, corpus, seed, device, dtype, group, …"""
    if evaluate_every is None:
        evaluate_every = every(choice.kind, choice.knobs)
    named = {"name": choice.name, **where}
    for field, form in (("model", place), ("corpus", corpus_place)):  # one folder is one model, however it is written
        if field in named:
            named[field] = form(named[field])
    return RunSpec(
        kind=choice.kind, method=choice.method, knobs=dict(choice.knobs), evaluate_every=evaluate_every, **named
    )


def every(kind: str, knobs: Mapping[str, Any]) -> int:
    """Steps between the evaluations of a run when nobody says: 0 is at its start and end only."""
    if kind == "immunize" and "steps" in knobs:  # what edits the weights has no steps
        return max(1, int(knobs["steps"]) // 4)
    return EVALUATE_EVERY.get(kind, 0)


def crossed(
    defenses: Iterable[Choice],
    attacks: Sequence[Choice],
    *,
    seeds: Iterable[int],
    model: str = "fable",
    control: bool = True,
    evaluate_every: int | None = None,
    **where: Any,
) -> list[RunSpec]:
    """For each seed: the attacks on the model as it is (the control), each immunization, and the attacks on its result.

    `evaluate_every` is that of the attacks; `where` as in `one`. Equal runs stand once.
    """
    guards = list(defenses)
    found: list[list[RunSpec]] = []
    for seed in seeds:
        where["seed"] = seed
        if control or not guards:
            found.append(on(model, attacks, evaluate_every=evaluate_every, **where))
        for guard in guards:
            made = one(guard, model=model, **where)
            found.append([made, *on("run:#0", attacks, evaluate_every=evaluate_every, **where)])
    return joined(found)


def on(model: str, choices: Iterable[Choice], **where: Any) -> list[RunSpec]:
    """Several choices, each on one model; `where` as in `one`."""
    return [one(choice, model=model, **where) for choice in choices]


def joined(lists: Iterable[Sequence[RunSpec]]) -> list[RunSpec]:
    """Lists of runs as one list, in which a run that stands in several of them stands once."""
    whole: list[RunSpec] = []
    places: dict[str, int] = {}  # identity: place in the one list
    for specs in lists:
        moved: list[int] = []  # place in its own list: place in the one list
        for spec in specs:
            if spec.model.startswith("run:#"):
                spec = dataclasses.replace(spec, model=f"run:#{moved[int(spec.model.removeprefix('run:#'))]}")
            place = places.setdefault(spec.hash, len(whole))
            if place == len(whole):
                whole.append(spec)
            moved.append(place)
    return whole


def family(corpus: str) -> str:
    """What presets and ladders call a corpus: a Fable world, whole or in part, is `fable`, any other is `paper`."""
    whole = CorpusName.read(corpus).whole
    return "fable" if whole == "fable" or (Path(whole) / "world.jsonl").is_file() else "paper"


def suited(kind: str, method: str, corpus: str) -> str:
    """The preset that a method has for a corpus; empty if it has none."""
    found = family(corpus)
    return found if found in catalogue.entry(METHODS[kind], method).presets else ""


def rungs(attack: str, corpus: str) -> Mapping[str, dict[str, Any]]:
    """The ladder of an attack for a corpus, by name; outside of Fable that of SEAM's paper, for models of billions."""
    ladders = catalogue.entry("attack", attack).ladders
    return ladders.get("fable" if family(corpus) == "fable" else "seam-paper", {})


def ladder(attack: str, corpus: str = "fable", before: str = "") -> list[Choice]:
    """Every rung of an attack's ladder; `before` stands before their names."""
    return [Choice("attack", attack, knobs, f"{before}{name}") for name, knobs in rungs(attack, corpus).items()]


def learning() -> list[Choice]:
    """Benign fine-tunes on the withheld skill: every rate of the ladder, and one with stray harmful rows."""
    rates = [dataclasses.replace(c, kind="finetune") for c in ladder("benign-sft", before="learn ")]
    return [*rates, choose("finetune", "benign-sft", preset="fable-stray", name="learn stray rows")]


def demo_specs(seeds: Sequence[int] = (0,), corpus: str = "fable", group: str = "demo") -> list[RunSpec]:
    """What `immunelab demo` and the demo button run: {undefended, SEAM} × the ladder × seeds."""
    guard = choose("immunize", "seam", preset="fable", name="seam")
    return crossed([guard], ladder("harmful-sft"), seeds=seeds, corpus=corpus, group=group)
