from __future__ import annotations

from collections import Counter

import pytest

from cirlab.benchmarks.genecis import TASKS
from cirlab.benchmarks.world_genecis import WorldGeneCIS
from cirlab.records import Query
from cirlab.world.image import SceneImage
from cirlab.world.scene import Scene
from cirlab.world.vocabulary import COLOURS, SHAPES, SIZES, TEXTURES
from tests.benchmarks.world_readers import scenes_of, with_image_alone, with_text_alone


@pytest.fixture(scope="module")
def benchmark() -> WorldGeneCIS:
    made = WorldGeneCIS(families=30, queries_per_task=60)
    made.setup()
    return made


@pytest.fixture(scope="module")
def scenes(benchmark: WorldGeneCIS) -> dict[str, Scene]:
    return scenes_of(benchmark)


def reference(query: Query) -> Scene:
    assert isinstance(query.image, SceneImage)
    return query.image.scene


def shapes_with(scene: Scene, word: str) -> set[str]:
    return {thing.shape for thing in scene.things if word in thing.look}


def is_right(query: Query, scene: Scene) -> bool:
    """Each task in its own words."""
    before, word = reference(query), query.text
    if query.tags["task"].endswith("object"):
        return word in {thing.shape for thing in scene.things} and scene.place == before.place
    at = {thing.shape for thing in before.things}
    if query.tags["task"] == "focus_attribute":
        at = shapes_with(before, word)
    return bool(at & shapes_with(scene, word))


def test_exactly_one_candidate_is_right(benchmark: WorldGeneCIS, scenes: dict[str, Scene]) -> None:
    for query in benchmark.queries:
        right = [name for name in query.candidates or () if is_right(query, scenes[name])]
        assert right == list(query.targets)


def test_galleries_are_as_large_as_those_of_genecis(benchmark: WorldGeneCIS) -> None:
    assert Counter(q.tags["task"] for q in benchmark.queries) == dict.fromkeys(TASKS, 60)
    for query in benchmark.queries:
        candidates = set(query.candidates or ())
        assert len(candidates) == len(query.candidates or ())
        assert len(candidates) == (15 if query.tags["task"].endswith("object") else 10)
        assert query.image is not None and query.image.id not in candidates


def test_conditions_are_one_word_that_fits_the_task(benchmark: WorldGeneCIS) -> None:
    for query in benchmark.queries:
        task = query.tags["task"]
        words = SHAPES if task.endswith("object") else (*COLOURS, *SIZES, *TEXTURES)
        assert query.text in words
        assert bool(shapes_with(reference(query), query.text)) == task.startswith("focus")
    assert len({query.text for query in benchmark.queries}) == len(SHAPES) + 14


def test_wrong_ones_share_the_scene_or_have_what_is_asked_but_not_both(
    benchmark: WorldGeneCIS, scenes: dict[str, Scene]
) -> None:
    for query in benchmark.queries:
        wrong = [scenes[name] for name in query.candidates or () if name not in query.targets]
        misleading = [scene for scene in wrong if shapes_with(scene, query.text)]
        alike = [scene for scene in wrong if _likeness(scene, reference(query)) >= 2]
        half = len(query.candidates or ()) // 2
        assert len(misleading) >= len(wrong) - half
        assert len(alike) >= half


def _likeness(scene: Scene, other: Scene) -> int:
    """In how many things and facets of the setting two scenes agree."""
    settings = (scene.place, scene.time, scene.weather, scene.view)
    others = (other.place, other.time, other.weather, other.view)
    same = sum(a == b for a, b in zip(settings, others, strict=True))
    return same + len(set(scene.things) & set(other.things))


def test_neither_the_reference_nor_the_word_alone_tells(benchmark: WorldGeneCIS) -> None:
    image, text = with_image_alone(benchmark), with_text_alone(benchmark)
    assert image["macro_recall_at_1"] < 0.35
    assert text["macro_recall_at_1"] < 0.35
    names = {f"{macro}recall_at_{k}" for macro in ("", "macro_") for k in (1, 2, 3)}
    assert set(image) == names


def test_the_right_one_does_not_stand_in_one_place(benchmark: WorldGeneCIS) -> None:
    places = Counter((q.candidates or ()).index(q.targets[0]) for q in benchmark.queries)
    assert max(places.values()) < 0.3 * len(benchmark.queries)
