"""What there is to know of every method without importing it, so that reading starts without torch.

`catalogue.json` holds what `registry.describe` says of each class, file by file, with a hash of the file. Where a file
of a method is new, changed or gone, a process of its own imports them and writes the catalogue anew: into the package,
or where that can't be written into the user's cache folder.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from immunelab import bundled
from immunelab.errors import UserError, unknown
from immunelab.method.contract import Deviation, Metric
from immunelab.method.knobs import Knob

PACKAGE = Path(__file__).resolve().parent.parent
SHIPPED = Path(__file__).with_name("catalogue.json")
FOLDERS: dict[str, str] = {"defense": "defenses", "attack": "attacks", "evaluation": "evaluations"}
SHARED = ("method/contract.py", "method/knobs.py", "method/registry.py")  # what every entry depends on, too
FORMAT = 1  # of the file; another one is written anew
LOOK_AGAIN = 1.0  # seconds between two looks at the files
LONGEST = 300  # seconds that importing all methods may take
Settings = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One method, as `registry.describe` reads it off its class."""

    kind: str
    name: str
    title: str
    display: str  # in legends and tables
    objective: str  # the first line of its docstring
    file: str  # within the package
    knobs: tuple[Knob, ...]  # its own first, then those that every trained method has
    text: str = ""  # the rest of its docstring
    paper: str = ""
    stage: str = ""
    assumes: str = ""
    streams: tuple[str, ...] = ()
    presets: Mapping[str, Settings] = dataclasses.field(default_factory=dict)
    ladders: Mapping[str, Mapping[str, Settings]] = dataclasses.field(default_factory=dict)  # by corpus and rung
    deviations: tuple[Deviation, ...] = ()  # from its paper and the released code
    trains: bool = False  # by steps
    edits: bool = False  # changes the weights at once, or leaves them
    service: bool = False  # has only hooks of a provider
    hooks: tuple[str, ...] = ()  # of a defense: those of the provider that it has a form of its own of
    provider: bool = False  # of an attack: a provider carries it out
    uploads: bool = False  # of an attack: it brings rows of its own
    validates: bool = False  # its class checks more of its settings than each by itself
    checks: bool = False  # of an evaluation: its class looks for what is missing before a run
    metrics: tuple[Metric, ...] = ()  # of an evaluation
    answer: str = ""  # of an evaluation: what the number of one answer says, after "80 % "
    questions: str = ""  # of an evaluation that asks: what about

    @property
    def seen(self) -> str:
        """Of a defense: where the recorded runs on Fable do not bear out the paper."""
        return remarks().get(self.name, "") if self.kind == "defense" else ""

    @property
    def measure(self) -> str:
        """Of an evaluation of harm or utility: what its number is."""
        return next((metric.words for metric in self.metrics if metric.role), "")

    @property
    def source(self) -> Path:
        """Its file."""
        return PACKAGE / self.file

    def settings(self, values: Mapping[str, Any], preset: str = "") -> Settings:
        """What `registry.configure(kind, name, values, preset).settings()` gives, and the same UserErrors.

        Where the class itself checks settings (`validates`) and some are not a preset's, it is asked in a process of
        its own, which takes seconds.
        """
        if preset and preset not in self.presets:
            raise unknown(f"preset of {self.name}", preset, self.presets)
        known = {k.name: k for k in self.knobs}
        for key in values:
            if key not in known:
                raise unknown(f"knob of {self.name}", key, known)
        parsed = {key: known[key].parse(value) for key, value in values.items()}
        usual = {k.name: k.parse(k.default) for k in self.knobs}
        start = usual | dict(self.presets[preset] if preset else {})
        found = start | parsed
        told = {k: v for k, v in found.items() if not known[k].saving or v != usual[k]}
        if self.validates and found != start and told not in self.presets.values():
            _validated(self.kind, self.name, json.dumps(found), _sources()[self.file])
        return told

    def plain(self) -> Settings:
        """Everything as JSON has it."""
        return dataclasses.asdict(self) | {"seen": self.seen}


class _Read(NamedTuple):
    """A catalogue as this process knows it."""

    entries: Mapping[str, Mapping[str, Entry]]
    broken: Mapping[str, str]  # file: what is wrong with it, in a sentence
    stamps: Mapping[str, tuple[int, int]]  # time and size of each file when they were last compared


_lock = threading.RLock()
_read: _Read | None = None
_looked = -LOOK_AGAIN


def entries(kind: str) -> Mapping[str, Entry]:
    """Every method of a kind, in alphabetical order."""
    if kind not in FOLDERS:
        raise unknown("kind of method", kind, FOLDERS)
    return refresh().entries[kind]


def names(kind: str) -> list[str]:
    """The names of a kind, in alphabetical order."""
    return list(entries(kind))


def entry(kind: str, name: str) -> Entry:
    """One method; a UserError with near matches, or with what is wrong with the file that it should be in."""
    known = entries(kind)
    if name in known:
        return known[name]
    for file, problem in refresh().broken.items():
        if file == f"{FOLDERS[kind]}/{name.replace('-', '_')}.py":
            raise UserError(problem)
    raise unknown(kind, name, known)


def problems() -> list[str]:
    """A sentence for each file of a method that can't be imported."""
    return list(refresh().broken.values())


def metrics() -> dict[str, Metric]:
    """Every score that evaluations report, harmfulness and utility first.

    Where another evaluation's number is called harmfulness, that of this one goes by its own name.
    """
    found: dict[str, Metric] = {}
    for one in entries("evaluation").values():
        for metric in one.metrics:
            found.setdefault(metric.name, metric)
            if metric.name == "harmfulness":
                words = f"{metric.words}, beside what is called harmfulness here"
                found[one.name] = dataclasses.replace(metric, name=one.name, words=words)
    first = ("harmfulness", "utility")
    return {name: found[name] for name in (*first, *(n for n in found if n not in first)) if name in found}


def measured_by(evaluations: Iterable[str], judges: Iterable[str] = ()) -> str:
    """What a number is, in words, for each evaluation that it comes from; with the judges of the runs."""
    known = entries("evaluation")
    said = "; or ".join(dict.fromkeys((e in known and known[e].measure) or e for e in evaluations))
    named = "; or ".join(dict.fromkeys(judge for judge in judges if judge))
    return f"{said} ({named})" if named else said


@functools.cache
def remarks() -> dict[str, str]:
    """What the recorded runs on Fable say of each defense, beside its paper."""
    try:
        path = bundled.data() / "showcase" / "remarks.toml"
        return dict(tomllib.loads(path.read_text(encoding="utf-8"))["defense"])
    except (OSError, UserError):
        return {}


def _stderr(words: str) -> None:
    sys.stderr.write(f"{words}\n")


def refresh(tell: Callable[[str], object] = _stderr) -> _Read:
    """Compare the catalogue with the files at most once a second, and renew it where they differ; `tell` hears of it.

    One file that can't be imported takes only its own methods out. Where none can be, the catalogue stays as it was.
    """
    global _read, _looked
    with _lock:
        if _read and time.monotonic() - _looked < LOOK_AGAIN:
            return _read
        stamps = _stamps()
        if _read is None or stamps != _read.stamps:
            _read = _compared(stamps, tell)
        _looked = time.monotonic()
        return _read


def _compared(stamps: Mapping[str, tuple[int, int]], tell: Callable[[str], object]) -> _Read:
    wanted, old = _sources(), None
    for path in (SHIPPED, _cache()):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if found.get("format") != FORMAT:
            continue
        old = old or found
        if made_of(found) == wanted:
            return _unpacked(found, stamps)
    before = made_of(old) if old else {}
    changed = sorted(file for file in {*before, *wanted} if before.get(file) != wanted.get(file))
    some = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
    tell(f"Files of methods have changed ({some}): reading them, which takes a few seconds.")
    try:
        text = _elsewhere("catalogue")
    except UserError as error:
        if old is None:
            raise
        problem = f"The files of methods can't be read, so what was known of them stays: {error}"
        tell(problem)
        return _unpacked(old, stamps)._replace(broken=dict.fromkeys(changed, problem))
    new = json.loads(text)
    _write(text)
    for broken in new["broken"].values():
        tell(broken)
    return _unpacked(new, stamps)


def _elsewhere(*arguments: str) -> str:
    """What `python -m immunelab.method` writes, in a process of its own; a UserError with its last line if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "said"
        try:
            done = subprocess.run(
                [sys.executable, "-m", "immunelab.method", str(target), *arguments],
                cwd=PACKAGE.parent,
                capture_output=True,
                text=True,
                timeout=LONGEST,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise UserError(f"importing the methods took more than {LONGEST} seconds.") from None
        said = target.read_text(encoding="utf-8") if target.is_file() else ""
    if done.returncode == 2:
        raise UserError(said)
    if done.returncode or not said:
        last = done.stderr.strip().splitlines()[-1:] or [f"the process ended with {done.returncode}"]
        raise UserError(last[0][:500])
    return said


@functools.lru_cache(maxsize=1000)
def _validated(kind: str, name: str, settings: str, version: str) -> None:
    """A UserError if the class refuses settings."""
    _elsewhere("configure", kind, name, settings)


def _cache() -> Path:
    """Where the catalogue of this installation goes if the package can't be written."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = hashlib.sha256(str(PACKAGE).encode()).hexdigest()[:16]
    return folder / "immunelab" / f"catalogue-{place}.json"


def _write(text: str) -> None:
    """Whole or not at all, so that two processes may do it at once. Kept nowhere, the next process writes it anew."""
    for path in (SHIPPED, _cache()):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=".catalogue-", suffix=".json")
            with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except OSError:
            continue
        return


def _files() -> list[Path]:
    own = [path for folder in FOLDERS.values() for path in sorted((PACKAGE / folder).glob("*.py"))]
    return [*(PACKAGE / name for name in SHARED), *own]


def _stamps() -> dict[str, tuple[int, int]]:
    return {p.as_posix(): ((s := p.stat()).st_mtime_ns, s.st_size) for p in _files()}


def _sources() -> dict[str, str]:
    """Each file that decides what the catalogue says, and a hash of its text."""
    return {p.relative_to(PACKAGE).as_posix(): _hash(p) for p in _files()}


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_text(encoding="utf-8", errors="replace").encode()).hexdigest()[:16]


def made_of(packed: Mapping[str, Any]) -> dict[str, str]:
    """The files that a catalogue was made of, and their hashes."""
    return {**packed["shared"], **{file: held["hash"] for file, held in packed["files"].items()}}


def packed(found: Mapping[str, list[Entry]], shared: list[Knob], broken: Mapping[str, str]) -> str:
    """A catalogue as text: entries by file; knobs that all trained methods have, and defaults, stand only once."""
    everyone, sources = {k.name: k for k in shared}, _sources()
    whole = {
        "format": FORMAT,
        "shared": {file: sources[file] for file in SHARED},
        "knobs": [_brief(k) for k in shared],
        "broken": dict(broken),
        "files": {
            file: {"hash": digest, "methods": [_pack(e, everyone) for e in found.get(file, [])]}
            for file, digest in sources.items()
            if file not in SHARED
        },
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def _brief(one: Any) -> Settings:
    """The fields of a dataclass that are not at their default."""
    usual = {f.name: f.default_factory() if callable(f.default_factory) else f.default for f in dataclasses.fields(one)}
    return {k: v for k, v in dataclasses.asdict(one).items() if v != usual[k]}


def _pack(e: Entry, shared: Mapping[str, Knob]) -> Settings:
    usual = e.settings({})

    def less(settings: Mapping[str, Any]) -> Settings:
        return {k: v for k, v in settings.items() if k not in usual or usual[k] != v}

    shorter = dataclasses.replace(
        e,
        presets={name: less(p) for name, p in e.presets.items()},
        ladders={c: {rung: less(p) for rung, p in ladder.items()} for c, ladder in e.ladders.items()},
    )
    found = _brief(shorter)
    found["knobs"] = [k.name if shared.get(k.name) == k else _brief(k) for k in e.knobs]
    return found | ({"metrics": [_brief(m) for m in e.metrics]} if e.metrics else {})


def _unpack(held: Settings, shared: Mapping[str, Knob]) -> Entry:
    knobs = tuple(shared[k] if isinstance(k, str) else _knob(k) for k in held["knobs"])
    usual = {k.name: k.parse(k.default) for k in knobs if not k.saving}
    more = {
        "knobs": knobs,
        "streams": tuple(held.get("streams", ())),
        "hooks": tuple(held.get("hooks", ())),
        "metrics": tuple(Metric(**m) for m in held.get("metrics", ())),
        "deviations": tuple(Deviation(*d) for d in held.get("deviations", ())),
        "presets": {name: usual | p for name, p in held.get("presets", {}).items()},
        "ladders": {
            corpus: {rung: usual | p for rung, p in ladder.items()}
            for corpus, ladder in held.get("ladders", {}).items()
        },
    }
    return Entry(**held | more)


def _knob(held: Settings) -> Knob:
    return Knob(**held | {"choices": tuple(held.get("choices", ()))})


def _unpacked(held: Mapping[str, Any], stamps: Mapping[str, tuple[int, int]]) -> _Read:
    shared = {k["name"]: _knob(k) for k in held["knobs"]}
    every = [_unpack(e, shared) for file in held["files"].values() for e in file["methods"]]
    found = {kind: {e.name: e for e in sorted(every, key=lambda e: e.name) if e.kind == kind} for kind in FOLDERS}
    return _Read(found, held["broken"], stamps)
