from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest

from cirlab.world.image import SceneImage
from cirlab.world.render import render
from cirlab.world.scene import Scene, Thing, draw_scene, generator
from cirlab.world.series import FAMILY_SIZE, draw_family
from cirlab.world.vocabulary import LOOK_VALUES, SETTING_VALUES

SETTINGS = [dict(zip(SETTING_VALUES, v, strict=True)) for v in product(*SETTING_VALUES.values())]


def scene_of(*things: Thing, nuisance: int = 0, **setting: str) -> Scene:
    plain = {"place": "field", "time": "day", "weather": "clear", "view": "above"} | setting
    return Scene(things=things, nuisance=nuisance, **plain)


def thing(cell: int = 4, **look: str) -> Thing:
    plain = {"shape": "circle", "colour": "red", "size": "large", "texture": "plain"} | look
    return Thing(cells=(cell,), **plain)


def difference(first: Scene, second: Scene, image_size: int = 64) -> np.ndarray:
    """Largest difference of any channel. Shape (S, S)."""
    a, b = (render(s, image_size).astype(int) for s in (first, second))
    return np.abs(a - b).max(axis=2)


@pytest.mark.parametrize("image_size", [17, 64, 100])
def test_pictures_are_rgb_bytes_of_the_asked_size_and_repeatable(image_size: int) -> None:
    for i in range(20):
        scene = draw_scene(generator("val", i))
        picture = render(scene, image_size)
        assert picture.shape == (image_size, image_size, 3)
        assert picture.dtype == np.uint8
        np.testing.assert_array_equal(picture, render(scene, image_size))


def test_an_earlier_picture_does_not_change_a_later_one() -> None:
    scenes = [draw_scene(generator("val", i)) for i in range(30)]
    first = [render(scene) for scene in scenes]
    second = [render(scene) for scene in reversed(scenes)][::-1]
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("image_size", [32, 64, 100])
@pytest.mark.parametrize("size", LOOK_VALUES["size"])
def test_a_thing_is_drawn_in_its_cell(image_size: int, size: str) -> None:
    for cell, nuisance in product(range(9), range(5)):
        empty = scene_of(nuisance=nuisance)
        changed = difference(empty, scene_of(thing(cell, size=size), nuisance=nuisance), image_size)
        rows, columns = np.nonzero(changed > 40)
        assert len(rows) > 0
        centre = rows.mean() * 3 / image_size, columns.mean() * 3 / image_size
        assert (int(centre[0]), int(centre[1])) == divmod(cell, 3)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: "-".join(s.values()))
def test_every_colour_stands_out_against_every_setting(setting: dict[str, str]) -> None:
    for colour, cell in product(LOOK_VALUES["colour"], (1, 4, 7)):
        small = thing(cell, colour=colour, size="small")
        changed = difference(scene_of(**setting), scene_of(small, **setting))
        # A small circle with its outline covers about 150 pixels, of which rain hides some.
        assert (changed > 40).sum() > 40


def test_every_two_looks_differ_clearly() -> None:
    for name, values in LOOK_VALUES.items():
        for first, second in combinations(values, 2):
            changed = difference(
                scene_of(thing(**{name: first})), scene_of(thing(**{name: second}))
            )
            assert (changed > 60).sum() >= 20, (name, first, second)


def test_every_two_settings_differ_clearly() -> None:
    pictures = [render(scene_of(**setting)).astype(int) for setting in SETTINGS]
    for (i, first), (j, second) in combinations(enumerate(pictures), 2):
        changed = np.abs(first - second).max(axis=2)
        everywhere, in_spots = changed.mean() > 6, (changed > 60).sum() > 100
        assert everywhere or in_spots, (SETTINGS[i], SETTINGS[j])


def test_every_member_of_a_family_can_be_told_by_eye() -> None:
    for i in range(10):
        family = draw_family(generator("val", i))
        base = family.scene(0)
        for member in range(1, FAMILY_SIZE):
            other = family.scene(member)
            # Equal nuisance, equal noise: what differs is the change.
            changed = difference(base, replace(other, nuisance=base.nuisance))
            assert (changed > 15).sum() >= 20


def test_twins_differ_in_pixels_but_little() -> None:
    for i in range(30):
        scene = draw_scene(generator("val", i))
        twin, other = scene.twin(scene.nuisance + 1), draw_scene(generator("val", 1000 + i))
        assert (difference(scene, twin) > 0).any()
        assert difference(scene, twin).mean() < difference(scene, other).mean()


def test_a_scene_image_loads_as_pil() -> None:
    scene = draw_scene(generator("val", 0))
    image = SceneImage("x", scene, image_size=48).load()
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), render(scene, 48))
