"""COCO-Facet's rules in the built-in world: texts about one facet, 99 negatives that lack it.

In COCO-Facet (Promptable embeddings, arXiv 2505.15877) a query names one property of an image,
often not what the image shows first, and each query ranks one image that has it and 99 that do not.
Here the facets are all that can be said of a scene.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from cirlab.benchmarks.coco_facet import CANDIDATES, COCOFacetRules
from cirlab.benchmarks.world_families import FAMILIES, Group, Stream, WorldFamilies
from cirlab.errors import UserError
from cirlab.records import Query
from cirlab.world.dialogue import QUESTIONS
from cirlab.world.image import SceneImage
from cirlab.world.properties import Value, facet_values, has, lacks
from cirlab.world.scene import pick


class WorldFacet(COCOFacetRules, WorldFamilies):
    """One picture that has a property, among others that do not have it.

    The facets: place, time, weather, view, shape, number, colour, size, texture, position. A
    query's prompt is a question about its facet ("what is the weather?"), for methods that can
    look at pictures with one (`lightning_modules.Promptable`).

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
