"""A lab in Python: the pages' functions without the pages, for notebooks and scripts.

    import immunelab
    lab = immunelab.open()
    guarded = lab.immunize("seam")
    lab.attack(guarded, rung="0.001")
    lab.collapse()

Frames are pandas, figures are Plotly. Runs are carried out by a worker process, as everywhere, so nothing here imports
torch, and runs go on if the notebook does not.
"""

from __future__ import annotations

import html
import os
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from immunelab import jobs
from immunelab.errors import UserError
from immunelab.runs import journal
from immunelab.runs.spec import RunSpec

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from immunelab.analysis.outcomes import Thresholds
    from immunelab.analysis.scorecard import Scorecard
    from immunelab.analysis.verdicts import Limits
    from immunelab.store import Store

APP = "http://127.0.0.1:8501"  # where `immunelab app` opens it


class RunId(str):
    """A run's id, a text, which a notebook shows with what the run is and a link into the app."""

    home: Path

    def __new__(cls, run_id: str, home: Path) -> RunId:
        """`home` is the lab's."""
        made = super().__new__(cls, run_id)
        made.home = home
        return made

    def _repr_html_(self) -> str:
        from immunelab.jobs import follow

        folder = journal.RunFolder.open(self.home, str(self))
        said = html.escape(f"{follow.title(folder)}: {folder.status().status}")
        return f'<div>{said} <a href="{_link("runs", run=str(self))}">{html.escape(str(self))}</a></div>'


class Lab:
    """The runs of a home, and how to make more. `home` None takes IMMUNELAB_HOME, or ./lab."""

    def __init__(self, home: Path | str | None = None) -> None:
        self.home = journal.home(home)

    def __repr__(self) -> str:
        return f"Lab({str(self.home)!r})"

    def _repr_html_(self) -> str:
        """In a notebook: how many runs there are, the newest, and links into the app."""
        from immunelab.store import queries

        store = self.store
        shipped = store.rows("SELECT count(*) AS n FROM runs WHERE showcase")[0]["n"]
        states = store.rows("SELECT kind, status, count(*) AS n FROM runs WHERE NOT showcase GROUP BY ALL ORDER BY ALL")
        own = ", ".join(f"{row['n']} × {row['kind']} {row['status']}" for row in states)
        pages = " · ".join(f'<a href="{_link(page)}">{page or "overview"}</a>' for page in ("", "runs", "collapse"))
        newest = [RunId(row["run_id"], self.home)._repr_html_() for row in queries.newest(store, limit=5)]
        return (
            f"<p><b>ImmuneLab</b> in {html.escape(str(self.home))}: {html.escape(own) or 'no runs of its own'}; "
            f"{shipped} that ship. In the app (<code>immunelab app</code>): {pages}</p>{''.join(newest)}"
        )

    def sql(self, query: str) -> pd.DataFrame:
        """One read-only query on the store. Tables: runs, points, layer_points, scores, examples, checkpoints."""
        return self.store.query(query)

    @property
    def store(self) -> Store:
        """The store, with everything taken in that journals hold by now."""
        from immunelab.store import Store

        jobs.reconcile(self.home)
        store = Store(self.home)
        store.sync(force=True)
        return store

    # --- making runs

    def immunize(self, method: str = "seam", **options: Any) -> RunId:
        """Make a model immune; returns the run's id. Options: those of `spec`, `wait`, and any knob of the method."""
        return self.start("immunize", method, **options)

    def attack(self, model: str = "fable", method: str = "harmful-sft", **options: Any) -> RunId:
        """Attack a model: `fable`, a Hub id, a folder, or the id of a run. Options as in `immunize`, and `rung`."""
        return self.start("attack", method, model=model, **options)

    def finetune(self, model: str = "fable", method: str = "benign-sft", **options: Any) -> RunId:
        """Fine-tune a model on benign rows, to measure trainability. Options as in `attack`."""
        return self.start("finetune", method, model=model, **options)

    def evaluate(self, method: str, model: str = "fable", **options: Any) -> RunId:
        """Measure a model with one evaluation, such as `task-accuracy`. Options: those of `spec`, `wait`, its knobs."""
        return self.start("evaluate", method, model=model, **options)

    def start(self, kind: str, method: str, *, wait: bool = True, **options: Any) -> RunId:
        """Queue one run, as `spec` describes it, and with `wait` follow it to its end with a progress bar."""
        return self.submit([self.spec(kind, method, **options)], wait)[0]

    def search(
        self,
        model: str,
        *,
        seeds: Sequence[int] = (0,),
        control: bool = True,
        wait: bool = True,
        corpus: str = "fable",
        device: str = "auto",
        dtype: str = "fp32",
        attention: str = "auto",
        name: str = "",
        **settings: Any,
    ) -> list[str]:
        """Search for the worst attack on a model, with `control` on the undefended one too; the searches' run ids.

        `settings`: trials, max_utility_loss, budget_rows, budget_seconds, prune, and the ranges (`sweep.space.Search`).
        A finished equal search is not run again, an unfinished one is gone on with.
        """
        from immunelab.jobs import follow
        from immunelab.sweep import space

        model = follow.model(model, self.home)
        models = [*dict.fromkeys([space.undefended(model, self.home), model])] if control else [model]
        chosen = space.settings_for(corpus, settings)
        specs = space.search_specs(models, seeds, corpus, chosen, device, name, dtype=dtype, attention=attention)
        run_ids = jobs.submit(specs, self.home, reuse=True, go_on=True)
        if wait:
            self.wait(run_ids)
        return run_ids

    def tune(
        self,
        defenses: Sequence[str] | str,
        *,
        model: str = "fable",
        corpus: str = "fable",
        seed: int = 0,
        wait: bool = True,
        device: str = "auto",
        dtype: str = "fp32",
        attention: str = "auto",
        name: str = "",
        **settings: Any,
    ) -> list[str]:
        """Search for the settings of each defense that stand a panel of attacks best; the tunings' run ids.

        `settings`: trials, panel, vary, utility, confirm, world and others (`sweep.tuning.Tune`). What came of it:
        `tunings`. A finished equal tuning is not run again, an unfinished one is gone on with.
        """
        from immunelab.jobs import follow
        from immunelab.sweep import tuning

        numbers = {"dtype": dtype, "attention": attention}
        base = follow.model(model, self.home)
        specs = tuning.tune_specs(_list(defenses), base, corpus, seed, settings, device, name, **numbers)
        run_ids = jobs.submit(specs, self.home, reuse=True, go_on=True)
        if wait:
            self.wait(run_ids)
        return run_ids

    def tunings(self, run_id: str) -> pd.DataFrame:
        """What a tuning tried: one row a setting, as `analysis.tuning.settings_table` describes."""
        from immunelab.analysis import tuning
        from immunelab.store import queries

        return tuning.settings_table(queries.tunings(self.store, [run_id]))

    def submit(self, specs: Sequence[RunSpec], wait: bool = True) -> list[RunId]:
        """Queue runs, one after another in one process. `run:#k` as a model is the k-th run of the list."""
        run_ids = [RunId(run_id, self.home) for run_id in jobs.submit(list(specs), self.home)]
        if wait:
            self.wait(run_ids)
        return run_ids

    def spec(
        self,
        kind: str,
        method: str,
        *,
        model: str = "fable",
        corpus: str = "fable",
        seed: int = 0,
        preset: str | None = None,
        rung: str | None = None,
        evaluate_every: int | None = None,
        device: str = "auto",
        dtype: str = "fp32",
        attention: str = "auto",
        keep: str = "last",
        name: str = "",
        **knobs: Any,
    ) -> RunSpec:
        """One run as a spec: kind is immunize, attack, finetune or evaluate.

        `preset` None takes the corpus's own settings of the method, as the command line does; `rung` names a step of
        the attack's ladder; knobs go on top. `model` may be a run's id or its end, or `run:last`; `evaluate_every` None
        is 10 steps for attacks, 5 for benign fine-tunes, a quarter of all for immunizations. `keep`: which weights stay
        on the disk, none, last or all.
        """
        from immunelab.jobs import follow
        from immunelab.sweep import plan

        return plan.one(
            plan.choose(kind, method, corpus, preset=preset, rung=rung, knobs=knobs, name=name),
            model=follow.model(model, self.home),
            corpus=corpus,
            seed=seed,
            device=device,
            dtype=dtype,
            attention=attention,
            keep=keep,
            evaluate_every=evaluate_every,
        )

    def wait(self, run_ids: Sequence[str]) -> None:
        """Follow runs to their end with a progress bar. Interrupting stops them, each with a checkpoint."""
        from immunelab.jobs import follow

        for run_id, status in follow.follow(list(run_ids), self.home).items():
            if status.status in ("failed", "interrupted"):
                raise UserError(f"The run {run_id} {status.status}: {status.error or 'its process is gone'}")

    # --- reading runs

    def runs(self, showcase: bool | None = None) -> pd.DataFrame:
        """One row a run; `showcase` True: only shipped ones, False: only this home's."""
        from immunelab.store import queries

        return queries.runs(self.store, showcase)

    def points(
        self, run_ids: Sequence[str] | str, names: Sequence[str] | None = None, phase: str | None = None
    ) -> pd.DataFrame:
        """Scalars of runs: run_id, phase, step, name, value, low, high, at; `names` None takes all."""
        from immunelab.store import queries

        store, ids = self.store, _list(run_ids)
        wanted = queries.names(store, ids)["name"].unique().tolist() if names is None else _list(names)
        return queries.points(store, ids, wanted, phase=phase)

    def scores(self, run_ids: Sequence[str] | str, parts: bool = False) -> pd.DataFrame:
        """Evaluations along runs; with `parts` those of single skills and domains too."""
        from immunelab.store import queries

        return queries.scores(self.store, _list(run_ids), splits=None if parts else ("all",))

    def tasks(self, run_ids: Sequence[str] | str) -> pd.DataFrame:
        """Accuracy on labelled tasks before (ZS) and after (FS) a fine-tuning: one row a run and task."""
        from immunelab.analysis import tasks

        return tasks.before_and_after(self.runs(), self.scores(run_ids, parts=True))

    def curves(self, run_ids: Sequence[str] | None = None, **choice: Any) -> pd.DataFrame:
        """One row per attack run and checkpoint, of runs that may be drawn together.

        `choice` selects by settings, such as learning_rate=1e-3 or defense=["undefended", "seam"], and by subject: the
        base model with its corpus, which this lab's own runs decide where it is not told.
        """
        from immunelab.analysis import collapse
        from immunelab.store import queries

        store = self.store
        curves = queries.attack_curves(store)
        subject = choice.pop("subject", None)
        run_ids = None if run_ids is None else _list(run_ids)
        if run_ids is not None:
            subjects = curves.loc[curves["run_id"].isin(run_ids), "subject"]
            curves = curves[curves["subject"].isin(subjects)]
        subject = subject or _subject(curves, told=run_ids is not None)
        # Defenses are told apart among all recorded ones, so that a name does not depend on what else is shown.
        found = collapse.select(collapse.comparable(curves, subject, run_ids or ()), choice)
        return found if run_ids is None else found[found["run_id"].isin(run_ids)]

    # --- figures

    def traces(
        self,
        run_ids: Sequence[str] | str,
        names: Sequence[str],
        phase: str | None = None,
        x: str = "step",
        groups: Mapping[str, str] | None = None,
        **look: Any,
    ) -> go.Figure:
        """Scalars against steps, as on the Traces page; `groups` (run id → group) draws bands over runs.

        `look`: labels, smoothing, log_x, log_y, theme, columns, as `ui.scalar_traces` takes them.
        """
        from immunelab.analysis import traces
        from immunelab.figures.traces import scalar_traces

        points = traces.with_x(self.points(run_ids, names, phase), x, self.runs())
        if groups is not None:
            points = traces.bands(points, groups)
        return scalar_traces(points, x_title=traces.AXES[x], **({"labels": {}} | look))

    def collapse(
        self,
        run_ids: Sequence[str] | None = None,
        x: str = "step",
        thresholds: Thresholds | None = None,
        theme: Any = "light",
        at: float | None = None,
        **choice: Any,
    ) -> go.Figure:
        """The collapse curve against steps, or against a setting of the attack such as x="learning_rate".

        Without `run_ids` it is of one attack: settings that are not chosen have the value that most runs have. Against
        steps it then has a slider over the recorded learning rates, which needs no kernel.
        """
        from immunelab.analysis import collapse
        from immunelab.analysis.outcomes import Thresholds, run_outcomes
        from immunelab.figures.collapse import collapse_curve, intensity_sliders, over_intensities
        from immunelab.figures.sliders import in_figure

        limits, curves = thresholds or Thresholds(), self._some(run_ids, choice)
        if run_ids is None and x == "step":
            ladder = collapse.one_attack(curves, "learning_rate", choice)
            sliders = {k: v for k, v in intensity_sliders(ladder).items() if k == "learning_rate"}
            if sliders:
                usual = collapse.one_attack(curves, "step", choice)
                here = {"learning_rate": float(usual["learning_rate"].iloc[0])}
                return in_figure(*over_intensities(ladder, sliders, here, "step", limits, theme))
        if run_ids is None:
            curves = collapse.one_attack(curves, x, choice)
        base = collapse.base_utility(curves)
        if x != "step":
            done = curves[curves["status"] == "done"]
            return collapse_curve(collapse.by_intensity(done, x, limits), x, limits, base, theme, at=at)
        read = run_outcomes(curves, limits)
        marks = collapse.marks(read[read["status"] == "done"])
        return collapse_curve(collapse.by_step(curves), "step", limits, base, theme, marks=marks)

    def tradeoff(
        self,
        run_ids: Sequence[str] | None = None,
        thresholds: Thresholds | None = None,
        theme: Any = "light",
        paths: bool = True,
        equal: bool = False,
        **choice: Any,
    ) -> go.Figure:
        """Harm against utility of every checkpoint, with fronts and regions; `equal` keeps attacks all models faced."""
        from immunelab.analysis import collapse, tradeoff
        from immunelab.analysis.outcomes import Thresholds
        from immunelab.analysis.variants import present
        from immunelab.figures.tradeoff import harm_against_utility

        limits, curves = thresholds or Thresholds(), self._some(run_ids, choice)
        points = tradeoff.checkpoints(curves, limits)
        points = tradeoff.faced_by_all(points, present(points)) if equal else points
        base = collapse.base_utility(curves)
        return harm_against_utility(points, tradeoff.front(points), limits, base, theme, paths)

    def budget(
        self, run_ids: Sequence[str] | None = None, by: str = "trials", loss: float = 0.2, theme: Any = "light"
    ) -> go.Figure:
        """The best harm found against the attacker's budget, at any loss of utility and at less than `loss`."""
        from immunelab.analysis import tradeoff
        from immunelab.figures.budget import budget_curves

        points = tradeoff.checkpoints(self._some(run_ids, {}))
        bounds = {"Any loss of utility": tradeoff.EVERYTHING, f"Less than {100 * loss:g}% of utility lost": loss}
        return budget_curves({title: tradeoff.budget(points, by, b) for title, b in bounds.items()}, by, theme)

    def searches(
        self,
        run_ids: Sequence[str] | None = None,
        by: str = "trial",
        bound: float = 0.2,
        theme: Any = "light",
        subject: str | None = None,
    ) -> go.Figure:
        """The best bounded harm of attackers' searches against trials, rows or seconds (`by`), defended beside not; of
        one `subject`, as `curves` takes it."""
        from immunelab.analysis import tradeoff
        from immunelab.figures.budget import search_curves
        from immunelab.store import queries

        trials = queries.searches(self.store, None if run_ids is None else _list(run_ids))
        trials = trials[(trials["bound"] - bound).abs() < 1e-9].assign(run_id=lambda f: f["search"])
        trials = trials[trials["subject"].isin([subject or _subject(trials, told=run_ids is not None)])]
        if trials.empty:
            raise UserError(f"No search with at most {bound:g} of utility lost is recorded; lab.search(…) makes one.")
        return search_curves(tradeoff.searched(trials, by), by, theme)

    def scorecard(self, of: str = "last", all_seeds: bool = False, limits: Limits | None = None) -> Scorecard:
        """The four conditions for an immunization (id, its end, or last), or for all seeds of a defense by name.

        `.frame()` is the table of verdicts; `.attacks`, `.skills`, `.domains`, `.crossings`, `.learning` are behind it.
        """
        from immunelab import reports

        store, runs = self.store, self.runs()
        chosen = reports.find(runs, of)
        return reports.of(store, reports.seeds_of(runs, chosen[0]) if all_seeds else chosen, limits)

    def export(
        self,
        path: Path | str,
        subject: str = "",
        attack: str = "",
        defenses: Sequence[str] = (),
        runs: Sequence[str] = (),
        completions: bool = False,
    ) -> int:
        """Write one HTML page, or a folder, with figures, sliders and answers that open without a lab or a network.

        Returns its bytes. Arguments and errors as in `reports.static_page`.
        """
        from immunelab.reports import static_page

        choice = static_page.Choice(subject, attack, defenses, runs, completions)
        return static_page.write(self.store, Path(path), choice)

    def export_to(
        self,
        form: str,
        path: Path | str,
        runs: Sequence[str] = (),
        completions: bool = False,
        license: str = "",
    ) -> str:
        """Write runs into a new folder for another tool (`exchange.FORMATS`: tensorboard, wandb, inspect, hub, …).

        Returns what was written, in words. Arguments and errors as in `exchange.transfer.export`.
        """
        from immunelab.exchange import transfer

        return transfer.export(self.store, form, Path(path), runs, completions, license)

    def _some(self, run_ids: Sequence[str] | None, choice: Mapping[str, Any]) -> pd.DataFrame:
        curves = self.curves(run_ids, **choice)
        if curves.empty:
            raise UserError("No recorded attack fits. lab.runs() lists what is recorded; lab.attack(…) makes one.")
        return curves


def _subject(curves: pd.DataFrame, told: bool) -> str | None:
    """What was attacked, if that is one thing: by this lab, or else by most shipped runs. If the runs were `told`, they
    all must have attacked it."""
    from immunelab.analysis import collapse

    own = curves[~curves["showcase"].astype(bool)]
    found = collapse.subjects(own if len(own) and not told else curves)
    if (told or len(own)) and len(found) > 1:
        raise UserError(
            "Attacks on several base models or corpora are recorded: say which with subject=, one of "
            f"{', '.join(map(repr, sorted(found)))}."
        )
    return found[0] if found else None


def _link(page: str, **query: str) -> str:
    """A page of the app, where it runs: IMMUNELAB_APP, or the address that it has by itself."""
    base = os.environ.get("IMMUNELAB_APP", APP).rstrip("/")
    asked = f"?{urllib.parse.urlencode(query)}" if query else ""
    return html.escape(f"{base}/{page}{asked}", quote=True)


def _list(values: Sequence[str] | str) -> list[str]:
    return [str(values)] if isinstance(values, str) else [str(value) for value in values]  # a RunId as a plain text
