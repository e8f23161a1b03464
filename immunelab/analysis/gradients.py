"""The harmful and the benign gradient as two vectors in a plane, and the error of SEAM's estimate.

Two vectors span a plane, so their lengths and the cosine between them suffice to draw them exactly, however many
weights a model has: the harmful gradient along the horizontal axis, the benign one at its angle to it.
"""

from __future__ import annotations

import pandas as pd

SOURCES = {"probe/": "Held-out rows, the same at every step", "": "The minibatch of each step"}
PARTS = ("norm/harmful", "norm/benign", "cosine/harmful-benign")


def names(source: str) -> list[str]:
    """The recorded scalars that a source of `SOURCES` needs."""
    return [f"{source}{part}" for part in PARTS]


def plane(points: pd.DataFrame, source: str = "probe/") -> pd.DataFrame:
    """One row a step of one run at which all three scalars are recorded: step, harmful (‖g_a‖), benign (‖g_b‖),
    cosine, and the tip of the benign gradient: x = ‖g_b‖·c along the harmful one, y = ‖g_b‖·√(1 − c²) across it."""
    wanted = points[points["name"].isin(names(source))]
    table = wanted.pivot_table(index="step", columns="name", values="value", aggfunc="last")
    table = table.reindex(columns=names(source)).dropna().reset_index()
    table.columns = pd.Index(["step", "harmful", "benign", "cosine"])
    c = table["cosine"].clip(-1, 1)  # rounding may leave it slightly outside
    return table.assign(x=table["benign"] * c, y=table["benign"] * (1 - c**2) ** 0.5)


def estimates(scores: pd.DataFrame) -> pd.DataFrame:
    """Scores of the evaluation `estimator-error` as columns: precision, epsilon, metric (error, cosine, displacement),
    value, n."""
    mine = scores[scores["evaluation"] == "estimator-error"]
    parts = mine["split"].str.split(":", n=1, expand=True).reindex(columns=[0, 1])
    return pd.DataFrame(
        {
            "precision": parts[0],
            "epsilon": pd.to_numeric(parts[1], errors="coerce"),
            "metric": mine["metric"].str.removeprefix("estimator_"),
            "value": mine["score"],
            "n": mine["n"],
        }
    ).sort_values(["precision", "metric", "epsilon"], ignore_index=True)
