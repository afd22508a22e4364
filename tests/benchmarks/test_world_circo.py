from __future__ import annotations

from dataclasses import replace

import pytest

from cirlab.benchmarks.circo import CUTOFFS
from cirlab.benchmarks.world_circo import CONJUNCTION, WorldCIRCO, shared_concept
from cirlab.world.image import SceneImage
from cirlab.world.scene import Scene, Thing
from tests.benchmarks.world_readers import (
    scenes_of,
    with_image_alone,
    with_target,
    with_text_alone,
)
from tests.world.reading import phrases, settings, tells_the_difference


@pytest.fixture(scope="module")
def benchmark() -> WorldCIRCO:
    made = WorldCIRCO(families=30, queries=150)
    made.setup()
    return made


@pytest.fixture(scope="module")
def scenes(benchmark: WorldCIRCO) -> dict[str, Scene]:
    return scenes_of(benchmark)


def test_targets_are_all_scenes_with_the_things_and_the_setting_that_the_text_names(
    benchmark: WorldCIRCO, scenes: dict[str, Scene]
) -> None:
    for query in benchmark.queries:
        principal = scenes[query.targets[0]]
        named = {facet for facet, _ in settings(query.text)}
        right = {
            name
            for name, scene in scenes.items()
            if scene.things == principal.things
            and all(getattr(scene, facet) == getattr(principal, facet) for facet in named)
        }
        assert set(query.targets) == right
        assert len(query.targets) == len(right)


def test_most_queries_have_several_targets(benchmark: WorldCIRCO) -> None:
    numbers = sorted(len(query.targets) for query in benchmark.queries)
    assert numbers[0] >= 2 and max(numbers) >= 8
    assert 3 < sum(numbers) / len(numbers) < 7


def test_texts_tell_what_leads_from_the_reference_to_the_principal_target(
    benchmark: WorldCIRCO, scenes: dict[str, Scene]
) -> None:
    for query in benchmark.queries:
        assert isinstance(query.image, SceneImage)
        principal = scenes[query.targets[0]]
        assert tells_the_difference(query.text, query.image.scene, principal), query


def test_the_reference_may_be_ranked_and_is_never_right(
    benchmark: WorldCIRCO, scenes: dict[str, Scene]
) -> None:
    assert benchmark.exclusion == "none"
    for query in benchmark.queries:
        assert query.image is not None and query.image.id in scenes
        assert not query.exclude and query.candidates is None
        assert query.image.id not in query.targets


def test_the_reference_is_left_out_on_request(benchmark: WorldCIRCO) -> None:
    without = WorldCIRCO(families=30, queries=150, exclude_reference=True)
    without.setup()
    assert without.protocol().exclusion == "the reference image"
    assert without.checksum() != benchmark.checksum()
    for query, plain in zip(without.queries, benchmark.queries, strict=True):
        assert query.image is not None
        assert query == replace(plain, exclude=(query.image.id,))


def test_aspects_are_those_of_circo(benchmark: WorldCIRCO) -> None:
    found = {aspect for query in benchmark.queries for aspect in query.tags["aspect"].split("+")}
    assert found == {
        "direct_addressing",
        "addition",
        "negation",
        "spatial_relations_background",
        "viewpoint",
        "cardinality",
        CONJUNCTION,
    }


def test_a_template_names_what_is_shared(benchmark: WorldCIRCO, scenes: dict[str, Scene]) -> None:
    named = WorldCIRCO(families=30, queries=150, query="magiclens")
    named.setup()
    for query, plain in zip(named.queries, benchmark.queries, strict=True):
        assert query.id == plain.id and query.targets == plain.targets
        concept = query.text.removeprefix("find ").removesuffix(f" but {plain.text}")
        assert query.text == f"find {concept} but {plain.text}"
        assert isinstance(query.image, SceneImage)
        for phrase in phrases(concept):
            assert any(phrase._replace(count=None).things(query.image.scene))
            assert any(phrase._replace(count=None).things(scenes[query.targets[0]]))


def test_the_shared_concept_says_only_what_both_have() -> None:
    look = {"size": "small", "texture": "plain"}
    star = Thing((0,), shape="star", colour="red", **look)
    rings = Thing((1, 2), shape="ring", colour="blue", **look)
    scene = Scene((rings, star), "sea", "day", "fog", "level", 0)
    green = replace(star, colour="green")
    one = replace(rings, cells=(1,))
    assert shared_concept(scene, scene) == "two blue rings and a red star"
    assert (
        shared_concept(scene, replace(scene, things=(rings, green))) == "two blue rings and a star"
    )
    assert shared_concept(scene, replace(scene, things=(one,))) == "a blue ring"
    heart = replace(star, shape="heart")
    assert shared_concept(replace(scene, things=(star,)), replace(scene, things=(heart,))) == ""


def test_only_both_together_tell_the_targets(benchmark: WorldCIRCO) -> None:
    image, text, both = (
        read(benchmark) for read in (with_image_alone, with_text_alone, with_target)
    )
    assert image["map_at_5"] < 0.15 and text["map_at_5"] < 0.15
    assert both["map_at_5"] > 0.5 and both["recall_at_5"] == 1.0
    assert set(both) == {f"{name}_at_{k}" for name in ("map", "recall") for k in CUTOFFS}
