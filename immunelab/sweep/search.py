"""An attacker that searches: Optuna proposes attacks, each is a run like any other, and the most harm counts.

The search is a run of its own (kind `sweep`), and its process carries out the trials, so torch is loaded once. What
became of each trial is in the run's journal, so pages need no Optuna.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from immunelab.analysis.tradeoff import bounded_harm
from immunelab.errors import UserError
from immunelab.formatting import share
from immunelab.runs.journal import Journal, RunFolder
from immunelab.runs.spec import RunSpec
from immunelab.sweep import plan, study
from immunelab.sweep.protocols import rows_of
from immunelab.sweep.space import Search, settings_for
from immunelab.sweep.study import Trials, readings

PHASE = "search"
MOST = 1.0 - 1e-12  # harmfulness that no attack can exceed


def conduct(folder: RunFolder, attempt: int, trials: Trials) -> str:
    """Carry out the search in a folder, or go on with it; returns "done" or "stopped"."""
    spec = folder.spec()
    search = settings_for(spec.corpus, spec.knobs)
    found = study.opened(folder, Search.name, "maximize", search.settings())
    with Journal(folder, attempt) as journal:
        conductor = _Conductor(folder, spec, search, found, trials, journal)
        journal.event("resumed" if conductor.counted() else "started", from_step=len(conductor.counted()))
        return conductor.run()


@dataclasses.dataclass
class Judge:
    """One attack under way: its most harm within the bound so far, and whether going on is worth it."""

    trial: optuna.Trial
    bound: float
    prune: bool
    steps: int  # of the whole attack: at the last one there is nothing left to save
    start: float = math.nan  # the attacked model's utility and harmfulness before the attack
    released: float = 0.0
    curve: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    step: int = -1
    pruned: bool = False

    @property
    def value(self) -> float:
        """The most harm within the bound so far."""
        return bounded_harm(self.curve, self.start, self.bound)

    def look(self, readings: list[tuple[int, float, float]]) -> None:
        """Take in (step, harmfulness, utility) of the checkpoints that are new, until one decides."""
        for step, harm, utility in readings:
            if self.pruned or step <= self.step:
                continue
            self.step = step
            if step == 0:
                self.start, self.released = utility, harm
                continue
            self.curve.append((harm, utility))
            self.trial.report(self.value, len(self.curve))
            self.pruned = self.prune and step < self.steps and bool(self.trial.should_prune())


class _Conductor:
    """The search of one run, while its process lives."""

    def __init__(
        self, folder: RunFolder, spec: RunSpec, search: Search, found: optuna.Study, trials: Trials, journal: Journal
    ) -> None:
        self.folder, self.spec, self.search, self.study = folder, spec, search, found
        self.trials, self.journal = trials, journal
        self.title = f"{spec.name or Search.name} {folder.run_id[-6:]}"
        # Half of the looks are always taken, since an attack that warms up slowly is not a weak one.
        self.study.pruner = optuna.pruners.MedianPruner(
            n_startup_trials=max(1, search.random_trials // 2), n_warmup_steps=search.looks // 2
        )

    def run(self) -> str:
        """Trial after trial, until a budget is spent, nothing can be gained any more, or a stop is asked for."""
        while True:
            before = self.counted()
            self.tell_progress(before)
            if self.folder.stop_requested():
                return "stopped"
            why = self.over(before)
            if not why:
                trial, method, knobs = self.propose(len(before))
                attack = plan.choose("attack", method, self.spec.corpus, knobs=knobs)
                rows = rows_of("attack", method, attack.knobs, int(attack.knobs["steps"]))
                if self.search.budget_rows and self.sum(before, "rows") + rows > self.search.budget_rows:
                    self.study.tell(trial, state=TrialState.FAIL)
                    why = f"the next trial's {rows:,} rows are more than is left of the budget"
            if why:
                self.journal.event("search over", step=len(before), reason=why)
                return "done"
            if not self.one(trial, len(before), attack):
                return "stopped"

    def over(self, before: list[FrozenTrial]) -> str:
        """Why the search has come to its end; empty if it has not."""
        if len(before) >= self.search.trials:
            return f"{len(before)} trials"
        if self.search.budget_seconds and self.sum(before, "seconds") >= self.search.budget_seconds:
            return f"{self.search.budget_seconds:g} s of trials"
        if before and max(t.value or 0.0 for t in before) >= MOST:
            return "no attack can do more harm than the best one found"
        return ""

    def propose(self, number: int) -> tuple[optuna.Trial, str, dict[str, Any]]:
        """The trial of that number, counted from 0: the same after the same trials, in whichever process."""
        given = self.search.given(plan.family(self.spec.corpus))
        fixed = given[number] if number < len(given) else None
        trial = study.ask(self.study, self.spec.seed, number, self.search.random_trials, fixed)
        return trial, *self.search.suggest(trial)

    def one(self, trial: optuna.Trial, number: int, attack: plan.Choice) -> bool:
        """One trial, from spec to verdict; False if the search was asked to stop meanwhile."""
        spec = self.trial_spec(number, attack)
        judge = Judge(trial, self.search.max_utility_loss, self.search.prune, int(attack.knobs["steps"]))
        run = self.trials.known(spec)
        finished = run is not None and run.recorded().status == "done"
        if run:  # what an equal run recorded is judged as if it were happening now
            judge.look(readings(run))
        reused = run is not None and (finished or judge.pruned)
        if run and not reused and run.spec().group != spec.group:
            run, judge = (
                None,
                dataclasses.replace(judge, start=math.nan, curve=[], step=-1),
            )  # another search's: left alone
        if run is None or not reused:
            run = self.trials.carry(spec, run, lambda trial_run: self.watch(judge, trial_run))
            judge.look(readings(run))
        status = run.recorded()
        if status.status == "stopped" and not judge.pruned and self.folder.stop_requested():
            self.study.tell(trial, state=TrialState.FAIL)
            return False
        if judge.step < 0:
            self.study.tell(trial, state=TrialState.FAIL)
            raise UserError(
                f"Trial {number + 1} ({run.run_id}) {status.status} before it was evaluated: {status.error} "
                "Mend that, then resume the search."
            )
        self.conclude(trial, number, judge, run, attack, reused)
        return True

    def watch(self, judge: Judge, run: RunFolder) -> None:
        """After an evaluation of the trial under way: judge it, and stop it where it is not worth going on."""
        judge.look(readings(run))
        if judge.pruned:
            run.request_stop()

    def trial_spec(self, number: int, attack: plan.Choice) -> RunSpec:
        """The attack of a trial, as anyone could run it; only its labels name the search."""
        s = self.spec
        return plan.one(
            attack,
            model=s.model,
            corpus=s.corpus,
            seed=s.seed,
            device=s.device,
            dtype=s.dtype,
            attention=s.attention,
            judge=s.judge,
            evaluations=s.evaluations,
            evaluate_every=max(1, math.ceil(attack.knobs["steps"] / self.search.looks)),
            layers_every=0,
            probe_every=0,
            parent=s.parent,
            parent_hash=s.parent_hash,
            group=self.title,
            name=f"{self.title} #{number + 1}",
        )

    def conclude(
        self, trial: optuna.Trial, number: int, judge: Judge, run: RunFolder, attack: plan.Choice, reused: bool
    ) -> None:
        """Record what became of a trial, in the study and in the journal, and keep only the best one's weights."""
        before, status = self.counted(), run.recorded()
        value, rows = judge.value, rows_of("attack", attack.method, attack.knobs, judge.step)
        if judge.pruned and not reused:
            say = f"pruned at step {judge.step}: below the median of the trials before it"
            run.write_status(message=say)
            run.write_labels(tags=tuple(dict.fromkeys((*run.labels().tags, "pruned"))))
        best = max((t.value or 0.0 for t in before), default=0.0)
        attributes = {
            "run_id": run.run_id,
            "rows": rows,
            "seconds": status.seconds or 0.0,
            "reused": reused,
            "error": status.error,
            "last_step": judge.step,
        }
        for key, item in attributes.items():
            trial.set_user_attr(key, item)
        self.study.tell(trial, value if not judge.pruned else None, TrialState.PRUNED if judge.pruned else None)
        if not before:
            self.journal.points(PHASE, 0, {"search/best": judge.released, "search/rows": 0.0, "search/seconds": 0.0})
        spent = {k: self.sum(before, k) + float(attributes[k]) for k in ("rows", "seconds")}  # type: ignore[arg-type]
        reached = {"search/harm": value, "search/best": max(value, best, judge.released)}
        self.journal.points(
            PHASE,
            number + 1,
            reached | {f"search/{k}": v for k, v in spent.items()} | {"search/pruned": float(judge.pruned)},
        )
        outcome = "pruned" if judge.pruned else status.status
        self.journal.event(
            "trial",
            step=number + 1,
            harm=value,
            outcome=outcome,
            method=attack.method,
            params=trial.params,
            **attributes,
        )
        self.keep_best(run, value > best or not before, reused)

    def keep_best(self, run: RunFolder, better: bool, reused: bool) -> None:
        """Of the weights that this search's own trials left, only the best trial's stay on the disk."""
        mine = [t for t in self.counted() if not t.user_attrs["reused"] and t.user_attrs["run_id"] != run.run_id]
        if not better:
            if not reused:
                self.trials.drop(run)
            return
        for trial in mine:
            other = self.folder.path.with_name(trial.user_attrs["run_id"])
            if any(other.glob("checkpoints/*")):
                self.trials.drop(RunFolder(other))

    def counted(self) -> list[FrozenTrial]:
        """The trials that count, in order."""
        return study.counted(self.study)

    def sum(self, trials: list[FrozenTrial], key: str) -> float:
        """What trials took together, of rows or seconds."""
        return float(sum(t.user_attrs[key] for t in trials))

    def tell_progress(self, before: list[FrozenTrial]) -> None:
        """Trials done, the best so far, and the time that is left if those to come are like those before."""
        n, most = len(before), self.search.trials
        best = max((t.value or 0.0 for t in before), default=0.0)
        left = self.sum(before, "seconds") / n * (most - n) if n else None
        self.folder.write_status(
            phase=PHASE,
            step=n,
            steps=most,
            progress=n / most,
            eta_seconds=left,
            message=f"trial {min(n + 1, most)} of {most}; most harm within the bound so far: {share(best)}",
        )
