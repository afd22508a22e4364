"""Composed retrieval in the built-in world: look-alikes, several targets, six kinds of change.

The gallery holds families of six look-alikes (`cirlab.world.series`) and nuisance twins of
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
from cirlab.world.changes import Change
from cirlab.world.image import SceneImage
from cirlab.world.phrasing import STYLES, Style, modification
from cirlab.world.scene import Signature, draw_nuisance, generator, pick, pick_share
from cirlab.world.series import Family, draw_family

FAMILY_SIZE = 6
#: Cumulative shares of no, one, two and three nuisance twins of a gallery scene.
_TWIN_SHARES = (0.75, 0.90, 0.97, 1.0)
#: Share of queries from a family's base to a variation; the others lead back.
_FORWARD = 0.7
Members = Sequence[SceneImage]


class WorldComposed(Benchmark):
    """Reference picture and modification text; the reference is excluded by id.

    Documented shares: half of the texts are instructions, half describe the target's changed
    part; 40, 35 and 25 % hold one, two and three changes; 70 % lead from a family's base to a
    variation, the others back. Tags: `category` (several joined by "+"), `style`, `changes`.

    Args:
        families: look-alike families; each gives 6 gallery scenes and their twins (about 0.4
            for each scene).
        queries_per_family: from 1 to 5, each with another variation.
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
        families: int = 375,
        queries_per_family: int = 4,
        split: Literal["val", "test"] = "val",
        seed: int = 0,
        name: str = "world_composed",
        image_size: int = 64,
    ) -> None:
        if families < 1:
            raise UserError(f"{name} has {families} families; set families to at least 1")
        if not 1 <= queries_per_family < FAMILY_SIZE:
            raise UserError(
                f"{name} asks {queries_per_family} queries of each family; "
                f"set queries_per_family from 1 to {FAMILY_SIZE - 1}"
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

    def score(self, ranks: TargetRanks) -> dict[str, float]:
        metrics = recalls(ranks.targets, (1, 5, 10))
        if ranks.subset is not None:
            metrics |= recalls(ranks.subset, (1, 2, 3), prefix="subset_recall")
        metrics |= mean_average_precisions(ranks.targets, (5, 10))
        return metrics | {"mean_rank": mean_rank(ranks.targets)}

    def _family(self, number: int) -> list[_Draft]:
        """Put one family and its twins into the gallery; its queries, targets to be filled in."""
        rng = generator(self.split, self.seed, number)
        family = draw_family(rng, FAMILY_SIZE)
        prefix = f"{self.split}-{self.seed}-{number}"
        members = [
            SceneImage(f"{prefix}-{i}", scene, self.image_size)
            for i, scene in enumerate(family.scenes)
        ]
        self.gallery += members
        for member in members:
            for i in range(pick_share(rng, _TWIN_SHARES)):
                twin = member.scene.twin(draw_nuisance(rng))
                self.gallery.append(SceneImage(f"{member.id}-twin{i}", twin, self.image_size))
        chosen = rng.permutation(FAMILY_SIZE - 1)[: self.queries_per_family]
        return [_draft(family, members, int(i), rng) for i in chosen]


@dataclass(frozen=True)
class _Draft:
    """A query before its targets are looked up in the whole gallery."""

    reference: SceneImage
    target: SceneImage
    changes: tuple[Change, ...]
    style: Style
    text: str
    subset: tuple[str, ...]

    def query(self, targets: Sequence[str]) -> Query:
        principal = self.target.id
        categories = sorted({change.category for change in self.changes})
        return Query(
            id=f"{self.reference.id}>{principal}",
            text=self.text,
            image=self.reference,
            targets=(principal, *(name for name in targets if name != principal)),
            exclude=(self.reference.id,),
            subset=self.subset,
            tags={
                "category": "+".join(categories),
                "style": self.style,
                "changes": str(len(self.changes)),
            },
        )


def _draft(family: Family, members: Members, variation: int, rng: np.random.Generator) -> _Draft:
    varied = family.variations[variation]
    ends, changes = (members[0], members[variation + 1]), varied.changes
    if rng.random() >= _FORWARD:
        ends, changes = ends[::-1], varied.inverse()
    reference, target = ends
    style = pick(rng, STYLES)
    return _Draft(
        reference=reference,
        target=target,
        changes=changes,
        style=style,
        text=modification(changes, reference.scene, style, rng),
        subset=tuple(member.id for member in members if member.id != reference.id),
    )
