"""COCO-Facet's rules in the built-in world: texts about one facet, 99 negatives that lack it.

In COCO-Facet (Promptable embeddings, arXiv 2505.15877) a query names one property of an image,
often not what the image shows first, and each query ranks one image that has it and 99 that do not.
Here the facets are all that can be said of a scene.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Literal, NamedTuple

import numpy as np

from cirlab.benchmarks.coco_facet import CANDIDATES, COCOFacetRules
from cirlab.benchmarks.world_families import FAMILIES, Group, Stream, WorldFamilies
from cirlab.errors import UserError
from cirlab.records import Query
from cirlab.world.dialogue import QUESTIONS
from cirlab.world.image import SceneImage
from cirlab.world.language import ADJECTIVES, setting_phrase
from cirlab.world.scene import Scene, pick
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


class WorldFacet(COCOFacetRules, WorldFamilies):
    """One picture that has a property, among others that do not have it.

    The facets: place, time, weather, view, shape, number, colour, size, texture, position. A
    query's prompt is a question about its facet ("what is the weather?"), for methods that can
    look at pictures with one; none of this repository does so yet.

    Args:
        families: each gives 32 gallery scenes and about 8 nuisance twins of these, of which
            queries take their candidates.
        queries_per_facet: the values of a facet take turns, as far as the gallery has scenes with
            and without them.
        negatives: pictures without the value that a query ranks beside the right one.
        split: val or test; training never sees either's scenes.
        seed: another gallery and other queries of the same kind.
        name: where it stands in the results.
        image_size: side of the pictures in pixels.

    Raises:
        UserError: a number is out of range.
    """

    def __init__(
        self,
        families: int = FAMILIES,
        queries_per_facet: int = 50,
        negatives: int = CANDIDATES - 1,
        split: Literal["val", "test"] = "val",
        seed: int = 0,
        name: str = "world_facet",
        image_size: int = 64,
    ) -> None:
        super().__init__(families, split, seed, name, image_size)
        self.at_least(queries_per_facet=queries_per_facet, negatives=negatives)
        self.queries_per_facet = queries_per_facet
        self.negatives = negatives

    def ask(self, groups: Sequence[Group], gallery: Sequence[SceneImage]) -> Iterable[Query]:
        for number, (facet, values) in enumerate(facet_values().items()):
            rng = self.numbers(Stream.FACET, number)
            found = (_pool(value, gallery) for value in values)
            pools = [pool for pool in found if self._is_enough(pool)]
            if not pools:
                raise UserError(
                    f"no {facet} has {self.negatives} scenes without it among the "
                    f"{len(gallery)} of {self.name}; raise families, or lower negatives"
                )
            for i in range(self.queries_per_facet):
                if i % len(pools) == 0:
                    order = rng.permutation(len(pools))
                yield self._query(f"{facet}/{i}", pools[order[i % len(pools)]], rng)

    def _is_enough(self, pool: _Pool) -> bool:
        return bool(pool.having) and len(pool.lacking) >= self.negatives

    def _query(self, name: str, pool: _Pool, rng: np.random.Generator) -> Query:
        positive = pick(rng, pool.having)
        chosen = rng.permutation(len(pool.lacking))[: self.negatives]
        return Query(
            id=name,
            text=pool.value.text,
            targets=(positive,),
            candidates=tuple(sorted((positive, *(pool.lacking[i] for i in chosen)))),
            prompt=QUESTIONS[pool.value.facet][0],
            tags={"facet": pool.value.facet},
        )


class _Pool(NamedTuple):
    """A value with the ids of the scenes that have and that lack it."""

    value: Value
    having: Sequence[str]
    lacking: Sequence[str]


def _pool(value: Value, gallery: Sequence[SceneImage]) -> _Pool:
    having = [image.id for image in gallery if has(image.scene, value)]
    lacking = [image.id for image in gallery if lacks(image.scene, value)]
    return _Pool(value, having, lacking)


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
