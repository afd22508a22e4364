"""CIRR's rules in the built-in world: image sets of six look-alikes, one target, no reference.

The image sets of CIRR (Liu et al., arXiv 2108.04024) are photographs that resemble each other; here
they are a scene and five others that one to three changes make of it. A pair of the set is asked
about only if no other picture of the gallery shows the target's scene, since one target counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import permutations
from typing import Literal

import numpy as np

from cirlab.benchmarks.cirr import SET_SIZE, CIRRRules
from cirlab.benchmarks.world_families import (
    FAMILIES,
    Group,
    Stream,
    WorldFamilies,
    change_tags,
    ids_by_signature,
    is_within_reach,
)
from cirlab.records import Query
from cirlab.world.image import SceneImage
from cirlab.world.phrasing import STYLES, modification
from cirlab.world.scene import Signature, pick
from cirlab.world.series import FAMILY_SIZE, Member, draw_members


class WorldCIRR(CIRRRules, WorldFamilies):
    """Reference picture and one to three changes; the target among all others, and of six.

    Args:
        families: each gives 32 gallery scenes and about 8 nuisance twins of these.
        sets_per_family: image sets of six look-alikes in each family.
        queries_per_set: pairs of reference and target in each set, fewer where a set has not
            as many.
        split: val or test; training never sees either's scenes.
        seed: another gallery and other queries of the same kind.
        name: where it stands in the results.
        image_size: side of the pictures in pixels.

    Raises:
        UserError: a number is out of range.
    """

    breakdowns = ("category", "style", "changes")

    def __init__(
        self,
        families: int = FAMILIES,
        sets_per_family: int = 2,
        queries_per_set: int = 4,
        split: Literal["val", "test"] = "val",
        seed: int = 0,
        name: str = "world_cirr",
        image_size: int = 64,
    ) -> None:
        super().__init__(families, split, seed, name, image_size)
        self.at_least(sets_per_family=sets_per_family, queries_per_set=queries_per_set)
        self.sets_per_family = sets_per_family
        self.queries_per_set = queries_per_set

    def ask(self, groups: Sequence[Group], gallery: Sequence[SceneImage]) -> Iterable[Query]:
        equal = ids_by_signature(gallery)
        for group in groups:
            rng = self.numbers(Stream.CIRR, group.number)
            asked: set[tuple[Member, Member]] = set()
            for _ in range(self.sets_per_family):
                first = int(rng.random() * FAMILY_SIZE)
                members = (first, *draw_members(rng, SET_SIZE - 1, reference=first))
                pairs = [pair for pair in _pairs(members, group, equal) if pair not in asked]
                for i in rng.permutation(len(pairs))[: self.queries_per_set]:
                    reference, target = pairs[i]
                    asked.add(pairs[i])
                    yield _query(group, members, reference, target, rng)


def _pairs(
    members: Sequence[Member], group: Group, equal: Mapping[Signature, Sequence[str]]
) -> Iterator[tuple[Member, Member]]:
    """References and targets of a set that a text can lead between, to one image only."""
    for reference, target in permutations(members, 2):
        scene = group.images[target].scene
        if is_within_reach(reference, target) and len(equal[scene.signature()]) == 1:
            yield reference, target


def _query(
    group: Group,
    members: Sequence[Member],
    reference: Member,
    target: Member,
    rng: np.random.Generator,
) -> Query:
    image = group.images[reference]
    changes = group.family.between(reference, target)
    style = pick(rng, STYLES)
    name = group.images[target].id
    return Query(
        id=f"{image.id}>{name}",
        text=modification(changes, image.scene, style, rng),
        image=image,
        targets=(name,),
        exclude=(image.id,),
        subset=tuple(group.images[member].id for member in members if member != reference),
        tags=change_tags(changes, style),
    )
