"""What a run is: a frozen spec, its identity, and its JSON. Standard library only, so every room can read it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import posixpath
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from immunelab.errors import UserError, unknown
from immunelab.runs import numerics
from immunelab.runs.status import parse_object, plain

KINDS = ("immunize", "attack", "finetune", "evaluate", "sweep")
LABELS = ("name", "group", "parent")  # not part of a run's identity
KEEP = {  # which weights stay on disk when a run is done; not part of its identity either
    "none": "none, so nothing can start from it",
    "last": "the last ones",
    "all": "those of each evaluated step",
}
# What a run measures on its way, and how often: part of its identity, and not of that of the weights that it leaves.
MEASURING = ("evaluations", "evaluate_every", "layers_every", "probe_every", "checkpoint_every", "judge")
KIND_OF_METHOD = {"immunize": "defense", "attack": "attack", "finetune": "attack"}
LARGEST = 1e300  # largest number in a spec; a larger integer would not fit into a float
LONGEST = 500  # characters of any text in a spec
LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes; no common file system takes more
MODEL = re.compile(r"^[^\x00-\x1f]{1,500}$")
NARROWED = re.compile(r"^(?P<whole>.+?)\?(?P<part>hold-out|only)=(?P<domains>.+)$")


class CorpusName(NamedTuple):
    """The parts of a corpus's name: `fable?hold-out=gnawer` is Fable without that hazard domain, `fable?only=gnawer`
    with no other one. A defense made with the first is attacked across domains with the second.
    """

    whole: str  # the corpus with all its domains
    part: str = ""  # "hold-out" or "only"
    domains: tuple[str, ...] = ()  # as cut at commas; a domain's own name may hold some: `named` puts them together

    @classmethod
    def read(cls, text: str) -> CorpusName:
        """Read a spec's `corpus`; a UserError if no file can have this name."""
        found = NARROWED.match(text)
        whole = found["whole"] if found else text
        if len(whole.encode(errors="replace")) > LONGEST_PATH or any(
            len(part.encode(errors="replace")) > LONGEST_NAME for part in whole.split("/")
        ):
            raise UserError(f"There is no corpus {whole[:80]!r}…: no file name is that long.")
        if not found:
            return cls(text)
        return cls(found["whole"], found["part"], tuple(d.strip() for d in found["domains"].split(",")))

    def named(self, known: Collection[str]) -> list[str]:
        """The domains, whose names may hold commas, found among the known ones; what is unknown stays cut."""
        found, parts = [], list(self.domains)
        while parts:
            ends = [n for n in range(len(parts), 0, -1) if _joined(parts[:n], known)]
            n = ends[0] if ends else 1
            found.append(_joined(parts[:n], known) or parts[0])
            del parts[:n]
        return found

    @property
    def rest(self) -> str:
        """The name of the other part: the domains that this one leaves out."""
        return f"{self.whole}?{'only' if self.part == 'hold-out' else 'hold-out'}={','.join(self.domains)}"


def _joined(parts: Sequence[str], known: Collection[str]) -> str:
    """The known name that these parts spell, whatever spaces follow its commas; "" for none."""
    return next((name for name in known if [p.strip() for p in name.split(",")] == list(parts)), "")


def place(name: str) -> str:
    """One form for the ways to write a folder: `x/`, `./x` and, in the working directory, its absolute path are `x`.

    Other names (`fable`, `run:…`, ids on the Hub) stay as they are.
    """
    if name.startswith("run:") or (not name.startswith(("/", "./")) and not name.endswith("/") and "//" not in name):
        return name
    path = posixpath.normpath(name)
    here = posixpath.join(Path.cwd().as_posix(), "")
    return path.removeprefix(here) if path.startswith(here) else path


def corpus_place(name: str) -> str:
    """As `place`, of a corpus's name, whose part stays."""
    whole = CorpusName.read(name).whole
    return place(whole) + name.removeprefix(whole)


def base_name(model: str, corpus: str) -> str:
    """The name of a base model. `fable` means whichever model belongs to the corpus, so it gets the corpus's name, like
    `worlds/smollm2`; any other model keeps its own."""
    return place(CorpusName.read(corpus).whole if model == "fable" else model)


def subject(model: str, corpus: str) -> str:
    """Base model and corpus in one name; held-out domains do not matter. No figure mixes two subjects.

    A model that belongs to its corpus has the corpus's name, others are like "Qwen/Qwen2.5-0.5B on beavertails".
    """
    return base_name(model, corpus) if model == "fable" else f"{place(model)} on {place(CorpusName.read(corpus).whole)}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSpec:
    """Everything that decides a run's numbers; and what does not: three labels (`name`, `group`, `parent`) and `keep`.

    `model` is `fable`, a Hub id, a local folder, or `run:<run_id>` for the checkpoint that a run made; in the last
    case `parent` is that run's id and `parent_hash` its spec hash, which stands in for the id in the identity.
    """

    kind: str
    method: str = ""
    knobs: dict[str, Any] = dataclasses.field(default_factory=dict)
    model: str = "fable"
    corpus: str = "fable"
    seed: int = 0
    device: str = "auto"
    dtype: str = "fp32"  # of the weights
    attention: str = "auto"  # how attention is computed; auto: as usual for the architecture
    evaluations: tuple[str, ...] = ()  # registered names; empty takes those of the corpus
    evaluate_every: int = 0  # steps between evaluations; 0 evaluates at the first and the last step only
    layers_every: int = 10  # steps between per-layer traces; 0 traces none
    probe_every: int = 10  # steps between gradient comparisons on held-out rows; 0 makes none
    checkpoint_every: int = 0  # steps between checkpoints; 0 writes one at the end, and one on stop
    keep: str = "last"  # the weights that stay on disk, one of KEEP
    judge: str = ""  # who judges the answers, and how; filled in when the run is submitted
    recorded_by: str = ""  # what carried the run out, if that was no worker of a lab; then method may be any name
    parent_hash: str = ""
    parent: str = ""
    name: str = ""
    group: str = ""

    def __post_init__(self) -> None:
        hints = {f.name: f.type for f in dataclasses.fields(self)}
        for name, hint in hints.items():
            value = getattr(self, name)
            if hint == "str" and not _fits(value):
                raise UserError(
                    f"A spec's {name} is a text of at most {LONGEST} printable characters, and got {value!r:.80}."
                )
            if hint == "int" and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31):
                raise UserError(f"A spec's {name} is a whole number from 0 to 2147483647, and got {value!r:.80}.")
        numerics.known(self.dtype, self.attention)
        if self.kind not in KINDS:
            raise unknown("kind of run", self.kind, KINDS)
        if self.keep not in KEEP:
            raise unknown("choice of what weights to keep", self.keep, KEEP)
        if not MODEL.match(self.model) or not MODEL.match(self.corpus):
            raise UserError("A spec's model and corpus are names, ids or paths of 1 to 500 characters.")
        if not isinstance(self.knobs, dict) or not all(isinstance(k, str) for k in self.knobs):
            raise UserError(f"A spec's knobs map names to values, and got {self.knobs!r:.80}.")
        for key, value in self.knobs.items():
            fits = _fits(value) or (isinstance(value, int | float) and abs(value) < LARGEST)
            if not (fits and _fits(key)):
                raise UserError(
                    f"A spec's knob {key:.80} is a text, a finite number or true/false, and got {value!r:.80}."
                )
        if not all(_fits(e) for e in self.evaluations):
            raise UserError(f"A spec's evaluations are a list of names, and got {self.evaluations!r:.80}.")
        object.__setattr__(self, "evaluations", tuple(self.evaluations))

    @property
    def hash(self) -> str:
        """Identity: a hash (16 hex digits) of everything that decides the numbers. Same hash and CPU, same numbers."""
        return self._digest((*LABELS, "keep"))

    @property
    def weights_hash(self) -> str:
        """A hash of what decides the weights that a run leaves. Same hash and CPU, same weights."""
        return self._digest((*LABELS, "keep", *MEASURING))

    def _digest(self, without: tuple[str, ...]) -> str:
        fields = dataclasses.asdict(self).items()
        usual = numerics.USUAL | {"judge": "", "recorded_by": ""}
        identity = {k: v for k, v in fields if k not in without and (k, v) not in usual.items()}
        if self.parent_hash:
            identity["model"] = f"spec:{self.parent_hash}"
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """As indented JSON, every field present."""
        return json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, source: str = "the spec") -> RunSpec:
        """Read back; a UserError names `source` and the wrong field."""
        data = parse_object(text, source)
        known = {f.name for f in dataclasses.fields(cls)}
        for key in data:
            if key not in known:
                raise unknown(f"field of a spec (in {source})", key, known)
        if "kind" not in data:
            raise UserError(f"{source} lacks the field 'kind' (one of {', '.join(KINDS)}).")
        if "evaluations" in data and not isinstance(data["evaluations"], list):
            raise UserError(f"{source}: evaluations is a list of names, and got {data['evaluations']!r:.80}.")
        return cls(**{**data, "evaluations": tuple(data.get("evaluations", ()))})


def _fits(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST and plain(value)
