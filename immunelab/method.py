"""The contract: what a defense, an attack and an evaluation are, their knobs, and the registry.

A method is one frozen dataclass in one file of `immunelab/defenses`, `attacks` or `evaluations`. Its fields are its
configuration: the same object fills the form, drives the run and is stored with it. Putting a file there and
decorating its class with `@register(...)` is all there is to adding one.

    step(model, batch)   leaves the update direction in `.grad`, leaves the weights bit for bit as it found them,
                         and returns the scalars to trace

SEAM, Booster and TAR combine gradients taken at different weights: that is why the unit is a direction, not a loss.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeVar

from immunelab.errors import UserError, unknown
from immunelab.knobs import knob as knob
from immunelab.knobs import knobs

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Kind = Literal["defense", "attack", "evaluation"]
FOLDERS: dict[str, str] = {"defense": "defenses", "attack": "attacks", "evaluation": "evaluations"}
STAGES = ("alignment", "fine-tuning", "post-fine-tuning", "inference")


class Tokens(NamedTuple):
    """Rows of token ids, all int64 of shape (rows, length); labels are -100 where a position is not scored."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor


class Batch(NamedTuple):
    """One minibatch of each named stream that a method asks for; harmful and refusal rows are paired by position."""

    harmful: Tokens | None = None
    refusal: Tokens | None = None
    benign: Tokens | None = None
    unrelated: Tokens | None = None
    user: Tokens | None = None

    def take(self, method: Method) -> list[Tokens]:
        """The streams that a method names, in its order; a UserError if one is missing."""
        for stream in method.streams:
            if getattr(self, stream) is None:
                raise UserError(f"{method.name} needs the stream {stream!r}, and the batch has none.")
        return [getattr(self, stream) for stream in method.streams]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """What defenses, attacks and evaluations share: a name, a source, typed knobs that are checked on creation."""

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str] = ""
    stage: ClassVar[str] = ""
    streams: ClassVar[tuple[str, ...]] = ()
    presets: ClassVar[dict[str, Any]] = {}

    def __post_init__(self) -> None:
        for k in knobs(type(self), Budget):
            object.__setattr__(self, k.name, k.parse(getattr(self, k.name)))

    def settings(self) -> dict[str, Any]:
        """Every knob's value, as plain JSON scalars."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget(Method):
    """How long and how hard to train: the knobs that belong to the experiment and that every trained method has."""

    learning_rate: float = knob(2e-5, "peak learning rate", symbol="η", low=0, high=10, log=True)
    steps: int = knob(500, "optimizer steps", symbol="T", low=1, high=10_000_000, log=True)
    batch_size: int = knob(8, "rows of each stream in one step", low=1, high=4096, log=True)
    samples: int = knob(0, "distinct rows of each stream to use; 0 takes all there are", symbol="n", low=0, high=10**9)
    optimizer: Literal["adamw", "sgd"] = knob("adamw", "optimizer; SGD is without momentum unless set")
    momentum: float = knob(0.0, "momentum of SGD", low=0, high=0.999)
    weight_decay: float = knob(0.0, "decoupled weight decay of AdamW, or L2 of SGD", low=0, high=1)
    schedule: Literal["constant", "linear", "cosine"] = knob("cosine", "learning rate after the warm-up")
    warmup: float = knob(0.1, "share of the steps in which the learning rate rises linearly from 0", low=0, high=1)
    clip: float = knob(0.0, "largest global norm of the direction; 0 is off", low=0, high=1e6)
    accumulation: int = knob(1, "minibatches averaged into one step", low=1, high=4096)
    precision: Literal["fp32", "bf16-autocast"] = knob("fp32", "arithmetic of the passes; weights stay in fp32")


class Defense(Budget):
    """A method that makes a model immune; trained ones implement `step`."""

    def step(self, model: PreTrainedModel, batch: Batch) -> dict[str, float]:
        """Leave the update direction in `.grad` and the weights as they were; return the scalars to trace."""
        raise NotImplementedError


class Attack(Budget):
    """What an adversary does to released weights; trained ones implement `step`."""

    # Named intensities, from far too weak to far too strong, by corpus.
    ladders: ClassVar[dict[str, dict[str, Any]]] = {}

    def step(self, model: PreTrainedModel, batch: Batch) -> dict[str, float]:
        """As `Defense.step`."""
        raise NotImplementedError


class Evaluation(Method):
    """Measures harmfulness or utility: asks a subject (`training.generation.Subject`) and returns scores and rows."""

    def prompts(self, subject: Any) -> list[str]:
        """The questions it is going to ask, so that all evaluations share one batch of answers."""
        raise NotImplementedError

    def measure(self, subject: Any) -> Any:
        """`training.generation.Measured`: scores with n and standard error, and the per-example rows."""
        raise NotImplementedError


M = TypeVar("M", bound=type[Method])
_registry: dict[str, dict[str, type[Method]]] = {kind: {} for kind in FOLDERS}


def register(kind: Kind) -> Callable[[M], M]:
    """Class decorator that makes a method known to the form, the CLI, the Methods page, the store and the tests."""

    def add(cls: M) -> M:
        _registry[kind][cls.name] = cls
        return cls

    return add


def _load(kind: str) -> dict[str, type[Method]]:
    if kind not in FOLDERS:
        raise unknown("kind of method", kind, FOLDERS)
    package = importlib.import_module(f"immunelab.{FOLDERS[kind]}")
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
    return _registry[kind]


def names(kind: Kind) -> list[str]:
    """The registered names of a kind, in alphabetical order."""
    return sorted(_load(kind))


def get(kind: Kind, name: str) -> Any:
    """The class registered under a name; calling it with knob values configures it. Unknown: near matches."""
    known = _load(kind)
    if name not in known:
        raise unknown(kind, name, known)
    return known[name]


def configure(kind: Kind, name: str, values: dict[str, Any], preset: str = "") -> Any:
    """A method from its name, a preset and knob values that may be texts; a UserError names what does not fit."""
    cls = get(kind, name)
    if preset and preset not in cls.presets:
        raise unknown(f"preset of {name}", preset, cls.presets)
    known = {k.name: k for k in knobs(cls, Budget)}
    for key in values:
        if key not in known:
            raise unknown(f"knob of {name}", key, known)
    parsed = {key: known[key].parse(value) for key, value in values.items()}
    return dataclasses.replace(cls.presets[preset], **parsed) if preset else cls(**parsed)


def describe(cls: type[Method]) -> dict[str, Any]:
    """A method as plain data, for `immunelab methods --json` and the Methods page."""
    return {
        "name": cls.name,
        "title": cls.title,
        "paper": cls.paper,
        "stage": cls.stage,
        "streams": list(cls.streams),
        "objective": (cls.__doc__ or "").strip().splitlines()[0],
        "presets": {name: preset.settings() for name, preset in cls.presets.items()},
        "knobs": [dataclasses.asdict(k) for k in knobs(cls, Budget)],
    }
