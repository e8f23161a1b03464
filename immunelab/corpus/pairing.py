"""The stream `unrelated`: each harmful prompt with a good answer to another question, as SDD needs it.

Prompts are de-duplicated and drawn evenly over categories; answers come from benign rows. A prompt's answer is drawn
at random, and drawn again while it is too similar (cosine of sentence embeddings above τ). Source: arXiv:2507.21182,
with the numbers of its replication. Pairs are kept on disk, under a hash of everything that decides them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import filelock
import numpy as np

from immunelab.corpus.choosing import Drawn, balanced, category, distinct, draw, pool
from immunelab.corpus.embedding import Embedder, embedded
from immunelab.corpus.rows import Corpus, Row
from immunelab.errors import UserError
from immunelab.formatting import duration
from immunelab.runs.status import replace_file

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = "pairs"  # within the lab's home
LONGEST_HEAD = 1 << 20  # characters of a file's first line
VERSION = 1  # of the procedure; raised when a change makes other pairs, so that they get other files
Tell = Callable[[str, int, int, float], None]  # what is being done, how many of how many, seconds left


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """What decides the pairs, besides corpus, split, seed and embedder. Defenses have these as settings."""

    similarity: float = 0.25  # τ
    redraws: int = 50  # R
    pairs: int = 8000  # N, at most
    words: int = 0  # fewest words of an answer

    @classmethod
    def of(cls, method: object) -> Rule:
        """The rule in a method's settings; a UserError names a setting that the method lacks."""
        lacking = [field.name for field in dataclasses.fields(cls) if not hasattr(method, field.name)]
        if lacking:
            name = getattr(method, "name", type(method).__name__)
            raise UserError(f"{name} names the stream 'unrelated' and lacks its settings: {', '.join(lacking)}.")
        return cls(**{field.name: getattr(method, field.name) for field in dataclasses.fields(cls)})


class Pair(NamedTuple):
    """A harmful prompt and an answer to something else."""

    row: str  # id of the harmful row
    category: str
    prompt: str
    answer: str
    source: str  # id of the benign row that the answer comes from
    similarity: float  # cosine of the sentence embeddings
    tries: int  # answers drawn, the kept one included
    fallback: bool  # no draw was at or below τ, so this is the least similar one seen


@dataclasses.dataclass(frozen=True)
class Pairing:
    """All pairs of a rule, what they were made from, and counts from making them."""

    made: dict[str, Any]  # the rule, corpus, fingerprint, split, seed, embedder: the key is a digest of these
    counts: dict[str, Any]  # prompts, answers, shortfalls by category, seconds
    pairs: tuple[Pair, ...]

    @property
    def key(self) -> str:
        """A hash (16 hex digits) of everything that decides the pairs."""
        return _key(self.made)

    @property
    def digest(self) -> str:
        """A hash (16 hex digits) of the pairs themselves."""
        return hashlib.sha256(_lines(self.pairs).encode()).hexdigest()[:16]

    def points(self) -> dict[str, float]:
        """The scalars that a run traces: means over the pairs, and the share whose draws were all too similar."""
        n = len(self.pairs)
        return {
            "pairs/similarity-mean": sum(p.similarity for p in self.pairs) / n,
            "pairs/tries-mean": sum(p.tries for p in self.pairs) / n,
            "pairs/fallback-share": sum(p.fallback for p in self.pairs) / n,
        }

    def statistics(self) -> dict[str, Any]:
        """What the command line, the Data page and a run's journal show, as plain JSON."""
        similar = np.array([p.similarity for p in self.pairs])
        categories: dict[str, int] = {}
        for p in self.pairs:
            categories[p.category] = categories.get(p.category, 0) + 1
        return {
            **self.made,
            "key": self.key,
            "digest": self.digest,
            "built": len(self.pairs),
            **self.counts,
            "categories": dict(sorted(categories.items())),
            "answers_used": len({p.source for p in self.pairs}),
            "fallbacks": sum(p.fallback for p in self.pairs),
            "tries_max": max(p.tries for p in self.pairs),
            **{name.split("/")[1].replace("-", "_"): value for name, value in self.points().items()},
            "similarity_quantiles": {
                f"{q:g}": round(float(np.quantile(similar, q)), 4) for q in (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
            },
        }


def build(
    corpus: Corpus,
    rule: Rule,
    *,
    embedder: Embedder,
    split: str = "defense",
    seed: int = 0,
    cache: Path | None = None,
    tell: Tell | None = None,
) -> Pairing:
    """The pairs of a corpus: read from `cache`, or built and kept there.

    One process builds at a time; others wait and then read. A UserError says what the corpus lacks. A broken file in
    the cache is built again.
    """
    made = described(corpus, rule, embedder=embedder.name, split=split, seed=seed)
    path = cache / f"{_key(made)}.jsonl" if cache else None
    found = read(path) if path else None
    if found:
        return found
    with _alone(cache, tell) if cache else nullcontext():
        found = read(path) if path else None  # another process may have built it meanwhile
        if found:
            return found
        began = time.monotonic()
        rng = random.Random(f"pairs-{seed}")
        prompts = distinct(corpus.select("harmful", split))
        chosen, shortfalls = balanced(prompts, rule.pairs, rng)
        answers = pool(corpus, split, rule.words)
        vectors = embedded(
            [*(row.prompt for row in chosen), *(row.response for row in answers)],
            embedder,
            cache / f"vectors-{corpus.fingerprint}-{embedder.name}" if cache else None,
            (lambda done, total, left: tell("embedding texts", done, total, left)) if tell else None,
        )
        drawn = draw(vectors[: len(chosen)], vectors[len(chosen) :], rule.similarity, rule.redraws, rng)
        pairs = tuple(_pair(row, answers[drawn.picks[i]], drawn, i) for i, row in enumerate(chosen))
        counts = {
            "prompts": len(prompts),
            "answers": len(answers),
            "shortfalls": shortfalls,
            "seconds": round(time.monotonic() - began, 3),
        }
        pairing = Pairing(made, counts, pairs)
        if path:
            _write(path, pairing)
        return pairing


def described(corpus: Corpus, rule: Rule, *, embedder: str, split: str, seed: int) -> dict[str, Any]:
    """Everything that decides the pairs, as plain JSON."""
    return {
        "version": VERSION,
        "corpus": corpus.name,
        "fingerprint": corpus.fingerprint,
        "split": split,
        "seed": seed,
        "embedder": embedder,
        **dataclasses.asdict(rule) | {"similarity": float(rule.similarity)},
    }


def _key(made: dict[str, Any]) -> str:
    # The rows decide, not the name of their folder.
    deciding = {name: value for name, value in made.items() if name != "corpus"}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]


def _pair(row: Row, answer: Row, drawn: Drawn, i: int) -> Pair:
    return Pair(
        row=row.id,
        category=category(row),
        prompt=row.prompt,
        answer=answer.response,
        source=answer.id,
        similarity=float(drawn.similarity[i]),
        tries=int(drawn.tries[i]),
        fallback=bool(drawn.fallback[i]),
    )


def told(what: str, done: int, total: int, left: float) -> str:
    """Progress in words, for a status and a terminal."""
    return f"{what}: {done:,} of {total:,}, {duration(left)} left" if total else what


class Kept(NamedTuple):
    """A pairing on disk: its file, and what it was made from."""

    path: Path
    made: dict[str, Any]


def kept(cache: Path) -> list[Kept]:
    """Every pairing in the cache, newest first; only the first line of each file is read."""
    found = []
    for path in cache.glob("*.jsonl"):
        try:
            with path.open(encoding="utf-8") as file:
                made = json.loads(file.readline(LONGEST_HEAD))["made"]
            if _key(made) == path.stem and _described(made):
                found.append((path.stat().st_mtime, Kept(path, made)))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            continue  # not a pairing, or a broken one, which will be built again when needed
    return [one for _, one in sorted(found, key=lambda item: item[0], reverse=True)]


def read(path: Path) -> Pairing | None:
    """A pairing that `build` kept; None if there is none or the file is broken."""
    try:
        head, _, body = path.read_text(encoding="utf-8").partition("\n")
        told = json.loads(head)
        pairs = tuple(Pair(**json.loads(line)) for line in body.splitlines())
        found = Pairing(told["made"], told["counts"], pairs)
        whole = bool(pairs) and found.digest == told["digest"] and found.key == path.stem and _described(found.made)
        whole = whole and all(map(_fits, pairs))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return found if whole else None


def _described(made: dict[str, Any]) -> bool:
    """Whether a file names everything it was made from, in the right types."""
    kinds = {"version": int, "corpus": str, "fingerprint": str, "split": str, "seed": int, "embedder": str}
    numbers = {"similarity": float, "redraws": int, "pairs": int, "words": int}
    return {name: type(value) for name, value in made.items()} == kinds | numbers


def _fits(pair: Pair) -> bool:
    texts = (pair.row, pair.category, pair.prompt, pair.answer, pair.source)
    numbers = isinstance(pair.similarity, float) and -1 <= pair.similarity <= 1 and isinstance(pair.tries, int)
    return numbers and isinstance(pair.fallback, bool) and all(isinstance(text, str) for text in texts)


def _lines(pairs: Sequence[Pair]) -> str:
    # ASCII, so that no character of a text can count as the end of a line.
    return "".join(json.dumps(pair._asdict()) + "\n" for pair in pairs)


def _write(path: Path, pairing: Pairing) -> None:
    head = {"made": pairing.made, "counts": pairing.counts, "digest": pairing.digest}
    try:
        replace_file(path, json.dumps(head) + "\n" + _lines(pairing.pairs))
    except OSError as error:
        raise UserError(f"The pairs can't be written to {path}: {error.strerror or error}.") from None


@contextmanager
def _alone(cache: Path, tell: Tell | None) -> Iterator[None]:
    """One builder for each cache; others wait and say so."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(cache / ".lock")
        while True:
            try:
                lock.acquire(timeout=1)
                break
            except filelock.Timeout:
                if tell:
                    tell("waiting for another process that builds pairs", 0, 0, 0.0)
    except OSError as error:
        raise UserError(
            f"The folder for pairs {cache} can't be written ({error.strerror or error}): free space, mend its "
            "permissions, or choose another home with IMMUNELAB_HOME."
        ) from None
    try:
        yield
    finally:
        lock.release()
