"""The registry: methods by kind and name. A file in its folder that decorates its class with `@register` is all."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from immunelab.errors import unknown
from immunelab.method.contract import Budget, Method
from immunelab.method.knobs import Knob, knobs

Kind = Literal["defense", "attack", "evaluation"]
FOLDERS: dict[str, str] = {"defense": "defenses", "attack": "attacks", "evaluation": "evaluations"}

M = TypeVar("M", bound="type[Method]")
_registry: dict[str, dict[str, type[Method]]] = {kind: {} for kind in FOLDERS}


def settings_of(cls: type[Method]) -> list[Knob]:
    """The knobs of a method, its own before those that every trained method has."""
    return knobs(cls, Budget)


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
    known = {k.name: k for k in settings_of(cls)}
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
        "assumes": cls.assumes,
        "seen": cls.seen,
        "streams": list(cls.streams),
        "objective": (cls.__doc__ or "").strip().splitlines()[0],
        "presets": {name: preset.settings() for name, preset in cls.presets.items()},
        "knobs": [dataclasses.asdict(k) for k in settings_of(cls)],
    }
