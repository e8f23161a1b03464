"""The provider behind a run: found in its lineage, with its memory, and how it trains and serves.

It stands behind fine-tunings (attacks with `provider = True`) of what an `immunize` run left, and behind evaluations
of that or of such a fine-tuning. Other runs bypass it: attacks of someone with the weights, and further fine-tunings
of a finished one.
"""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from immunelab.corpus.tokens import as_prompt, readable
from immunelab.errors import UserError
from immunelab.method import Defense, Memory, Service, Step, configure, get
from immunelab.runs.journal import RunFolder
from immunelab.runs.spec import RunSpec
from immunelab.training import checkpoints

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Found(NamedTuple):
    """A defense that acts on the provider's side of a run, and the run that it is from."""

    defense: Defense | Service
    source: RunFolder
    finished: bool  # the weights already are as served


def behind(spec: RunSpec, home: Path) -> Found | None:
    """The defense on the provider's side of a run, if there is one."""
    if not spec.model.startswith("run:"):
        return None
    parent = RunFolder.open(home, spec.model.removeprefix("run:"))
    made = parent.spec()
    if made.kind != "immunize":
        found = behind(made, home) if spec.kind == "evaluate" and made.kind in ("attack", "finetune") else None
        return found._replace(finished=True) if found and found.defense.overrides("serving", "system") else None
    if made.recorded_by:  # somebody's own code, of which only the weights are here
        return None
    defense = configure("defense", made.method, made.knobs)
    if not isinstance(defense, Defense | Service):
        return None
    if spec.kind == "evaluate":
        acts = defense.overrides("serving", "system")
    else:
        acts = spec.kind != "immunize" and getattr(get("attack", spec.method), "provider", False)
    return Found(defense, parent, False) if acts and defense.overrides() else None


def kept(found: Found, device: str) -> dict[str, Tensor]:
    """What the provider kept beside the weights that it immunized; a UserError if that is lost."""
    if not found.defense.overrides("kept"):
        return {}
    saved = checkpoints.latest(found.source.checkpoints)
    if not saved:
        raise UserError(
            f"The run {found.source.run_id} has left no checkpoint, and {found.defense.name} needs what it kept."
        )
    return {name: tensor.to(device) for name, tensor in checkpoints.kept(saved).items()}


@dataclass
class Host:
    """A provider at work in one run."""

    defense: Defense | Service
    memory: Memory
    finished: bool = False

    @property
    def serves(self) -> bool:
        """Whether the weights that it serves are others than those in training."""
        return self.defense.overrides("serving") and not self.finished

    def step(self, model: PreTrainedModel, step: Step) -> Step:
        """The step as the provider makes it, given the user's."""
        return self.defense.during(model, self.memory, step)

    def serving(self, model: PreTrainedModel) -> AbstractContextManager[dict[str, float]]:
        """The weights as they are served inside; yields scalars to trace."""
        return self.defense.serving(model, self.memory) if self.serves else nullcontext({})

    def templates(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
        """What the model reads in training and when it is asked, and the hashes of both; empty without a system prompt.

        A UserError if the tokenizer does not know the prompt's words.
        """
        prompt = self.defense.system()
        if not readable(tokenizer, prompt):
            return {}
        texts = {"trained": as_prompt(tokenizer, "?"), "served": as_prompt(tokenizer, "?", prompt)}
        return texts | {f"{k}_sha256": hashlib.sha256(v.encode()).hexdigest()[:16] for k, v in texts.items()}
