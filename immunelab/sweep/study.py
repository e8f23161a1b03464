"""What searches of attackers and of defenders share: a study that can be gone on with, and trials that are runs.

The study lies in the sweep's folder (`study.log`, Optuna's journal) with the space. The k-th proposal is made by a
sampler seeded with (seed, k) from the trials that counted before, so a killed search goes on with the same trials, and
an equal search has equal trials.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from immunelab.runs.journal import RunFolder
from immunelab.runs.spec import RunSpec

STUDY = "study.log"
COUNTED = (TrialState.COMPLETE, TrialState.PRUNED)


class Trials(Protocol):
    """Where trials are carried out (`jobs.trials.Trials`)."""

    def known(self, spec: RunSpec, as_parent: bool = False) -> RunFolder | None:
        """The run of an equal spec that has ended, a finished one first; `as_parent`: one whose weights are there."""

    def carry(self, spec: RunSpec, earlier: RunFolder | None, watch: Callable[[RunFolder], None]) -> RunFolder:
        """Carry out a trial, or go on with an earlier attempt; its folder once it has ended."""

    def drop(self, folder: RunFolder) -> None:
        """Delete the checkpoints of an ended trial."""


def opened(
    folder: RunFolder, name: str, direction: Literal["minimize", "maximize"], space: Mapping[str, Any]
) -> optuna.Study:
    """The study of a sweep, new or as it was left. A trial whose process died is marked failed, and tried again."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path, spec = folder.path / STUDY, folder.spec()
    for stale in folder.path.glob(f"{STUDY}.lock*"):
        stale.unlink()  # its holder is dead: only one process carries a run
    storage = JournalStorage(JournalFileBackend(str(path)))
    study = optuna.create_study(storage=storage, study_name=name, direction=direction, load_if_exists=True)
    study.set_user_attr("space", dict(space))
    study.set_user_attr("attacked", {"model": spec.model, "corpus": spec.corpus, "seed": spec.seed})
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)):
        study.tell(trial.number, state=TrialState.FAIL)
    return study


def counted(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that count, in order. Those whose process died, or that were stopped with the sweep, do not."""
    return study.get_trials(deepcopy=False, states=COUNTED)


def ask(
    study: optuna.Study, seed: int, number: int, random_trials: int, given: Mapping[str, Any] | None = None
) -> optuna.Trial:
    """The trial of that number, counted from 0: the same after the same trials, in whichever process.

    The sampler learns from the trials before once there are `random_trials`; `given` fixes parameters.
    """
    sampler: Any = optuna.samplers.TPESampler(
        seed=(seed * 1_000_003 + number) % 2**32, n_startup_trials=random_trials, constant_liar=False
    )
    if given is not None:
        sampler = optuna.samplers.PartialFixedSampler(dict(given), sampler)
    study.sampler = sampler
    return study.ask()


def readings(folder: RunFolder) -> list[tuple[int, float, float]]:
    """(step, harmfulness, utility) of a run's evaluated checkpoints, in order, as its last attempt stands.

    Where several evaluations give one metric, the first by name counts, as in the store.
    """
    found: dict[str, dict[str, dict[int, float]]] = {"harmfulness": {}, "utility": {}}
    for entry in folder.entries():
        if entry.get("kind") == "event" and entry.get("event") in ("started", "resumed"):
            kept = entry["step"] if entry["event"] == "resumed" else -1
            for by in found.values():
                for scores in by.values():
                    for step in [s for s in scores if s > kept]:
                        del scores[step]
        elif entry.get("kind") == "score" and entry.get("split") == "all" and entry.get("metric") in found:
            found[entry["metric"]].setdefault(str(entry["evaluation"]), {})[entry["step"]] = float(entry["score"])
    harm, utility = (by[min(by)] if by else {} for by in found.values())
    return [(step, harm[step], utility[step]) for step in sorted(harm.keys() & utility.keys())]
