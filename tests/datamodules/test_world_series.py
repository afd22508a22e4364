"""What a key means: members of one scene's series, and randomness of one's own."""

from __future__ import annotations

import pytest

from cirlab.records import SampleKey
from datamodules.world_series import SceneSource


def source(fresh: bool) -> SceneSource:
    return SceneSource(samples=8, seed=3, series=4, fresh=fresh, image_size=32)


def test_consecutive_samples_show_a_scene_and_its_variations() -> None:
    images = [source(fresh=True).shown(SampleKey(1, index)) for index in range(8)]
    assert [image.id for image in images] == [f"3-1-{i // 4}-{i % 4}" for i in range(8)]
    assert len({repr(image.scene) for image in images}) == 8
    assert images[5].load().size == (32, 32)


@pytest.mark.parametrize("fresh", [True, False])
def test_scenes_come_again_where_they_are_not_fresh_and_what_is_drawn_anew_does_not(
    fresh: bool,
) -> None:
    one, two = (SampleKey(epoch, 5) for epoch in (0, 1))
    scenes = source(fresh)
    assert (scenes.shown(one) == scenes.shown(two)) != fresh
    same = scenes.generator(one).random() == scenes.generator(two).random()
    assert same != fresh
    anew = [scenes.generator(key, anew=True).random() for key in (one, two)]
    assert anew[0] != anew[1] and anew[0] == scenes.generator(one).random()
