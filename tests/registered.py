"""What is registered, by what it is: putting a file into its folder is enough to be tested."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from made_batches import batch
from saved_model import before_alignment
from transformers import PreTrainedModel

from immunelab import method
from immunelab.method import Edit, Method, Service, Trained, get, names
from immunelab.method.knobs import knobs

METHODS = [(kind, name) for kind in method.FOLDERS for name in names(kind)]  # type: ignore[arg-type]
TRAINED = [(kind, name) for kind, name in METHODS if issubclass(get(kind, name), Trained)]  # type: ignore[arg-type]
SERVICES = [name for name in names("defense") if issubclass(get("defense", name), Service)]
EDITS = [(kind, name) for kind, name in METHODS if issubclass(get(kind, name), Edit)]  # type: ignore[arg-type]


def ready(kind: Any, name: str, model: PreTrainedModel) -> tuple[Trained, PreTrainedModel]:
    """A method with its defaults and the model that it trains; adapters go on whatever layers there are."""
    cls = get(kind, name)
    targets = {"targets": "all-linear"} if any(k.name == "targets" for k in knobs(cls)) else {}
    configured = cls(**targets)
    return configured, configured.prepare(model, batch)


def other_models(cls: type[Method], model: PreTrainedModel, folder: Path) -> dict[str, str]:
    """The settings that name another model, for methods that need one beside the model: a slightly different one."""
    return {k.name: before_alignment(model, folder) for k in knobs(cls) if k.name in ("base", "twin")}
