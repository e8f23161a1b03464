"""What models answered, side by side, at every recorded intensity and step of an attack. Untrusted text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from immunelab.analysis import collapse
from immunelab.analysis.variants import BASELINE, Variant
from immunelab.figures.collapse import step_slider
from immunelab.figures.palette import title_of
from immunelab.figures.sliders import Frame, Frames, Slider, Sliders
from immunelab.method import catalogue


def answer_sliders(
    answers: pd.DataFrame,
    known: Mapping[str, Slider],
    choice: Mapping[str, float],
    shown: Sequence[Variant],
    kind: str,
    unfolded: bool,
    stand: Callable[[Slider, float], float] = lambda _, last: last,
) -> Sliders:
    """The sliders over the recorded intensities and the attack's steps, with the answers at every position.

    `answers` has run_id, step, answer, score, evaluation, defense, variant and the settings of `known`, which stand at
    `choice`; `stand` says where the slider of steps stands, from that slider and its last value. `kind` is the
    evaluation that asked. Without `unfolded` no answer is shown.
    """
    steps = sorted(int(s) for s in answers["step"].unique())
    along = step_slider(steps)
    means = catalogue.entries("evaluation").get(kind)
    frames = Frames()
    for _, alike in answers.groupby([*known]) if known else [((), answers)]:
        texts = tuple(s.text(alike[setting].iloc[0]) for setting, s in known.items())
        told = alike[["defense", "variant", "step", "answer", "score", "evaluation"]]
        said = {(Variant(d, v), int(at)): rest for d, v, at, *rest in told.itertuples(index=False, name=None)}
        for step in sorted({at for _, at in said}):
            cards = [_card(v, 0, said, means, unfolded) for v in shown]
            cards += [_card(v, step, said, means, unfolded) for v in shown] if step else []
            frames[*texts, str(step)] = Frame("", cards=cards)
    last = max(int(s) for s in collapse.select(answers, choice)["step"])
    here = [s.text(choice[setting]) for setting, s in known.items()]
    return Sliders((*known.values(), along), frames, (*here, along.text(stand(along, last))))


def _card(
    model: Variant,
    step: int,
    said: Mapping[tuple[Variant, int], Sequence[Any]],
    means: catalogue.Entry | None,
    unfolded: bool,
) -> dict[str, str]:
    """One answer under the name of its model; `said` has answer, score and evaluation by model and step."""
    name = "Undefended" if model == BASELINE else f"Immunized with {title_of(*model)}"
    title = f"{name}, after {step} attack steps" if step else f"{name}, before the attack"
    if (model, step) not in said:
        return {"title": title, "answer": "", "note": "Not recorded at this step."}
    answer, score, evaluation = said[model, step]
    note = f"{score:.0%} {(means and means.answer) or evaluation}" if pd.notna(score) else ""
    return {"title": title, "answer": (answer or "") if unfolded else "(folded)", "note": note}


def by_step(answers: pd.DataFrame) -> pd.DataFrame:
    """Every recorded step of the chosen prompt: one column a model."""
    named = answers.assign(model=[title_of(*pair) for pair in zip(answers["defense"], answers["variant"], strict=True)])
    order = list(dict.fromkeys(named["model"]))
    table = named.pivot_table(index="step", columns="model", values="answer", aggfunc="last")
    return table.reindex(columns=order).reset_index()
