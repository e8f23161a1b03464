"""SDD: answer harmful prompts with good text about something else, so that unlearning it costs the model its skill."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from immunelab.method import Batch, Defense, knob, register
from immunelab.training.losses import scored
from immunelab.training.objective import CrossEntropy, minimize

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@register("defense")
@dataclass(frozen=True, kw_only=True)
class Sdd(Defense):
    """L = (1 − ρ)·CE(y | x) + ρ·CE(benign), x a harmful prompt, y a good answer to another question; ρ = 0 in SDD.

    "SDD: Self-Degraded Defense against Malicious Fine-tuning", arXiv:2507.21182. Who fine-tunes on harmful answers
    must make y less likely, and y is ordinary good text. The pairs are built before the run from harmful prompts and
    benign answers (`corpus/pairing.py`); τ, R and N of the paper are not known, and these are its replication's. The
    paper sums over answer tokens; here it is their mean.

    Not in the paper, and off in the presets `paper` and `replication`: `replay` (ρ) and `words`.
    """

    name: ClassVar[str] = "sdd"
    title: ClassVar[str] = "SDD: self-degraded defense"
    display: ClassVar[str] = "SDD"
    paper: ClassVar[str] = "arXiv:2507.21182"
    stage: ClassVar[str] = "alignment"
    streams: ClassVar[tuple[str, ...]] = ("unrelated", "benign")

    similarity: float = knob(
        0.25, "largest cosine of prompt and answer; above it another answer is drawn", symbol="τ", low=-1, high=1
    )
    redraws: int = knob(
        50, "further draws for a prompt; then the least similar answer stays", symbol="R", low=0, high=100_000
    )
    pairs: int = knob(8000, "pairs to build, at most; evenly over categories", symbol="N", low=1, high=10**9)
    words: int = knob(0, "fewest words of an unrelated answer; 0 takes every answer (extension)", low=0, high=10_000)
    replay: float = knob(0.0, "share of the loss that replays benign rows (extension)", symbol="ρ", low=0, high=1)

    def step(self, model: PreTrainedModel, batch: Batch) -> dict[str, float]:
        """∇L; response tokens only."""
        unrelated, benign = scored(self, batch)
        away = (1 - self.replay) * CrossEntropy(unrelated)
        return minimize(model, away + self.replay * CrossEntropy(benign) if self.replay else away)

    def weight(self, batch: Batch) -> float:
        """The unrelated answers' tokens; with a replay the loss is a sum of two means."""
        return 1.0 if self.replay else batch.take(self)[0].scored()


@register("defense")
@dataclass(frozen=True, kw_only=True)
class SddReject(Sdd):
    """L = (1 − ρ)·CE(prefix + y | x) + ρ·CE(benign): SDD whose answers say first that they refuse.

    The variant SDD_reject of arXiv:2507.21182. The prefix and a blank line stand before every unrelated answer; the
    pairs are SDD's.
    """

    name: ClassVar[str] = "sdd-reject"
    title: ClassVar[str] = "SDD_reject: refuse, then answer something else"
    display: ClassVar[str] = "SDD_reject"

    prefix: str = knob(
        "I refuse to answer your question for responsible and ethical reasons. "
        "I provided an irrational answer to your question.",
        "what every unrelated answer begins with; in words that the model's tokenizer knows",
    )


# 8,000 pairs in 500 steps of 24 are the paper's 1.5 epochs.
PAPER = {"learning_rate": 5e-7, "steps": 500, "batch_size": 24}
# An independent replication (which trains in bf16): at the paper's rate its loss stayed flat and nothing was defended.
REPLICATION = {"learning_rate": 2e-5, "steps": 500, "batch_size": 24, "schedule": "constant", "warmup": 0.0}
# Five configurations on the Fable world of seed 0, one seed each, all of them broken from 3e-4 on; of these the one
# that costs the least utility. Most of the loss replays benign rows, and one-word answers are not good text.
FABLE = {"learning_rate": 3e-4, "steps": 400, "batch_size": 16, "replay": 0.9, "words": 5}
# The same two sentences in words of Fable; its tokenizer knows no others.
FABLE_PREFIX = "i will not explain this because it could hurt people . i share something that is not about that ."

Sdd.presets = {"paper": Sdd(**PAPER), "replication": Sdd(**REPLICATION), "fable": Sdd(**FABLE)}  # type: ignore[arg-type]
SddReject.presets = {
    "paper": SddReject(**PAPER),  # type: ignore[arg-type]
    "replication": SddReject(**REPLICATION),  # type: ignore[arg-type]
    "fable": SddReject(**FABLE, prefix=FABLE_PREFIX),  # type: ignore[arg-type]
}
