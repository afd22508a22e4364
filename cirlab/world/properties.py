"""What can be asked of one facet of a scene, and which scenes have it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import NamedTuple

from cirlab.world.language import ADJECTIVES, setting_phrase
from cirlab.world.scene import Scene
from cirlab.world.vocabulary import LOOK_VALUES, PLURALS, POSITIONS, SETTING_VALUES, SHAPES

#: As spoken of in queries, from one on.
NUMBERS = ("one", "two", "three")
#: How a query says a value; the setting says it with a phrase of its own.
TEMPLATE = "show an image {}"


class Value(NamedTuple):
    """A value of a facet.

    Attributes:
        name: of the value; of a number with the shape that is counted, e.g. "two stars".
        text: of the query.
    """

    facet: str
    name: str
    text: str


def facet_values() -> Mapping[str, Sequence[Value]]:
    """All values that are asked for, by facet."""
    found: dict[str, list[Value]] = {}
    for value in _values():
        found.setdefault(value.facet, []).append(value)
    return found


def _values() -> Iterator[Value]:
    for facet, names in SETTING_VALUES.items():
        for name in names:
            yield Value(facet, name, TEMPLATE.format(setting_phrase(facet, name)))
    for shape in SHAPES:
        yield Value("shape", shape, TEMPLATE.format(f"with a {shape}"))
    for number, shape in product(NUMBERS, SHAPES):
        name = f"{number} {shape if number == 'one' else PLURALS[shape]}"
        yield Value("number", name, TEMPLATE.format(f"with {name}"))
    for facet in ADJECTIVES:
        for name in LOOK_VALUES[facet]:
            article = "an" if name.startswith("o") else "a"
            yield Value(facet, name, TEMPLATE.format(f"with {article} {name} one"))
    for name in POSITIONS:
        yield Value("position", name, TEMPLATE.format(f"with one {name}"))


def has(scene: Scene, value: Value) -> bool:
    """Whether the query's words are true of a scene, whichever way they are read."""
    if value.facet != "number":
        return not lacks(scene, value)
    number, counts = _counts(scene, value)
    return counts == [number]


def lacks(scene: Scene, value: Value) -> bool:
    """Whether they are true of it in no way.

    A scene with two red stars and a blue one has three stars, and two red ones: it neither has
    nor lacks two stars, and is no candidate.
    """
    if value.facet in SETTING_VALUES:
        return getattr(scene, value.facet) != value.name
    if value.facet == "position":
        return POSITIONS.index(value.name) not in scene.taken_cells()
    if value.facet == "number":
        number, counts = _counts(scene, value)
        return number not in (*counts, sum(counts))
    return all(getattr(thing, value.facet) != value.name for thing in scene.things)


def _counts(scene: Scene, value: Value) -> tuple[int, list[int]]:
    """The number that is asked for, and how many copies each thing of the shape has."""
    number, noun = value.name.split()
    counts = [t.count for t in scene.things if noun in (t.shape, PLURALS[t.shape])]
    return NUMBERS.index(number) + 1, counts
