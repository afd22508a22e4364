from __future__ import annotations

from collections import Counter

import pytest

from cirlab.world.scene import MAX_CELLS, draw_scene, facets, generator
from cirlab.world.vocabulary import LOOK_VALUES, SETTING_VALUES

SCENES = [draw_scene(generator("train", 5, i)) for i in range(1500)]


def test_equal_seeds_draw_equal_scenes() -> None:
    assert draw_scene(generator("val", 3, 4)) == draw_scene(generator("val", 3, 4))


def test_splits_and_numbers_draw_from_streams_of_their_own() -> None:
    seeds = [("train", 1), ("val", 1), ("test", 1), ("train", 0, 1), ("train", 1, 0, 0, 1)]
    scenes = {draw_scene(generator(split, *numbers)) for split, *numbers in seeds}
    assert len(scenes) == len(seeds)


def test_a_seed_of_too_many_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match="at most four numbers"):
        generator("train", 1, 2, 3, 4, 5)


def test_things_stand_in_distinct_cells_and_look_different() -> None:
    for scene in SCENES:
        cells = [cell for thing in scene.things for cell in thing.cells]
        assert len(cells) == len(set(cells)) <= MAX_CELLS
        assert set(cells) <= set(range(9))
        assert len({thing.look for thing in scene.things}) == len(scene.things)
        assert scene.things == tuple(sorted(scene.things))
        assert all(thing.cells == tuple(sorted(thing.cells)) for thing in scene.things)


def test_most_scenes_hold_two_or_three_things_and_every_value_occurs() -> None:
    counts = Counter(len(scene.things) for scene in SCENES)
    assert set(counts) == {1, 2, 3, 4}
    assert counts[2] + counts[3] > 0.7 * len(SCENES)
    for name, values in LOOK_VALUES.items():
        assert {getattr(t, name) for scene in SCENES for t in scene.things} == set(values)
    for name, values in SETTING_VALUES.items():
        assert {getattr(scene, name) for scene in SCENES} == set(values)
    assert {t.count for scene in SCENES for t in scene.things} == {1, 2, 3}


def test_a_twin_has_the_same_signature_only() -> None:
    scene = SCENES[0]
    twin = scene.twin(scene.nuisance + 1)
    assert twin != scene
    assert twin.signature() == scene.signature()


def test_facets_answer_for_the_setting_and_for_every_thing() -> None:
    for scene in SCENES[:50]:
        answers = facets(scene)
        assert set(answers) == {*SETTING_VALUES, *LOOK_VALUES, "count", "position"}
        assert answers["time"] == scene.time
        assert answers["colour"] == tuple(thing.colour for thing in scene.things)
        assert answers["count"] == tuple(str(len(thing.cells)) for thing in scene.things)
