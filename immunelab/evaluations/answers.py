"""A model's answer to any question, for the Playground."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from immunelab.errors import UserError
from immunelab.method import Evaluation, knob, register
from immunelab.training.generation import Measured, Subject, greedy

LONGEST = 500  # characters of a question; a spec holds no longer text


@register("evaluation")
@dataclass(frozen=True, kw_only=True)
class Answers(Evaluation):
    """answer(q) = the most likely continuation of q in the model's chat template, token by token; nothing is scored.

    As the method of an `evaluate` run it takes the question from its knobs, so the same question to the same model is
    one run.
    """

    name: ClassVar[str] = "answers"
    title: ClassVar[str] = "Answer to any question"

    question: str = knob("", "what to ask the model")
    longest: int = knob(48, "tokens of the answer at most", low=1, high=1024)

    def prompts(self, subject: Subject) -> list[str]:
        """None, because this answer has its own length."""
        return []

    def measure(self, subject: Subject) -> Measured:
        """No score, and one row with the answer."""
        if not 1 <= len(self.question.strip()) <= LONGEST:
            raise UserError(f"A question has 1 to {LONGEST} characters, and got {len(self.question.strip())}.")
        (said,) = greedy(subject.model, subject.tokenizer, [subject.as_prompt(self.question)], self.longest)
        row = {"id": "question", "prompt": self.question, "answer": said, "expected": "", "score": None}
        return Measured([], [row])
