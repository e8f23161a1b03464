"""The contract: what a defense, an attack and an evaluation are. (`registry.py` finds them by name.)

A method is one frozen dataclass in one file of `immunelab/defenses`, `attacks` or `evaluations`. Its fields are its
configuration: the same object fills the form, drives the run and is stored with it. Putting a file there and
decorating its class with `@register(...)` is all there is to adding one.

    step(model, batch)   leaves the update direction in `.grad`, leaves the weights bit for bit as it found them,
                         and returns the scalars to trace

SEAM, Booster and TAR combine gradients taken at different weights: that is why the unit is a direction, not a loss.
Around `step` stand hooks that most methods leave alone: `prepare` and `after` (adapters, frozen parts, a reference),
`template` (what the model reads when asked), and those of a provider (`Provider`). What a method must know from one
step to the next is in its `Memory`. A method that changes weights at once has `edit` instead of `step`; a `Service`
has only the provider's hooks.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple
from weakref import WeakKeyDictionary

from immunelab.errors import UserError
from immunelab.method.knobs import knob, knobs

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

RELEASED = "none: the weights are released"
STAGES = ("alignment", "fine-tuning", "post-fine-tuning", "inference")
HOOKS = ("during", "serving", "system")  # of a provider


class Tokens(NamedTuple):
    """Rows of token ids, all int64 of shape (rows, length); labels are -100 where a position is not scored."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor

    def scored(self) -> int:
        """How many tokens are scored: of a row's first one nothing comes before that could predict it."""
        return int((self.labels[:, 1:] != -100).sum())


class Batch(NamedTuple):
    """One minibatch of each named stream that a method asks for; harmful and refusal rows are paired by position."""

    harmful: Tokens | None = None
    refusal: Tokens | None = None
    benign: Tokens | None = None
    unrelated: Tokens | None = None
    user: Tokens | None = None
    number: int = 0  # of the minibatch: 0, 1, …

    def take(self, method: Method) -> list[Tokens]:
        """The streams that a method names, in its order; a UserError if one is missing."""
        for stream in method.streams:
            if getattr(self, stream) is None:
                raise UserError(f"{method.name} needs the stream {stream!r}, and the batch has none.")
        return [getattr(self, stream) for stream in method.streams]


@dataclasses.dataclass(frozen=True)
class Metric:
    """A score that an evaluation reports."""

    name: str
    words: str  # what the number is
    role: Literal["", "harm", "utility"] = ""
    better: Literal["", "low", "high"] = ""  # for whoever defends the model
    unit: str = "share"  # in 0–1; else what is counted, or empty for a plain number
    main: bool = True  # stands in the table that a finished run prints


Step = Callable[["PreTrainedModel", Batch], dict[str, float]]
Feed = Callable[[int], Batch]  # the i-th minibatch, the same for the same i


def _no_rows(number: int) -> Batch:
    raise UserError("This step draws further minibatches, and knows none: call `prepare` first.")


@dataclasses.dataclass(eq=False)
class Memory:
    """What a method remembers from step to step, beside its settings and the model that trains.

    `tensors` are what it found on the way, by name. They are saved with each checkpoint that a run can be resumed
    from, and are back, bit for bit, before the first step of the resumed run. `rows` (its minibatches, for a step that
    needs more than its own) and `before` (a frozen copy of the model as it was) are not saved: `prepare` sets them,
    also on resume.

    A method that trains has one memory for each model, `Memory.of(model)`, which goes when the model goes. A provider
    has one for each run that it stands behind: it is handed to its hooks, starts with what `Provider.kept` gave, and
    goes with the run. Nobody clears a memory earlier.
    """

    tensors: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    rows: Feed = _no_rows
    _before: PreTrainedModel | None = dataclasses.field(default=None, init=False)

    @staticmethod
    def of(model: PreTrainedModel) -> Memory:
        """The memory of the method that trains this model; empty at first."""
        return _memories.setdefault(model, Memory())

    def keep(self, model: PreTrainedModel) -> None:
        """Keep a frozen copy of the model's present weights as `before`: one more model in memory."""
        self._before = copy.deepcopy(model).requires_grad_(False).eval()

    @property
    def before(self) -> PreTrainedModel:
        """The copy that was kept; a UserError if none was."""
        if self._before is None:
            raise UserError("This compares with the model before training, and none was kept: call `prepare` first.")
        return self._before


# Beside the models and not in them: a copy of a model inside it would be trained, saved and counted with it.
_memories: WeakKeyDictionary[PreTrainedModel, Memory] = WeakKeyDictionary()


class Deviation(NamedTuple):
    """One thing that differs between a paper, its released code and this lab; "" where nothing is known or said."""

    what: str
    paper: str
    code: str
    here: str
    why: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """What defenses, attacks and evaluations share: a name, a source, typed knobs that are checked on creation."""

    name: ClassVar[str]
    title: ClassVar[str]
    display: ClassVar[str] = ""  # in legends and tables; empty: its name with a capital
    paper: ClassVar[str] = ""
    stage: ClassVar[str] = ""
    assumes: ClassVar[str] = ""  # of defenses: what must be true for it to act at all
    streams: ClassVar[tuple[str, ...]] = ()
    presets: ClassVar[dict[str, Any]] = {}
    deviations: ClassVar[tuple[Deviation, ...]] = ()  # from the paper or its code, in the presets that are named so
    # Of attacks: named intensities, from far too weak to far too strong, by corpus.
    ladders: ClassVar[dict[str, dict[str, Any]]] = {}

    def __post_init__(self) -> None:
        for k in knobs(type(self), Budget):
            object.__setattr__(self, k.name, k.parse(getattr(self, k.name)))

    def settings(self) -> dict[str, Any]:
        """Every knob's value, as plain JSON scalars; one that only saves memory where it is not at its default."""
        usual = {f.name: f.default for f in dataclasses.fields(self) if f.metadata.get("saving")}
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in usual or v != usual[k]}

    def in_fp32(self) -> str:
        """Why the weights must be in fp32, and what to do about it, in a sentence; empty: they need not be."""
        return ""

    def template(self, text: str, harmful: bool) -> str:
        """What the model reads in place of `text` when asked after this method; `harmful`: the question is."""
        return text

    def examples(self) -> int:
        """How many answered rows of the attacker's split stand before a harmful question, as turns of the chat."""
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget(Method):
    """How long and how hard to train: the knobs that belong to the experiment and that every trained method has."""

    learning_rate: float = knob(2e-5, "peak learning rate", symbol="η", low=0, high=10, log=True)
    steps: int = knob(500, "optimizer steps", symbol="T", low=1, high=10_000_000, log=True)
    batch_size: int = knob(8, "rows of each stream in one step", low=1, high=4096, log=True)
    samples: int = knob(0, "distinct rows of each stream to use; 0 takes all there are", symbol="n", low=0, high=10**9)
    optimizer: Literal["adamw", "sgd", "adafactor", "muon"] = knob(
        "adamw", "optimizer; SGD is without momentum unless set, Muon leaves what is no matrix to AdamW"
    )
    momentum: float = knob(0.0, "momentum of SGD", low=0, high=0.999)
    weight_decay: float = knob(0.0, "decoupled weight decay of AdamW, or L2 of SGD", low=0, high=1)
    schedule: Literal["constant", "linear", "cosine"] = knob("cosine", "learning rate after the warm-up")
    warmup: float = knob(0.1, "share of the steps in which the learning rate rises linearly from 0", low=0, high=1)
    clip: float = knob(0.0, "largest global norm of the direction; 0 is off", low=0, high=1e6)
    accumulation: int = knob(1, "minibatches in one step; a mean over tokens stays one over all", low=1, high=4096)
    precision: Literal["fp32", "bf16-autocast"] = knob("fp32", "arithmetic of the passes; the weights keep their dtype")
    recompute: bool = knob(False, "gradient checkpointing: compute activations again, not keep them", saving=True)
    loss_chunk: int = knob(0, "scored tokens whose logits are held at a time; 0: all", low=0, high=10**9, saving=True)


class Trained(Budget):
    """A method that trains: `step` says where to, the one loop does the rest."""

    def step(self, model: PreTrainedModel, batch: Batch) -> dict[str, float]:
        """Leave the update direction in `.grad` and the weights as they were; return the scalars to trace.

        A weight whose `.grad` is None stays as it is in this step, whatever the optimizer remembers of it.
        """
        raise NotImplementedError

    def weight(self, batch: Batch) -> float:
        """What a minibatch counts among those of one step.

        A loss that is a mean over tokens of one stream gives how many there are (`Tokens.scored`), so that several
        minibatches are one large one. By default they count alike: a sum of several means has no such weights, and
        other functions of a minibatch (a cosine, a logarithm) are no means over tokens.
        """
        return 1.0

    def budget_at(self, step: int) -> tuple[Budget, int]:
        """The budget whose learning rate holds at update `step` (1 … T), and that update's number within it.

        Its own, unless a method trains in stages that each have a peak rate, a schedule and a fresh optimizer.
        """
        return self, step

    def prepare(self, model: PreTrainedModel, batches: Feed) -> PreTrainedModel:
        """Before the first step, and again on resume: the model to train; what has `requires_grad` trains."""
        return model

    def after(self, model: PreTrainedModel) -> PreTrainedModel:
        """After the last step: the prepared model as a plain one, which is what is released; may consume it."""
        return model

    @property
    def prepares(self) -> bool:
        """Whether the model that trains is made by `prepare`."""
        return type(self).prepare is not Trained.prepare


class Provider:
    """What a defense can do where someone runs the fine-tuning and serves the result; it overrides what it needs.

    A defense on the provider's side (Lisa, Panacea, Antidote, Safe LoRA, PTST, Security Vectors) acts in fine-tunings
    that a provider carries out: attacks with `provider = True` on the checkpoint of its `immunize` run. Whoever has
    the weights goes past it: the checkpoint is a plain model.

    The hooks are given the provider's `memory`. Its tensors are what `kept` gave at the end of the `immunize` run, and
    what a hook puts there. Its rows are the provider's minibatches of the streams that the defense names, from the
    defense's split.
    """

    assumes: ClassVar[str] = "a provider who runs the fine-tuning"

    def kept(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """The tensors that its memory starts with; called at the end of the `immunize` run, before `after`."""
        return {}

    def during(self, model: PreTrainedModel, memory: Memory, step: Step) -> Step:
        """The provider's way to make one step of a user's fine-tuning, given the user's; called before `prepare`."""
        return step

    def serving(self, model: PreTrainedModel, memory: Memory) -> AbstractContextManager[dict[str, float]]:
        """The weights as they are served inside, bit for bit as they were after; yields scalars to trace.

        `model` is the one in training, adapters and all. It must leave torch's random state alone.
        """
        return nullcontext({})

    def system(self) -> str:
        """The system prompt that the model is served with, and not trained with; empty: none."""
        return ""

    @classmethod
    def overrides(cls, *hooks: str) -> bool:
        """Whether it has its own form of one of these hooks; without names: of any that acts on the provider's side."""
        mine: Any = cls
        return any(getattr(mine, hook) is not getattr(Provider, hook) for hook in hooks or HOOKS)


class Defense(Trained, Provider):
    """A method that makes a model immune by training it; one with the provider's hooks also acts on users' runs."""

    assumes: ClassVar[str] = RELEASED


class Attack(Trained):
    """What an adversary does to released weights, or (`provider`) asks a provider's fine-tuning service to do."""

    provider: ClassVar[bool] = False

    def system(self) -> str:
        """The system prompt that the attacker trains and asks with; empty: none."""
        return ""

    def uploads(self) -> tuple[tuple[str, str], ...]:
        """(prompt, answer) rows of its own for the stream `user`; empty: rows of the corpus."""
        return ()


class Edit(Method):
    """A defense or attack that changes the weights at once, or only what the model reads: no budget, no loop."""

    def edit(self, model: PreTrainedModel, batches: Feed) -> dict[str, float]:
        """Change the weights, or leave them; return the scalars to trace."""
        raise NotImplementedError


class Service(Edit, Provider):
    """A defense that is only the provider's: its run leaves the weights alone and evaluates them as they are served."""

    assumes: ClassVar[str] = "a provider who runs the fine-tuning and serves the model"

    def edit(self, model: PreTrainedModel, batches: Feed) -> dict[str, float]:
        """Nothing: the checkpoint equals the model that it was given."""
        return {}


class Evaluation(Method):
    """Measures harmfulness or utility: asks a subject (`training.generation.Subject`) and returns scores and rows."""

    metrics: ClassVar[tuple[Metric, ...]] = ()  # the scores that it returns, the main one first
    answer: ClassVar[str] = ""  # what the number of one answer says, after "80 % "
    questions: ClassVar[str] = ""  # what it asks about, as the Playground puts it

    def check(self) -> None:
        """A UserError for what can be known to fail before anything is loaded: a package or a permission is missing."""

    def prompts(self, subject: Any) -> list[str]:
        """The questions it is going to ask, so that all evaluations share one batch of answers."""
        raise NotImplementedError

    def measure(self, subject: Any) -> Any:
        """`training.generation.Measured`: scores with n and standard error, and the per-example rows."""
        raise NotImplementedError
