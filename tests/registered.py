"""What is registered, by what it is: putting a file into its folder is enough to be tested."""

from __future__ import annotations

from typing import Any

from made_batches import batch
from transformers import PreTrainedModel

from immunelab import method
from immunelab.method import Edit, Service, Trained, get, names
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
