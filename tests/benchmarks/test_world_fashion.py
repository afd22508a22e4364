from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from cirlab.benchmarks.world_families import ids_by_signature
from cirlab.benchmarks.world_fashion import CATEGORIES, WorldFashionIQ
from cirlab.world.image import SceneImage
from cirlab.world.scene import Scene
from tests.benchmarks.world_readers import (
    scenes_of,
    with_image_alone,
    with_target,
    with_text_alone,
)
from tests.world.reading import phrases, settings, tells_the_difference


def made(**options: object) -> WorldFashionIQ:
    benchmark = WorldFashionIQ(**({"families": 30} | options))  # type: ignore[arg-type]
    benchmark.setup()
    return benchmark


@pytest.fixture(scope="module")
def benchmark() -> WorldFashionIQ:
    return made()


@pytest.fixture(scope="module")
def scenes(benchmark: WorldFashionIQ) -> dict[str, Scene]:
    return scenes_of(benchmark)


def test_a_query_ranks_every_picture_of_its_place_and_no_other(
    benchmark: WorldFashionIQ, scenes: dict[str, Scene]
) -> None:
    categories = Counter(query.tags["category"] for query in benchmark.queries)
    assert categories == dict.fromkeys(CATEGORIES, 100)
    for query in benchmark.queries:
        place = {name for name, scene in scenes.items() if scene.place == query.tags["category"]}
        assert set(query.candidates or ()) == place
        assert len(query.candidates or ()) == len(place)


def test_the_union_pool_holds_references_and_targets_only(benchmark: WorldFashionIQ) -> None:
    union = made(pool="union")
    assert union.gallery_id == benchmark.gallery_id
    assert union.name != benchmark.name
    assert [q.text for q in union.queries] == [q.text for q in benchmark.queries]
    for category in CATEGORIES:
        queries = [q for q in union.queries if q.tags["category"] == category]
        named = {name for q in queries if q.image for name in (q.image.id, *q.targets)}
        assert all(set(query.candidates or ()) == named for query in queries)
        assert all(len(query.candidates or ()) == len(named) for query in queries)


def test_no_other_image_shows_the_target(
    benchmark: WorldFashionIQ, scenes: dict[str, Scene]
) -> None:
    equal = ids_by_signature(benchmark.gallery)
    for query in benchmark.queries:
        (target,) = query.targets
        assert list(equal[scenes[target].signature()]) == [target]


def test_the_reference_may_be_ranked_and_is_of_the_same_place(benchmark: WorldFashionIQ) -> None:
    assert benchmark.exclusion == "none"
    for query in benchmark.queries:
        assert isinstance(query.image, SceneImage)
        assert query.image.scene.place == query.tags["category"]
        assert query.image.id in (query.candidates or ()) and not query.exclude


def test_joined_captions_tell_the_whole_difference(
    benchmark: WorldFashionIQ, scenes: dict[str, Scene]
) -> None:
    for query in benchmark.queries:
        assert isinstance(query.image, SceneImage)
        target = scenes[query.targets[0]]
        assert tells_the_difference(query.text, query.image.scene, target), query


def test_each_of_two_captions_leaves_something_out(benchmark: WorldFashionIQ) -> None:
    """Told by the joint: no caption speaks of settings or shapes that are all the other's."""
    both = 0
    for query in benchmark.queries:
        parts = query.text.split(" and ")
        cuts = [(" and ".join(parts[:i]), " and ".join(parts[i:])) for i in range(1, len(parts))]
        assert cuts, query.text
        both += any(_topics(a) - _topics(b) and _topics(b) - _topics(a) for a, b in cuts)
    assert both > 0.95 * len(benchmark.queries)


def _topics(text: str) -> set[str]:
    return {facet for facet, _ in settings(text)} | {phrase.shape for phrase in phrases(text)}


def test_templates_word_the_same_captions_otherwise(benchmark: WorldFashionIQ) -> None:
    capital = made(caption_template="clip4cir")
    assert [q.id for q in capital.queries] == [q.id for q in benchmark.queries]
    for query, other in zip(capital.queries, benchmark.queries, strict=True):
        assert query.text != other.text
        assert query.text.lower() == other.text
    assert capital.protocol().query_template != benchmark.protocol().query_template


def test_captions_are_asked_in_either_order(benchmark: WorldFashionIQ) -> None:
    both = made(both_orders=True)
    assert (benchmark.wordings, both.wordings) == (1, 2)
    assert benchmark.asked() == benchmark.queries == both.queries
    asked = both.asked()
    assert asked[::2] == both.queries
    for query, turned in zip(both.queries, asked[1::2], strict=True):
        assert turned == replace(query, text=turned.text)
        parts = query.text.split(" and ")
        joints = range(1, len(parts))
        assert turned.text in {" and ".join([*parts[i:], *parts[:i]]) for i in joints}
    assert both.protocol() == replace(benchmark.protocol(), wordings=2)


def test_the_reference_is_left_out_on_request(benchmark: WorldFashionIQ) -> None:
    without = made(exclude_reference=True)
    protocol = without.protocol()
    assert protocol.exclusion == "the reference image"
    assert protocol.annotations != benchmark.protocol().annotations
    for query, plain in zip(without.queries, benchmark.queries, strict=True):
        assert query.image is not None
        assert query == replace(plain, exclude=(query.image.id,))


def test_only_both_together_tell_the_target(benchmark: WorldFashionIQ) -> None:
    image, text, both = (
        read(benchmark) for read in (with_image_alone, with_text_alone, with_target)
    )
    assert image["macro_recall_at_10"] < 0.4 and text["macro_recall_at_10"] < 0.5
    assert both["macro_recall_at_10"] == 1.0
    assert set(both) == {f"{macro}recall_at_{k}" for macro in ("", "macro_") for k in (10, 50)}
