"""The registry: methods by kind and name. A file in its folder that decorates its class with `@register` is all."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_args

from immunelab.errors import UserError, unknown
from immunelab.method.catalogue import FOLDERS as FOLDERS
from immunelab.method.catalogue import Entry, packed
from immunelab.method.contract import HOOKS, Attack, Budget, Edit, Evaluation, Method, Provider, Service, Trained
from immunelab.method.knobs import Knob, knobs

Kind = Literal["defense", "attack", "evaluation"]

M = TypeVar("M", bound="type[Method]")
_registry: dict[str, dict[str, type[Method]]] = {kind: {} for kind in FOLDERS}
_broken: dict[str, UserError] = {}  # by module: why it can't be imported


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
        if module.name not in _broken:
            try:
                importlib.import_module(module.name)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - a new file may fail in any way; `get` tells it
                file = f"{FOLDERS[kind]}/{module.name.rpartition('.')[2]}.py"
                reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
                for name in [n for n, cls in _registry[kind].items() if cls.__module__ == module.name]:
                    del _registry[kind][name]
                _broken[module.name] = UserError(f"immunelab/{file} can't be imported: {reason}")
    return _registry[kind]


def names(kind: Kind) -> list[str]:
    """The registered names of a kind, in alphabetical order."""
    return sorted(_load(kind))


def get(kind: Kind, name: str) -> Any:
    """The class registered under a name; calling it with knob values configures it. Unknown: near matches."""
    known = _load(kind)
    if name in known:
        return known[name]
    raise _broken.get(f"immunelab.{FOLDERS[kind]}.{name.replace('-', '_')}") or unknown(kind, name, known)


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


def describe(kind: Kind, cls: type[Method]) -> Entry:
    """A method as plain data: what the catalogue, `immunelab methods --json` and the Methods page say of it."""
    first, _, text = inspect.cleandoc(cls.__doc__ or "").partition("\n")
    return Entry(
        kind=kind,
        name=cls.name,
        title=cls.title,
        display=cls.display or cls.name[:1].upper() + cls.name[1:].replace("-", " "),
        paper=cls.paper,
        stage=cls.stage,
        assumes=cls.assumes,
        streams=cls.streams,
        objective=first,
        text=text.strip(),
        file=cls.__module__.removeprefix("immunelab.").replace(".", "/") + ".py",
        knobs=tuple(settings_of(cls)),
        presets={name: preset.settings() for name, preset in cls.presets.items()},
        ladders={c: {rung: p.settings() for rung, p in ladder.items()} for c, ladder in cls.ladders.items()},
        deviations=cls.deviations,
        trains=issubclass(cls, Trained),
        edits=issubclass(cls, Edit),
        service=issubclass(cls, Service),
        hooks=tuple(h for h in HOOKS if cls.overrides(h)) if issubclass(cls, Provider) else (),
        provider=issubclass(cls, Attack) and cls.provider,
        uploads=issubclass(cls, Attack) and cls.uploads is not Attack.uploads,
        validates=cls.__post_init__ is not Method.__post_init__,
        checks=issubclass(cls, Evaluation) and cls.check is not Evaluation.check,
        metrics=cls.metrics if issubclass(cls, Evaluation) else (),
        answer=cls.answer if issubclass(cls, Evaluation) else "",
        questions=cls.questions if issubclass(cls, Evaluation) else "",
    )


def catalogue() -> str:
    """The catalogue of all that is registered, as `catalogue.json` holds it."""
    found: dict[str, list[Entry]] = {}
    for kind in get_args(Kind):
        for cls in _load(kind).values():
            one = describe(kind, cls)
            found.setdefault(one.file, []).append(one)
    broken = {name.removeprefix("immunelab.").replace(".", "/") + ".py": str(e) for name, e in _broken.items()}
    return packed(found, knobs(Budget, Budget), broken)
