"""The gallery that benchmarks of the built-in world share: families of look-alikes.

Whole families of 32 look-alikes (`cirlab.world.series`), and nuisance twins of some of them.
Benchmarks of equal split, seed, size and pictures hold the same gallery, which is encoded once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import lru_cache
from typing import Literal

import numpy as np

from cirlab.benchmarks.base import Benchmark
from cirlab.errors import UserError
from cirlab.records import Query
from cirlab.world.changes import Change
from cirlab.world.image import SceneImage
from cirlab.world.scene import Signature, Split, draw_nuisance, generator, pick_share
from cirlab.world.series import FAMILY_SIZE, Family, Member, draw_family

#: Families of the benchmarks that mirror official ones: about 1,960 scenes.
FAMILIES = 48
#: How many changes a text may hold.
MAX_CHANGES = 3
#: Cumulative shares of no, one, two and three nuisance twins of a gallery scene.
_TWIN_SHARES = (0.80, 0.94, 0.98, 1.0)


class Stream(IntEnum):
    """Keeps the random numbers of benchmarks over one gallery apart, as the last of a seed.

    0 are the families themselves, 1 the scenes of `WorldTextToImage`.
    """

    CIRR = 2
    FASHION = 3
    CIRCO = 4
    GENECIS = 5
    FACET = 6
    DIALOGUE = 7


@dataclass(frozen=True)
class Group:
    """A family in the gallery.

    Attributes:
        number: of the family in its benchmark.
        family: its scenes and changes.
        images: by member.
        twins: other images of the same scenes.
        rng: goes on where the family and its images were drawn.
    """

    number: int
    family: Family
    images: tuple[SceneImage, ...]
    twins: tuple[SceneImage, ...]
    rng: np.random.Generator


class WorldFamilies(Benchmark):
    """Families of look-alikes as gallery; a subclass asks the queries.

    Args:
        families: each gives 32 gallery scenes and about 8 nuisance twins of these.
        split: val or test; training never sees either's scenes.
        seed: another gallery and other queries of the same kind.
        name: where it stands in the results.
        image_size: side of the pictures in pixels.

    Raises:
        UserError: there are no families.
    """

    gallery: list[SceneImage]

    def __init__(
        self, families: int, split: Literal["val", "test"], seed: int, name: str, image_size: int
    ) -> None:
        self.families = families
        self.split = split
        self.seed = seed
        self.name = name
        self.image_size = image_size
        self.gallery = []
        self.queries = []
        if families < 1:
            raise UserError(f"{name} has {families} families; set families to at least 1")

    @property
    def gallery_id(self) -> str:
        return f"world_families-{self.split}-{self.seed}-{self.families}-{self.image_size}"

    def setup(self) -> None:
        if self.gallery:
            return
        drawn = (
            _group(self.split, self.seed, number, self.image_size)
            for number in range(self.families)
        )
        groups = [replace(group, rng=deepcopy(group.rng)) for group in drawn]
        gallery = [image for group in groups for image in (*group.images, *group.twins)]
        # Last: where queries are refused, there is no gallery either.
        self.queries, self.gallery = list(self.ask(groups, gallery)), gallery

    @abstractmethod
    def ask(self, groups: Sequence[Group], gallery: Sequence[SceneImage]) -> Iterable[Query]:
        """The queries.

        Args:
            groups: the families of the gallery.
            gallery: all of their images.

        Raises:
            UserError: there are too few scenes for them.
        """

    def numbers(self, stream: Stream, number: int = 0) -> np.random.Generator:
        """The random numbers of a benchmark's queries, or of those with one number."""
        return generator(self.split, self.seed, number, stream)

    def at_least(self, **numbers: int) -> None:
        """Refuse arguments below 1.

        Raises:
            UserError: it names the first.
        """
        for argument, number in numbers.items():
            if number < 1:
                raise UserError(
                    f"{argument} of {self.name} is {number}; set {argument} to at least 1"
                )


@lru_cache(maxsize=256)
def _group(split: Split, seed: int, number: int, image_size: int) -> Group:
    """One family, drawn once for all benchmarks over it; its generator is to be copied."""
    rng = generator(split, seed, number)
    family = draw_family(rng)
    prefix = f"{split}-{seed}-{number}"
    images = [
        SceneImage(f"{prefix}-{member}", family.scene(member), image_size)
        for member in range(FAMILY_SIZE)
    ]
    twins = [
        SceneImage(f"{image.id}-twin{i}", image.scene.twin(draw_nuisance(rng)), image_size)
        for image in images
        for i in range(pick_share(rng, _TWIN_SHARES))
    ]
    return Group(number, family, tuple(images), tuple(twins), rng)


def ids_by_signature(images: Iterable[SceneImage]) -> Mapping[Signature, Sequence[str]]:
    """Which images show scenes of which the same can be said."""
    found: defaultdict[Signature, list[str]] = defaultdict(list)
    for image in images:
        found[image.scene.signature()].append(image.id)
    return found


def change_tags(changes: Sequence[Change], style: str) -> dict[str, str]:
    """By which results of composed queries are broken down."""
    return {
        "category": "+".join(sorted({change.category for change in changes})),
        "style": style,
        "changes": str(len(changes)),
    }


def is_within_reach(reference: Member, target: Member) -> bool:
    """Whether one to three changes, as many as a text may hold, lead from one to the other."""
    return 1 <= (reference ^ target).bit_count() <= MAX_CHANGES
