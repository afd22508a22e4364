"""Labels of a scene's cells: what stands there, by the vocabulary's numbers."""

from __future__ import annotations

from cirlab.world.labels import LABEL_COUNTS, cell_labels
from cirlab.world.scene import Scene, Thing, draw_scene, generator
from cirlab.world.vocabulary import COLOURS, PLACES, SHAPES, SIZES, TEXTURES

SCENE = Scene(
    things=(
        Thing((0, 8), "ring", "blue", "large", "dotted"),
        Thing((4,), "star", "red", "small", "plain"),
    ),
    place="sea",
    time="day",
    weather="fog",
    view="level",
    nuisance=0,
)


def test_each_cell_tells_what_stands_in_it() -> None:
    labels = cell_labels(SCENE)
    assert labels["taken"] == (1, 0, 0, 0, 1, 0, 0, 0, 1)
    for facet, values, first, second in (
        ("shape", SHAPES, "ring", "star"),
        ("colour", COLOURS, "blue", "red"),
        ("size", SIZES, "large", "small"),
        ("texture", TEXTURES, "dotted", "plain"),
    ):
        there, here = values.index(first), values.index(second)
        assert labels[facet] == (there, -1, -1, -1, here, -1, -1, -1, there)
    assert labels["place"] == (PLACES.index("sea"),) * 9


def test_there_are_as_many_labels_as_are_counted() -> None:
    scenes = [draw_scene(generator("val", 0, number)) for number in range(200)]
    drawn = [cell_labels(scene) for scene in scenes]
    for facet, count in LABEL_COUNTS.items():
        found = {label for labels in drawn for label in labels[facet]} - {-1}
        assert found == set(range(count))
