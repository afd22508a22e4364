from __future__ import annotations

import pytest

from cirlab.benchmarks.cirr import HEADLINE, SET_SIZE
from cirlab.benchmarks.world_cirr import WorldCIRR
from cirlab.benchmarks.world_families import ids_by_signature
from cirlab.world.image import SceneImage
from cirlab.world.scene import Scene
from tests.benchmarks.world_readers import (
    scenes_of,
    with_image_alone,
    with_target,
    with_text_alone,
)
from tests.world.reading import tells_the_difference


@pytest.fixture(scope="module")
def benchmark() -> WorldCIRR:
    made = WorldCIRR(families=30)
    made.setup()
    return made


@pytest.fixture(scope="module")
def scenes(benchmark: WorldCIRR) -> dict[str, Scene]:
    return scenes_of(benchmark)


def test_no_other_image_shows_the_target(benchmark: WorldCIRR, scenes: dict[str, Scene]) -> None:
    equal = ids_by_signature(benchmark.gallery)
    for query in benchmark.queries:
        (target,) = query.targets
        assert list(equal[scenes[target].signature()]) == [target]


def test_texts_tell_what_leads_from_reference_to_target(
    benchmark: WorldCIRR, scenes: dict[str, Scene]
) -> None:
    for query in benchmark.queries:
        assert isinstance(query.image, SceneImage)
        target = scenes[query.targets[0]]
        assert tells_the_difference(query.text, query.image.scene, target), query


def test_the_reference_is_in_the_gallery_and_excluded(
    benchmark: WorldCIRR, scenes: dict[str, Scene]
) -> None:
    for query in benchmark.queries:
        assert isinstance(query.image, SceneImage)
        assert scenes[query.image.id] == query.image.scene
        assert query.exclude == (query.image.id,)
        assert query.targets[0] != query.image.id


def test_image_sets_are_six_different_look_alikes(
    benchmark: WorldCIRR, scenes: dict[str, Scene]
) -> None:
    for query in benchmark.queries:
        assert query.image is not None and query.subset is not None
        members = {query.image.id, *query.subset}
        assert len(query.subset) == SET_SIZE - 1 and len(members) == SET_SIZE
        assert query.targets[0] in query.subset
        assert len({scenes[name].signature() for name in members}) == SET_SIZE
        assert len({name.rsplit("-", 1)[0] for name in members}) == 1


def test_pairs_of_one_set_are_asked_about(benchmark: WorldCIRR) -> None:
    sets: dict[frozenset[str], int] = {}
    for query in benchmark.queries:
        assert query.image is not None and query.subset is not None
        members = frozenset((query.image.id, *query.subset))
        sets[members] = sets.get(members, 0) + 1
    assert len(sets) > 1.9 * benchmark.families
    assert sum(count == benchmark.queries_per_set for count in sets.values()) > 0.9 * len(sets)


def test_only_both_together_tell_the_target(benchmark: WorldCIRR) -> None:
    image, text, both = (
        read(benchmark) for read in (with_image_alone, with_text_alone, with_target)
    )
    assert image["recall_at_5"] < 0.4 and image["subset_recall_at_1"] < 0.4
    assert text["recall_at_5"] < 0.25
    assert both["recall_at_1"] == both["subset_recall_at_1"] == both[HEADLINE] == 1.0
    assert set(both) == {
        *(f"recall_at_{k}" for k in (1, 5, 10, 50)),
        *(f"subset_recall_at_{k}" for k in (1, 2, 3)),
        HEADLINE,
    }
