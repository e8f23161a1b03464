"""What is recorded about a defense: which immunizations a person means, and everything that their scorecard reads."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from immunelab.analysis import collapse, paired
from immunelab.analysis.scorecard import Evidence, Scorecard, by_access, score
from immunelab.analysis.stability import CAPABILITY, PREFILLED, REFUSALS, WHOLE
from immunelab.analysis.verdicts import Limits
from immunelab.errors import UserError, unknown
from immunelab.runs.journal import meant
from immunelab.runs.spec import CorpusName, base_name
from immunelab.store import Store, queries

PAIRS = ["measure", "metric", "control", "from_step", "run_id", "step"]
METRIC = {CAPABILITY: "utility", REFUSALS: "refusal_rate", PREFILLED: "harmfulness"}


@dataclasses.dataclass(frozen=True)
class Recorded:
    """What the scorecards of all defenses are made from, read once: runs, attacks along their steps, the trials of
    searches, and benign fine-tunes along theirs. `base`: the model that a row's run descends from, without its world.
    """

    runs: pd.DataFrame
    curves: pd.DataFrame
    trials: pd.DataFrame
    tunes: pd.DataFrame

    @classmethod
    def of(cls, store: Store) -> Recorded:
        """All that a store holds by now."""
        runs = queries.runs(store)
        learned = queries.scores(store, *learning(runs))
        return cls.made(runs, queries.attack_curves(store), queries.searches(store), learned)

    @classmethod
    def made(cls, runs: pd.DataFrame, curves: pd.DataFrame, searches: pd.DataFrame, learned: pd.DataFrame) -> Recorded:
        """From what the queries of these names give; `learned` are the scores that `learning` asks for."""
        known = runs.set_index("run_id")[["immunized_by", "archived"]]
        frames = (curves, searches.join(known, on="search"), _fine_tunes(runs, learned))
        return cls(runs, *(f.assign(base=_bases(f)) for f in frames))


def learning(runs: pd.DataFrame) -> tuple[list[str], list[str]]:
    """The benign fine-tunes, and the metrics that scorecards read of them."""
    return runs.loc[runs["kind"] == "finetune", "run_id"].tolist(), ["withheld", "utility"]


def immunizations(runs: pd.DataFrame) -> pd.DataFrame:
    """The finished immunizations, oldest first, with `settings`, equal where they differ in seed only, and `twin`,
    equal where they differ in seed or in the part of their corpus.
    """
    done = runs[
        (runs["kind"] == "immunize") & (runs["status"] == "done") & ~runs["archived"].fillna(False).astype(bool)
    ]
    done = done.sort_values(["queued_at", "run_id"], na_position="first")
    keys, twins = [], []
    for r in done.to_dict("records"):
        same = [r["method"], r["base_model"], json.loads(r["spec"])["knobs"]]
        keys.append(json.dumps([*same, r["corpus"]], sort_keys=True))
        twins.append(json.dumps([*same, CorpusName.read(str(r["corpus"])).whole], sort_keys=True))
    return done.assign(settings=keys, twin=twins)


def find(runs: pd.DataFrame, text: str) -> list[str]:
    """The immunizations that a person means: an id or its end, `last`, or a defense's name for all seeds of its newest
    settings: those of this lab, or else of the shipped ones, on the model that most of them are of."""
    known = immunizations(runs)
    if known.empty:
        raise UserError("No finished immunization is recorded. Make one with: immunelab immunize seam")
    if text == "last":
        return [str(known["run_id"].iloc[-1])]
    named = known[known["method"] == text]
    whole = named[[not CorpusName.read(str(c)).part for c in named["corpus"]]]
    named = whole if len(whole) else named  # what was made without a domain is evidence on the defense as a whole
    if len(named):
        own = named[~named["showcase"].astype(bool)]
        named = own if len(own) else named[named["subject"] == named["subject"].value_counts().index[0]]
        return named.loc[named["settings"] == named["settings"].iloc[-1], "run_id"].tolist()
    ids = known["run_id"].tolist()
    found = meant(text, ids, "immunizations")
    if found:
        return [found]
    if text in set(runs["run_id"]):
        raise UserError(f"The run {text} is no finished immunization, and a scorecard is of one.")
    raise unknown("finished immunization or defense", text, [*ids, *known["method"].unique()])


def seeds_of(runs: pd.DataFrame, run_id: str) -> list[str]:
    """The immunizations with the same settings as this one, whatever their seed; the newest of each seed."""
    known = immunizations(runs)
    mine = known.loc[known["run_id"] == run_id, "settings"]
    same = known[known["settings"].isin(mine)].drop_duplicates("seed", keep="last")
    return same["run_id"].tolist()


def of(
    store: Store, run_ids: Sequence[str], limits: Limits | None = None, recorded: Recorded | None = None
) -> Scorecard:
    """The scorecard of these immunizations (one, or all seeds of one defense). Whoever makes several reads what is
    `recorded` once."""
    return score(gather(store, run_ids, recorded or Recorded.of(store)), limits or Limits())


def gather(store: Store, run_ids: Sequence[str], recorded: Recorded) -> Evidence:
    """All that is recorded about these immunizations, and about the undefended model they started from.

    Only finished runs count, one per attack and seed.
    """
    runs = recorded.runs
    mine = runs[runs["run_id"].isin(run_ids) & (runs["kind"] == "immunize")]
    if len(mine) != len(set(run_ids)):
        raise UserError("A scorecard is of immunizations; one of these runs is another kind, or is not recorded.")
    curves = collapse.without_repeats(_done(recorded.curves, mine))
    attacked = curves["run_id"].unique().tolist()
    parts = queries.scores(store, attacked, ["harmfulness"], splits=None) if attacked else curves.iloc[:0]
    changed, answers = _compared(store, pd.concat([_immunizing(store, mine), _prefilled(runs, curves)]))
    return Evidence(
        defense=", ".join(sorted(mine["method"].unique())),
        immunized=mine,
        curves=curves,
        domains=parts[parts["split"].str.startswith("domain:")] if len(parts) else _no_scores(),
        changed=changed,
        answers=answers,
        held=_held(runs, mine, recorded.curves),
        learning=_done(recorded.tunes, mine),
        trials=_searched(recorded.trials, mine),
        paired=_answered(store, curves[curves["corpus"].isin(mine["corpus"])]),
        fingerprints=_fingerprints(store, mine, curves),
    )


def _fingerprints(store: Store, mine: pd.DataFrame, curves: pd.DataFrame) -> tuple[str, ...]:
    """Of the whole data, which the immunizations and the attacks on all domains read; a part has a hash of its own."""
    here = curves.loc[curves["corpus"].isin(mine["corpus"]), "run_id"].unique()
    return queries.fingerprints(store, [*mine["run_id"], *here])


def _answered(store: Store, curves: pd.DataFrame) -> pd.DataFrame:
    """Both sides' answers after the worst recorded attack, by the attacker's access: `paired.ANSWERS`."""
    pairs = pd.concat([paired.worst_attack(mine).assign(access=access) for access, mine in by_access(curves)])
    if pairs.empty:
        return pd.DataFrame(columns=paired.ANSWERS)
    ids = [*pairs["run_id"], *pairs["control"]]
    judges = curves.loc[curves["run_id"].isin(ids), "harmfulness_by"].dropna().unique().tolist()
    said = queries.example_scores(store, ids, judges).dropna(subset=["score"])[["run_id", "step", "id", "score"]]
    mine = pairs.merge(said, on=["run_id", "step"]).rename(columns={"score": "after"})
    free = said.rename(columns={"run_id": "control", "score": "before"})
    return mine.merge(free, on=["control", "step", "id"])[paired.ANSWERS]


def _searched(trials: pd.DataFrame, mine: pd.DataFrame) -> pd.DataFrame:
    """The trials of finished searches on these immunizations, and on the undefended model."""
    found = _done(trials, mine)
    return found if (found["defense"] != "undefended").any() else found.iloc[:0]


def _immunizing(store: Store, mine: pd.DataFrame) -> pd.DataFrame:
    """The first and the last evaluated step of each immunization: the undefended model, and the defended one."""
    steps = queries.scores(store, mine["run_id"].tolist()).groupby("run_id")["step"].agg(["min", "max"])
    ends = [(run_id, first, last) for run_id, first, last in steps.itertuples() if first < last]
    rows = [(m, METRIC[m], i, a, i, b) for m in (CAPABILITY, REFUSALS) for i, a, b in ends]
    return pd.DataFrame(rows, columns=PAIRS)


def _prefilled(runs: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """Each defended model under `prefill`, with the undefended one asked with the same prefix: the same seed, or any.

    Of several prefixes the one counts that most seeds were asked with.
    """
    last = curves[(curves["method"] == "prefill") & (curves["step"] > 0)].sort_values(["step", "run_id"])
    last = last.drop_duplicates("run_id", keep="last").merge(runs[["run_id", "spec"]], on="run_id")
    last = last.assign(prefix=[str(json.loads(s)["knobs"].get("prefix")) for s in last["spec"]])
    free, mine = last[last["defense"] == "undefended"], last[last["defense"] != "undefended"]
    mine = mine[mine["prefix"].isin(free["prefix"])]
    usual = mine.groupby("prefix")["seed"].nunique().idxmax() if len(mine) else ""
    rows: list[tuple[Any, ...]] = []
    for run in mine[mine["prefix"] == usual].drop_duplicates("seed", keep="last").itertuples():
        same = free[(free["prefix"] == usual) & (free["corpus"] == run.corpus)]
        same = same[same["seed"] == run.seed] if (same["seed"] == run.seed).any() else same
        rows += [(PREFILLED, "harmfulness", r.run_id, r.step, run.run_id, run.step) for r in same.tail(1).itertuples()]
    return pd.DataFrame(rows, columns=PAIRS)


def _compared(store: Store, pairs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The scores of both sides of each pair, and the answers behind them, as `stability.changes` takes them."""
    ids = sorted({*pairs["control"], *pairs["run_id"]})
    scores = queries.scores(store, ids, list(METRIC.values()), splits=None)
    wanted = {"utility": ("all", "skill:"), "refusal_rate": ("safe",), "harmfulness": ("all",)}
    fits = [str(s).startswith(wanted[m]) for m, s in zip(scores["metric"], scores["split"], strict=True)]
    names = {"all": WHOLE, "safe": WHOLE}
    scores = scores[pd.Series(fits, scores.index, dtype=bool)]  # of an empty list pandas would take no columns
    scores = scores.assign(skill=lambda f: [names.get(s, str(s).partition(":")[2]) for s in f["split"]])
    both = _joined(pairs, scores, ["metric", "skill", "evaluation"])
    both = both.drop_duplicates([*PAIRS, "skill"])
    changed = both.rename(
        columns={
            "score": "after",
            "score_control": "before",
            "stderr": "after_error",
            "stderr_control": "before_error",
            "n": "questions",
        }
    )
    judges = sorted(both.loc[both["measure"] != REFUSALS, "evaluation"].unique())
    said = queries.example_scores(store, ids, judges)
    of = both[["measure", "metric", "evaluation"]].drop_duplicates()
    said = said.merge(of, on="evaluation").dropna(subset=["score"])
    said["skill"] = [
        WHOLE if m == PREFILLED else _skill(more) for m, more in zip(said["measure"], said["more"], strict=True)
    ]
    answers = _joined(
        pairs, said.dropna(subset=["skill"]).drop(columns=["measure", "more"]), ["metric", "skill", "evaluation", "id"]
    )
    return changed, answers.rename(columns={"score": "after", "score_control": "before"})


def _joined(pairs: pd.DataFrame, found: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Both sides of each pair: the columns of the defended side, and those of the control as `…_control`."""
    before = found.rename(columns={"run_id": "control", "step": "from_step"})
    mine = pairs.merge(found, on=["run_id", "step", "metric"])
    return mine.merge(before, on=["control", "from_step", *keys], suffixes=("", "_control"))


def _skill(more: Any) -> str | None:
    """The skill of a recorded question; older records do not tell it."""
    return json.loads(more).get("skill") if isinstance(more, str) else None


def _held(runs: pd.DataFrame, mine: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """Attacks on the same defense made without a hazard domain, and on the undefended model, in both parts of the
    corpus: the curves, with `domain` and `inside` (the part that the defense saw)."""
    known = immunizations(runs)
    same = known[known["twin"].isin(known.loc[known["run_id"].isin(mine["run_id"]), "twin"])]
    found = [curves.iloc[:0].assign(domain="", inside=False)]
    for corpus, made in same.groupby("corpus"):
        name = CorpusName.read(str(corpus))
        if name.part == "hold-out":
            attacks = _done(curves, made)
            attacks = attacks[attacks["corpus"].isin([str(corpus), name.rest])]
            attacks = attacks.assign(domain=", ".join(name.domains), inside=attacks["corpus"] == corpus)
            found.append(collapse.without_repeats(attacks))
    return pd.concat(found)


def _done(frame: pd.DataFrame, mine: pd.DataFrame) -> pd.DataFrame:
    """The finished runs on these immunizations, and on the undefended model that they started from."""
    ours = frame["immunized_by"].isin(mine["run_id"])
    control = (frame["defense"] == "undefended") & frame["base"].isin(_bases(mine))
    return frame[(ours | control) & (frame["status"] == "done") & ~frame["archived"].fillna(False).astype(bool)]


def _bases(frame: pd.DataFrame) -> pd.Series:
    pairs = list(zip(frame["base_model"], frame["corpus"], strict=True))
    names = {(m, c): base_name(str(m), str(c)) for m, c in set(pairs)}
    return pd.Series([names[pair] for pair in pairs], index=frame.index, dtype=object)


def _fine_tunes(runs: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """One row per benign fine-tune and checkpoint, with the run's settings."""
    tunes = runs[runs["kind"] == "finetune"]
    wide = scores.pivot_table(index=["run_id", "step"], columns="metric", values="score").reset_index()
    for metric in ("withheld", "utility"):
        if metric not in wide:
            wide[metric] = math.nan
    settings = tunes.drop(columns=["step", "utility", "withheld"], errors="ignore")
    found = wide[["run_id", "step", "withheld", "utility"]].merge(settings, on="run_id")
    return found.dropna(subset=["withheld"])


def _no_scores() -> pd.DataFrame:
    return pd.DataFrame(columns=["run_id", "step", "split", "score", "n"])
