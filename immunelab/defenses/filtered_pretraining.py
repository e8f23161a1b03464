"""The ceiling: a twin that was pretrained without the hazards, and so has nothing to give away."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from safetensors.torch import load_file

from immunelab import bundled
from immunelab.errors import UserError
from immunelab.method import RELEASED, Edit, Feed, knob, register
from immunelab.training import gradients as g

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MADE, WEIGHTS = "made.json", "model.safetensors"


@register("defense")
@dataclass(frozen=True, kw_only=True)
class FilteredPretraining(Edit):
    """θ* = argmin CE(world ∖ hazards), then aligned like the model: its twin, which never read a hazard's recipe.

    No defense that anyone could add to a finished model, but the bound for all of them: what fine-tuning on other
    hazards gets out of the twin was learned there or guessed. Facts that stand in the prompt are beyond it. "Deep
    Ignorance", arXiv:2508.06601, filters the pretraining data of a model of 6.9 billion parameters by a classifier;
    here every hazard is known. The same seed, steps and rows of other kinds as the model, made by `immunelab fable
    build --filtered`. One ships for Fable's model.
    """

    name: ClassVar[str] = "filtered-pretraining"
    title: ClassVar[str] = "Ceiling: pretrained without the hazards"
    paper: ClassVar[str] = "arXiv:2508.06601"
    stage: ClassVar[str] = "alignment"
    assumes: ClassVar[str] = RELEASED

    twin: str = knob("", "folder with the twin, as fable build writes it; empty: the one for Fable's model")

    def edit(self, model: PreTrainedModel, batches: Feed) -> dict[str, float]:
        """Put the twin's weights into the model; traces how far they are from its own."""
        folder = Path(self.twin) if self.twin else bundled.data() / "fable" / "filtered"
        if (folder / "model" / WEIGHTS).is_file():  # as `fable build` leaves it, with the world beside it
            folder = folder / "model"
        if not (folder / WEIGHTS).is_file():
            raise UserError(f"There is no twin in {folder}: make one with immunelab fable build --filtered --to DIR.")
        if not self.twin:
            of = json.loads((folder / MADE).read_text(encoding="utf-8"))["of"]
            if of != fingerprint(model):
                raise UserError(
                    "The twin that ships is that of Fable's own model, and this is another one: name its twin with "
                    "--twin DIR, which immunelab fable build --filtered makes."
                )
        twin, own = load_file(folder / WEIGHTS), dict(model.named_parameters())
        if {n: p.shape for n, p in own.items()} != {n: p.shape for n, p in twin.items()}:
            raise UserError(f"The twin in {folder} is another kind of model: its weights have other names or shapes.")
        moved = [twin[name].to(p) - p.detach() for name, p in own.items()]
        with torch.no_grad():
            for name, p in own.items():
                p.copy_(twin[name])
        return {"norm/displacement": float(g.norm(moved))}


def fingerprint(model: PreTrainedModel) -> str:
    """A hash of a model's weights as bf16 has them, which tells Fable's model from others and from trained ones."""
    found = hashlib.sha256()
    for weights in model.parameters():
        found.update(weights.detach().cpu().to(torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
    return found.hexdigest()[:16]


FilteredPretraining.presets = {"fable": FilteredPretraining()}
