"""Composed retrieval in the built-in world: look-alikes, several targets, six kinds of change.

The gallery holds whole families of 32 look-alikes (`cirlab.world.series`) and nuisance twins of
some of them. A query's reference and principal target are of one family; all scenes that have
the target's signature are targets. What a text leaves unsaid never makes another scene right:
the changes of a family touch different shapes, cells and facets, so that its words can mean
one of them only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cirlab.benchmarks.base import Benchmark, TargetRanks
from cirlab.errors import UserError
from cirlab.metrics import mean_average_precisions, mean_rank, recalls
from cirlab.records import Query
from cirlab.world.image import SceneImage
from cirlab.world.phrasing import STYLES, modification
from cirlab.world.scene import Signature, draw_nuisance, generator, pick, pick_share
from cirlab.world.series import FAMILY_SIZE, Family, Member, draw_family, draw_members

#: Members of a look-alike subset, the reference included, as in CIRR.
SUBSET_SIZE = 6
#: Cumulative shares of no, one, two and three nuisance twins of a gallery scene.
_TWIN_SHARES = (0.80, 0.94, 0.98, 1.0)


class WorldComposed(Benchmark):
    """Reference picture and modification text; the reference is excluded by id.

    Half of the texts are instructions, half describe the target's changed part; 40, 35 and 25 %
    hold one, two and three changes. A query's subset are the target and four others that are
    one to three changes away from the reference. Tags: `category` (several joined by "+"),
    `style`, `changes`.

    Args:
        families: each gives 32 gallery scenes and about 8 nuisance twins of these.
        queries_per_family: each from another pair of reference and target.
        split: val or test; training never sees either's scenes.
        seed: another benchmark of the same kind.
        name: where it stands in the results.
        image_size: side of the pictures in pixels.

    Raises:
        UserError: a number is out of range.
    """

    kind = "composed"
    breakdowns = ("category", "style", "changes")
    exclusion = "the reference image"
    gallery: list[SceneImage]

    def __init__(
        self,
        families: int = 80,
        queries_per_family: int = 20,
        split: Literal["val", "test"] = "val",
        seed: int = 0,
        name: str = "world_composed",
        image_size: int = 64,
    ) -> None:
        if families < 1:
            raise UserError(f"{name} has {families} families; set families to at least 1")
        if not 1 <= queries_per_family <= FAMILY_SIZE:
            raise UserError(
                f"{name} asks {queries_per_family} queries of each family; "
                f"set queries_per_family from 1 to {FAMILY_SIZE}"
            )
        self.families = families
        self.queries_per_family = queries_per_family
        self.split = split
        self.seed = seed
        self.name = name
        self.image_size = image_size
        self.gallery = []
        self.queries = []

    @property
    def gallery_id(self) -> str:
        return f"world_families-{self.split}-{self.seed}-{self.families}-{self.image_size}"

    def setup(self) -> None:
        if self.gallery:
            return
        drafts = [draft for number in range(self.families) for draft in self._family(number)]
        by_signature: defaultdict[Signature, list[str]] = defaultdict(list)
        for image in self.gallery:
            by_signature[image.scene.signature()].append(image.id)
        self.queries = [
            draft.query(by_signature[draft.target.scene.signature()]) for draft in drafts
        ]

    def score(self, ranks: TargetRanks, queries: Sequence[Query]) -> dict[str, float]:
        metrics = recalls(ranks.targets, (1, 5, 10))
        if ranks.subset is not None:
            metrics |= recalls(ranks.subset, (1, 2, 3), prefix="subset_recall")
        metrics |= mean_average_precisions(ranks.targets, (5, 10))
        return metrics | {"mean_rank": mean_rank(ranks.targets)}

    def _family(self, number: int) -> list[_Draft]:
        """Put one family and its twins into the gallery; its queries, targets to be filled in."""
        rng = generator(self.split, self.seed, number)
        family = draw_family(rng)
        prefix = f"{self.split}-{self.seed}-{number}"
        images = [
            SceneImage(f"{prefix}-{member}", family.scene(member), self.image_size)
            for member in range(FAMILY_SIZE)
        ]
        self.gallery += images
        for image in images:
            for i in range(pick_share(rng, _TWIN_SHARES)):
                twin = image.scene.twin(draw_nuisance(rng))
                self.gallery.append(SceneImage(f"{image.id}-twin{i}", twin, self.image_size))
        references = rng.permutation(FAMILY_SIZE)[: self.queries_per_family].tolist()
        return [_draft(family, images, reference, rng) for reference in references]


@dataclass(frozen=True)
class _Draft:
    """A query before its targets are looked up in the whole gallery."""

    reference: SceneImage
    target: SceneImage
    text: str
    subset: tuple[str, ...]
    tags: dict[str, str]

    def query(self, targets: Sequence[str]) -> Query:
        principal = self.target.id
        return Query(
            id=f"{self.reference.id}>{principal}",
            text=self.text,
            image=self.reference,
            targets=(principal, *(name for name in targets if name != principal)),
            exclude=(self.reference.id,),
            subset=self.subset,
            tags=self.tags,
        )


def _draft(
    family: Family, images: Sequence[SceneImage], reference: Member, rng: np.random.Generator
) -> _Draft:
    (target,) = draw_members(rng, 1, reference=reference)
    rivals = draw_members(rng, SUBSET_SIZE - 2, reference=reference, exclude=(target,))
    changes = family.between(reference, target)
    style = pick(rng, STYLES)
    return _Draft(
        reference=images[reference],
        target=images[target],
        text=modification(changes, images[reference].scene, style, rng),
        subset=tuple(images[member].id for member in sorted((target, *rivals))),
        tags={
            "category": "+".join(sorted({change.category for change in changes})),
            "style": style,
            "changes": str(len(changes)),
        },
    )
