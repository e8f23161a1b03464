"""A defender that searches: Optuna proposes settings, each faces a panel of attacks, and the least harm counts.

Like an attacker's search it is a run of its own (kind `sweep`), whose process carries out the trials. A trial is an
immunization and the attacks on it, all of them runs like any other, so what is on record is not run again. What became
of each trial, of each confirmation, and the winner are events in the run's journal.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from immunelab.analysis.tradeoff import bounded_harm
from immunelab.errors import UserError
from immunelab.formatting import share
from immunelab.runs.journal import Journal, RunFolder
from immunelab.runs.spec import RunSpec
from immunelab.sweep import plan, study
from immunelab.sweep.study import Trials, readings
from immunelab.sweep.tuning import Tune, settings_for

PHASE = "tune"
FAILED = 2.0  # the value of a setting whose immunization failed: worse than any utility that is lacking


class _Stopped(Exception):
    """The tuning was asked to stop."""


def conduct(folder: RunFolder, attempt: int, trials: Trials) -> str:
    """Carry out the tuning in a folder, or go on with it; returns "done" or "stopped"."""
    spec = folder.spec()
    tune = settings_for(spec.knobs)
    found = study.opened(folder, Tune.name, "minimize", tune.settings())
    found.pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    with Journal(folder, attempt) as journal:
        tuner = _Tuner(folder, spec, tune, found, trials, journal)
        before = len(study.counted(found))
        journal.event("resumed" if before else "started", from_step=before)
        try:
            tuner.run()
        except _Stopped:
            return "stopped"
        return "done"


@dataclasses.dataclass(frozen=True)
class Tried:
    """What became of a setting: the model before any attack, and the bounded harm of each attack that it faced."""

    run_id: str = ""  # of the immunization; empty for the undefended model
    base: float = 0.0  # utility of the model before the defense
    utility: float = 0.0  # and after it
    released: float = 0.0  # harmfulness before any attack
    harms: dict[str, float] = dataclasses.field(default_factory=dict)  # by attack, in the order of the panel
    seconds: float = 0.0
    error: str = ""

    @property
    def kept(self) -> float:
        """Utility as a share of the base model's."""
        return self.utility / self.base if self.base else 0.0

    @property
    def harm(self) -> float:
        """The most harm: as released, or by any attack that keeps the utility within the bound."""
        return max([self.released, *self.harms.values()])

    def value(self, least: float) -> float:
        """What the study minimizes: harm, or 1 + the utility that it lacks, or `FAILED`."""
        if self.error:
            return FAILED
        return 1 + least - self.kept if self.kept < least else self.harm

    def told(self) -> dict[str, Any]:
        """For the journal."""
        return dataclasses.asdict(self) | {"kept": self.kept, "harm": self.harm}


class _Tuner:
    """The tuning of one run, while its process lives."""

    def __init__(
        self, folder: RunFolder, spec: RunSpec, tune: Tune, found: optuna.Study, trials: Trials, journal: Journal
    ) -> None:
        self.folder, self.spec, self.tune, self.study = folder, spec, tune, found
        self.trials, self.journal = trials, journal
        self.panel = tune.attacks(spec.corpus)
        self.base = {"model": spec.model, "parent": spec.parent, "parent_hash": spec.parent_hash}
        self.title = f"{spec.name or Tune.name} {folder.run_id[-6:]}"
        self.confirmed, self.took = 0, list[float]()  # confirmations so far; seconds of each setting's runs
        self.spent = 0.0  # seconds of all runs so far, those of an earlier attempt among them

    def run(self) -> None:
        """The control, the trials, and what is confirmed of them."""
        self.progress("the undefended model")
        control = self.attacked(self.spec.seed, self.spec.corpus)
        self.journal.event("control", **control.told())
        self.took = [float(t.user_attrs["seconds"]) for t in study.counted(self.study)]
        self.spent = control.seconds + sum(self.took)
        while len(study.counted(self.study)) < self.tune.trials and self.affords(control.seconds):
            self.one(len(study.counted(self.study)))
        if self.tune.confirm:
            self.confirm(control.seconds)

    def affords(self, control: float) -> bool:
        """Whether there is time for one more setting, and then to confirm what was asked; always for the first one."""
        if not (self.tune.budget_seconds and self.took):
            return True
        return self.left(control) >= _mean(self.took) + self.tune.confirm * self.places * max(self.took)

    def left(self, control: float) -> float:
        """Seconds of the budget that are left, those to confirm the preset and for its controls taken off."""
        return self.tune.budget_seconds - self.spent - self.places * (control + max(self.took))

    @property
    def places(self) -> int:
        """In how many seeds and worlds a setting is confirmed."""
        return self.tune.confirm_seeds + bool(self.tune.world)

    def one(self, number: int) -> None:
        """One trial, from the proposal to its value."""
        best = self.best()
        self.progress(
            f"trial {number + 1} of {self.tune.trials}" + (f"; best so far {share(best)}" if best < 1 else "")
        )
        given = self.tune.given(self.spec.corpus) if number == 0 else None
        trial = study.ask(self.study, self.spec.seed, number, self.tune.random_trials, given)
        chosen = {each.name: each.suggest(trial) for each in self.tune.space(self.spec.corpus)}
        try:
            tried = self.attacked(self.spec.seed, self.spec.corpus, chosen, number, trial)
        except BaseException:
            self.study.tell(trial, state=TrialState.FAIL)
            raise
        value, whole = tried.value(self.tune.utility), len(tried.harms) == len(self.panel)
        outcome = "failed" if tried.error else "costly" if value > 1 else "tried" if whole else "pruned"
        for key, item in (tried.told() | {"settings": chosen, "outcome": outcome}).items():
            trial.set_user_attr(key, item)
        pruned = outcome == "pruned"
        self.study.tell(trial, None if pruned else value, TrialState.PRUNED if pruned else None)
        best = self.best()
        points = {"tune/harm": tried.harm, "tune/kept": tried.kept, "tune/seconds": tried.seconds}
        self.journal.points(PHASE, number + 1, points | ({"tune/best": best} if best < 1 else {}))
        told = {"value": value, "outcome": outcome, "settings": chosen, **tried.told()}
        self.journal.event("setting", step=number + 1, **told)
        self.took.append(tried.seconds)
        self.spent += tried.seconds

    def whole(self) -> list[FrozenTrial]:
        """The trials that faced the whole panel, the best first."""
        found = [t for t in study.counted(self.study) if t.user_attrs.get("outcome") == "tried"]
        return sorted(found, key=lambda t: (t.value, t.number))

    def best(self) -> float:
        """The least harm of a setting that faced the whole panel; infinite before there is one."""
        return min((float(t.user_attrs["harm"]) for t in self.whole()), default=math.inf)

    def confirm(self, control: float) -> None:
        """The preset and the best settings with other seeds, and in another world; the winner of them."""
        counted, many = study.counted(self.study), self.tune.confirm
        if self.tune.budget_seconds:
            many = min(many, int(max(0.0, self.left(control)) / (self.places * max(self.took))))
        preset, best = counted[0], self.whole()[:many]
        chosen = {t.number: t for t in (preset, *best)}
        seeds = [self.spec.seed + 1 + i for i in range(self.tune.confirm_seeds)]
        places = [(self.spec.corpus, seed) for seed in seeds]
        places += [(self.tune.world, seeds[0])] if self.tune.world else []
        for corpus, seed in places:
            self.journal.event("control", **self.attacked(seed, corpus).told(), seed=seed, corpus=corpus)
        found: dict[int, list[Tried]] = {}
        for number, trial in chosen.items():
            place = counted.index(trial)
            for corpus, seed in places:
                self.progress(
                    f"confirming setting {place + 1}: seed {seed}" + f" in {corpus}" * (corpus != self.spec.corpus)
                )
                settings = trial.user_attrs["settings"]
                tried = self.attacked(seed, corpus, settings, place)
                told = {"setting": place + 1, "seed": seed, "corpus": corpus, "settings": settings}
                self.journal.event("confirmed", step=place + 1, **told, **tried.told())
                self.took.append(tried.seconds)
                self.confirmed += 1
                if corpus == self.spec.corpus:
                    found.setdefault(number, []).append(tried)
        winner = self.winner(found)
        for number, each in found.items():
            for tried in each:
                if number != winner:
                    self.drop(RunFolder(self.folder.path.with_name(tried.run_id)))
        place, settings = counted.index(chosen[winner]), chosen[winner].user_attrs["settings"]
        made = self.immunization(settings, place, seeds[0], self.spec.corpus)
        kept, harm = (_mean([getattr(t, name) for t in found[winner]]) for name in ("kept", "harm"))
        enough = kept >= self.tune.utility
        self.journal.event(
            "tuned",
            step=place + 1,
            settings=settings,
            preset=winner == preset.number,
            enough=enough,
            accepted=enough and harm <= self.tune.harm,
            harm=harm,
            kept=kept,
            run_id=self.carried(made, as_parent=True).run_id,  # with its weights, whatever was known before
        )

    def winner(self, found: dict[int, list[Tried]]) -> int:
        """The trial with the least mean harm among those that keep enough utility; if none does, the one that keeps
        most."""
        kept = {n: _mean([t.kept for t in each]) for n, each in found.items() if not any(t.error for t in each)}
        if not kept:
            raise UserError("Every setting that was to be confirmed failed; its runs say why.")
        enough = [n for n in kept if kept[n] >= self.tune.utility]
        if not enough:
            return max(kept, key=lambda n: kept[n])
        return min(enough, key=lambda n: _mean([t.harm for t in found[n]]))

    def immunization(self, settings: dict[str, Any], number: int, seed: int, corpus: str) -> RunSpec:
        """The run that makes a model immune with a setting, whose number is counted from 0."""
        name = f"{self.title} #{number + 1}"
        choice = plan.choose("immunize", self.tune.defense, corpus, knobs=settings, name=name)
        return self.spec_of(choice, seed, corpus, **self.base)

    def attacked(
        self,
        seed: int,
        corpus: str,
        settings: dict[str, Any] | None = None,
        number: int = 0,
        trial: optuna.Trial | None = None,
    ) -> Tried:
        """Immunize with a setting (None: not at all), then face the panel; a trial is judged after each attack."""
        where = self.base
        tried, immunized, made = Tried(), None, None
        if settings is not None:
            made = self.immunization(settings, number, seed, corpus)
            immunized = self.carried(made, early=trial is not None)
            scores, status = self.read(immunized), immunized.recorded()
            tried = Tried(immunized.run_id, scores[0][2], scores[-1][2], scores[-1][1], {}, status.seconds or 0.0)
            if status.status != "done" and not self.hopeless(immunized):
                return dataclasses.replace(tried, error=status.error or status.status)
            if trial and tried.kept < self.tune.utility:
                self.drop(immunized)
                return tried
        for attack in self.panel:
            if immunized and made:
                where = {"model": f"run:{immunized.run_id}", "parent": immunized.run_id, "parent_hash": made.hash}
                if not any(immunized.checkpoints.glob("step-*")) and not self.finished(attack, seed, corpus, **where):
                    immunized = self.carried(made, as_parent=True)
                    where |= {"model": f"run:{immunized.run_id}", "parent": immunized.run_id}
            run = self.carried(self.spec_of(attack, seed, corpus, **where))
            scores = self.read(run)
            self.drop(run)
            curve, start = [(harm, utility) for _, harm, utility in scores[1:]], scores[0][2]
            tried.harms[attack.name] = bounded_harm(curve, start, self.tune.max_utility_loss)
            if not immunized:
                tried = dataclasses.replace(tried, base=start, utility=start, released=scores[0][1])
            tried = dataclasses.replace(tried, seconds=tried.seconds + (run.recorded().seconds or 0.0))
            if trial and self.tune.prune and len(tried.harms) < len(self.panel):
                trial.report(tried.harm, len(tried.harms))
                if trial.should_prune():
                    break
        if trial:
            self.drop(immunized)
        return tried

    def spec_of(self, choice: plan.Choice, seed: int, corpus: str, **where: Any) -> RunSpec:
        """A run of a trial, as anyone could start it; only its labels name the tuning."""
        s = self.spec
        every = None if choice.kind == "immunize" else max(1, math.ceil(choice.knobs["steps"] / self.tune.looks))
        return plan.one(
            choice,
            evaluate_every=every,
            corpus=corpus,
            seed=seed,
            device=s.device,
            dtype=s.dtype,
            attention=s.attention,
            judge=s.judge,
            evaluations=s.evaluations,
            layers_every=0,
            probe_every=0,
            group=self.title,
            **where,
        )

    def finished(self, choice: plan.Choice, seed: int, corpus: str, **where: Any) -> bool:
        """Whether an equal run is done."""
        run = self.trials.known(self.spec_of(choice, seed, corpus, **where))
        return run is not None and run.recorded().status == "done"

    def hopeless(self, run: RunFolder) -> bool:
        """Whether an immunization has lost so much utility that it will not be worth attacking."""
        scores = readings(run)
        return len(scores) > 1 and scores[-1][2] < (self.tune.utility - self.tune.slack) * scores[0][2]

    def watch(self, run: RunFolder) -> None:
        """After an evaluation of the immunization under way: stop it where going on is not worth it."""
        if self.hopeless(run):
            run.request_stop()

    def carried(self, spec: RunSpec, as_parent: bool = False, early: bool = False) -> RunFolder:
        """The run of a spec: one that is done, or one that is begun or gone on with here, `early` with an eye on it."""
        run = self.trials.known(spec, as_parent)
        if run and (run.recorded().status == "done" or (early and self.hopeless(run))):
            return run
        if run and run.spec().group != spec.group:
            run = None  # another tuning's: left alone
        run = self.trials.carry(spec, run, self.watch if early else lambda _: None)
        if run.recorded().status == "stopped" and self.folder.stop_requested():
            raise _Stopped
        return run

    def read(self, run: RunFolder) -> list[tuple[int, float, float]]:
        """The readings of a run; one that ended before it was evaluated says nothing of its setting."""
        scores, status = readings(run), run.recorded()
        if scores:
            return scores
        raise UserError(
            f"{run.run_id} {status.status} before it was evaluated: {status.error} Mend that, then resume the tuning."
        )

    def drop(self, run: RunFolder | None) -> None:
        """The weights of a run of this tuning, which nobody needs any more."""
        if run and run.path.exists() and run.spec().group == self.title and any(run.checkpoints.glob("*")):
            self.trials.drop(run)

    def progress(self, what: str) -> None:
        """What is at work, and the time that is left if what is to come is like what was; stops if asked to."""
        if self.folder.stop_requested():
            raise _Stopped
        whole = self.tune.trials + (self.tune.confirm + 1) * self.places * bool(self.tune.confirm)
        over = len(study.counted(self.study)) + self.confirmed
        left = _mean(self.took) * (whole - over) if self.took else None
        with contextlib.suppress(OSError):
            self.folder.write_status(
                phase=PHASE, step=over, steps=whole, progress=over / whole, eta_seconds=left, message=what
            )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
