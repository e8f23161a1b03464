"""Knobs: dataclass fields that know their range, their paper symbol and a sentence of help."""

from __future__ import annotations

import dataclasses
import math
import types
from typing import Any, Literal, get_args, get_origin, get_type_hints

from immunelab.errors import UserError


@dataclasses.dataclass(frozen=True)
class Knob:
    """What a form, the CLI and the Methods page need to know of one field."""

    name: str
    kind: str  # "float", "int", "bool", "str" or "choice"
    default: Any
    help: str = ""
    symbol: str = ""
    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[str, ...] = ()
    group: str = "method"  # "method" for a method's own knobs, "budget" for those every trained method has
    saving: bool = False  # trades time or rounding for memory: no part of a run's identity while at its default

    def parse(self, value: Any) -> Any:
        """The value as this knob's type, from a form, JSON or a command line; a UserError names the knob."""
        wrong = UserError(f"{self.name} takes {self.expects()}, and got {value!r:.200}.")
        if self.kind == "bool":
            if isinstance(value, bool):
                return value
            if str(value).lower() in ("true", "yes", "on", "1"):
                return True
            if str(value).lower() in ("false", "no", "off", "0"):
                return False
            raise wrong
        if self.kind in ("str", "choice"):
            if not isinstance(value, str) or (self.choices and value not in self.choices):
                raise wrong
            return value
        if isinstance(value, bool):
            raise wrong
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise wrong from None
        if not math.isfinite(number) or (self.kind == "int" and number != int(number)):
            raise wrong
        if (self.low is not None and number < self.low) or (self.high is not None and number > self.high):
            raise wrong
        return int(number) if self.kind == "int" else number

    def expects(self) -> str:
        """The admissible values in words, for help texts and errors."""
        if self.kind == "bool":
            return "true or false"
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.kind == "str":
            return "a text"
        what = "a whole number" if self.kind == "int" else "a number"
        if self.low is not None and self.high is not None:
            return f"{what} from {self.low:g} to {self.high:g}"
        return f"{what} of at least {self.low:g}" if self.low is not None else what


def knob(
    default: Any,
    help: str,
    *,
    symbol: str = "",
    low: float | None = None,
    high: float | None = None,
    log: bool = False,
    saving: bool = False,
) -> Any:
    """A dataclass field that is a setting; `symbol` is the paper's letter, `log` asks for a logarithmic slider.

    A `saving` one says how to compute and not what, so a spec holds it only where it differs from its default.
    """
    return dataclasses.field(
        default=default,
        metadata={"help": help, "symbol": symbol, "low": low, "high": high, "log": log, "saving": saving},
    )


def knobs(cls: type, shared: type | None = None) -> list[Knob]:
    """The settings of a dataclass in order; those that `shared` has too form the group "budget" and come last."""
    hints = get_type_hints(cls)
    budget = {f.name for f in dataclasses.fields(shared)} if shared else set()
    found = []
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        choices = tuple(get_args(hint)) if get_origin(hint) is Literal else ()
        kind = "choice" if choices else getattr(hint, "__name__", "str")
        meta: types.MappingProxyType[Any, Any] = field.metadata
        found.append(
            Knob(
                name=field.name,
                kind=kind,
                default=field.default,
                help=meta.get("help", ""),
                symbol=meta.get("symbol", ""),
                low=meta.get("low"),
                high=meta.get("high"),
                log=meta.get("log", False),
                choices=choices,
                group="budget" if field.name in budget else "method",
                saving=meta.get("saving", False),
            )
        )
    return sorted(found, key=lambda k: k.group != "method")
