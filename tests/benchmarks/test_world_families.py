from __future__ import annotations

import pickle
import re
from functools import partial

import pytest
import torch

from cirlab.benchmarks import (
    WorldCIRCO,
    WorldCIRR,
    WorldComposed,
    WorldDialogue,
    WorldFacet,
    WorldFashionIQ,
    WorldGeneCIS,
)
from cirlab.benchmarks.base import TargetRanks
from cirlab.benchmarks.world_families import WorldFamilies, ids_by_signature
from cirlab.errors import UserError
from cirlab.world.scene import generator
from cirlab.world.series import FAMILY_SIZE, draw_family
from cirlab.world.vocabulary import dialogue_vocabulary, vocabulary, words_of

#: Small ones of all kinds, over one gallery.
MAKERS: dict[str, partial[WorldFamilies]] = {
    "composed": partial(WorldComposed, 14, queries_per_family=5),
    "cirr": partial(WorldCIRR, 14),
    "fashion": partial(WorldFashionIQ, 14, queries_per_category=20),
    "circo": partial(WorldCIRCO, 14, queries=40),
    "genecis": partial(WorldGeneCIS, 14, queries_per_task=12),
    "facet": partial(WorldFacet, 14, queries_per_facet=8, negatives=30),
    "dialogue": partial(WorldDialogue, 14, dialogues=20),
}


def made(name: str, **options: object) -> WorldFamilies:
    benchmark = MAKERS[name](**options)
    benchmark.setup()
    return benchmark


@pytest.mark.parametrize("name", MAKERS)
def test_setup_twice_and_copies_give_the_same(name: str) -> None:
    benchmark = made(name)
    before = benchmark.checksum()
    benchmark.setup()
    again = pickle.loads(pickle.dumps(MAKERS[name]()))
    again.setup()
    assert benchmark.checksum() == again.checksum() == before
    assert [query.tags for query in again.queries] == [query.tags for query in benchmark.queries]
    assert pickle.loads(pickle.dumps(benchmark)).protocol() == again.protocol()


def test_a_refused_setup_is_refused_again() -> None:
    benchmark = WorldCIRCO(2, queries=10**6)
    for _ in range(2):
        with pytest.raises(UserError, match="lower queries"):
            benchmark.setup()
    assert not benchmark.gallery and not benchmark.queries


def test_a_benchmark_asks_the_same_whatever_was_asked_before() -> None:
    """Families are drawn once, and each benchmark goes on with a generator of its own."""
    first, other = WorldComposed(3, seed=5), WorldCIRR(3, seed=5)
    for benchmark in (first, other, again := WorldComposed(3, seed=5)):
        benchmark.setup()
    assert again.checksum() == first.checksum()
    assert all(a is b for a, b in zip(first.gallery, other.gallery, strict=True))


@pytest.mark.parametrize("name", MAKERS)
def test_queries_name_images_of_the_gallery_and_words_of_the_world(name: str) -> None:
    benchmark = made(name)
    ids = {image.id for image in benchmark.gallery}
    assert len(ids) == len(benchmark.gallery)
    assert len({query.id for query in benchmark.queries}) == len(benchmark.queries)
    words = set(dialogue_vocabulary() if name == "dialogue" else vocabulary())
    for query in benchmark.queries:
        named = [*query.targets, *query.exclude, *(query.candidates or ()), *(query.subset or ())]
        assert ids.issuperset(named)
        assert set(words_of(query.text)) <= words
        assert set(words_of(query.prompt or "")) <= set(dialogue_vocabulary())


@pytest.mark.parametrize("name", MAKERS)
def test_perfect_ranks_reach_one(name: str) -> None:
    benchmark = made(name)
    width = max(len(query.targets) for query in benchmark.queries)
    numbers = [len(query.targets) for query in benchmark.queries]
    ranks = torch.arange(1, width + 1).expand(len(numbers), width)
    ranks = ranks.masked_fill(ranks > torch.tensor(numbers)[:, None], 0)
    subset = None if benchmark.queries[0].subset is None else ranks[:, :1].clamp(max=1)
    metrics = benchmark.metrics(TargetRanks(ranks, subset), benchmark.queries)
    assert metrics.pop("bri", 0.0) == 0.0
    assert set(metrics.values()) == {1.0}
    assert all(name.replace("macro_", "") in metrics for name in metrics)


def test_one_gallery_serves_all_kinds_and_each_asks_otherwise() -> None:
    benchmarks = [made(name) for name in MAKERS]
    assert len({benchmark.gallery_id for benchmark in benchmarks}) == 1
    assert all(benchmark.gallery == benchmarks[0].gallery for benchmark in benchmarks)
    assert len({benchmark.checksum() for benchmark in benchmarks}) == len(benchmarks)
    assert len({benchmark.name for benchmark in benchmarks}) == len(benchmarks)


@pytest.mark.parametrize("name", MAKERS)
def test_other_splits_and_seeds_hold_other_scenes(name: str) -> None:
    benchmark = made(name)
    signatures = set(ids_by_signature(benchmark.gallery))
    for other in (made(name, split="test"), made(name, seed=1)):
        assert not signatures & set(ids_by_signature(other.gallery))
        assert other.gallery_id != benchmark.gallery_id
    assert made(name, image_size=32).gallery_id != benchmark.gallery_id


def test_training_shows_none_of_the_scenes() -> None:
    signatures = set(ids_by_signature(made("cirr").gallery))
    for number in range(100):
        family = draw_family(generator("train", 0, 0, number))
        members = {family.scene(member).signature() for member in range(FAMILY_SIZE)}
        assert not signatures & members


def test_the_defaults_have_the_sizes_that_are_documented() -> None:
    defaults = [WorldCIRR(), WorldFashionIQ(), WorldCIRCO(), WorldGeneCIS(), WorldFacet()]
    for benchmark in (*defaults, WorldDialogue()):
        benchmark.setup()
        assert len(benchmark.gallery) == 1971
    assert [len(benchmark.queries) for benchmark in defaults] == [384, 300, 200, 400, 500]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cirr", {"families": 0}, "world_cirr has 0 families; set families to at least 1"),
        ("cirr", {"queries_per_set": 0}, "queries_per_set of world_cirr is 0"),
        ("fashion", {"queries_per_category": 5000}, "pairs of category beach"),
        ("fashion", {"pool": "all"}, "use one of: original, union"),
        ("fashion", {"caption_template": "or"}, "use one of: and, clip4cir"),
        ("circo", {"queries": 10**6}, "can ask .* of 14 families, not 1000000; lower queries"),
        ("circo", {"query": "mine"}, "use one of: relative, magiclens, megapairs"),
        ("genecis", {"queries_per_task": 10**5}, "queries of focus_attribute, not 100000; lower"),
        ("facet", {"negatives": 10**5}, "no place has 100000 scenes without it among the"),
        ("facet", {"queries_per_facet": 0}, "queries_per_facet of world_facet is 0"),
        ("dialogue", {"dialogues": 449}, "448 scenes for 449 dialogues; raise families"),
        ("dialogue", {"rounds": 39}, "only 38 questions can be asked"),
        ("dialogue", {"rounds": 0}, "rounds of world_dialogue is 0"),
    ],
)
def test_numbers_out_of_range_are_refused(
    name: str, options: dict[str, object], message: str
) -> None:
    keywords = {"families": 14} | MAKERS[name].keywords | options
    with pytest.raises(UserError, match=message):
        MAKERS[name].func(**keywords).setup()


def test_messages_are_one_sentence() -> None:
    with pytest.raises(UserError) as refused:
        WorldCIRR(families=0)
    assert not re.search(r"\.\s", str(refused.value))
