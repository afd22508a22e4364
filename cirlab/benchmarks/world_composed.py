"""Composed retrieval in the built-in world: look-alikes, several targets, six kinds of change.

The gallery holds whole families of 32 look-alikes (`cirlab.world.series`) and nuisance twins of
some of them. A query's reference and principal target are of one family; all scenes that have
the target's signature are targets. What a text leaves unsaid never makes another scene right:
the changes of a family touch different shapes, cells and facets, so that its words can mean
one of them only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from cirlab.benchmarks.base import TargetRanks
from cirlab.benchmarks.world_families import Group, WorldFamilies, change_tags, ids_by_signature
from cirlab.errors import UserError
from cirlab.metrics import mean_average_precisions, mean_rank, recalls
from cirlab.records import Query
from cirlab.world.image import SceneImage
from cirlab.world.phrasing import STYLES, modification
from cirlab.world.scene import pick
from cirlab.world.series import FAMILY_SIZE, Member, draw_members

#: Members of a look-alike subset, the reference included, as in CIRR.
SUBSET_SIZE = 6


class WorldComposed(WorldFamilies):
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

    def __init__(
        self,
        families: int = 80,
        queries_per_family: int = 20,
        split: Literal["val", "test"] = "val",
        seed: int = 0,
        name: str = "world_composed",
        image_size: int = 64,
    ) -> None:
        super().__init__(families, split, seed, name, image_size)
        if not 1 <= queries_per_family <= FAMILY_SIZE:
            raise UserError(
                f"{name} asks {queries_per_family} queries of each family; "
                f"set queries_per_family from 1 to {FAMILY_SIZE}"
            )
        self.queries_per_family = queries_per_family

    def ask(self, groups: Sequence[Group], gallery: Sequence[SceneImage]) -> Iterable[Query]:
        equal = ids_by_signature(gallery)
        for group in groups:
            references = group.rng.permutation(FAMILY_SIZE)[: self.queries_per_family].tolist()
            for reference in references:
                draft = _draft(group, reference)
                yield draft.query(equal[draft.target.scene.signature()])

    def score(self, ranks: TargetRanks, queries: Sequence[Query]) -> dict[str, float]:
        metrics = recalls(ranks.targets, (1, 5, 10))
        if ranks.subset is not None:
            metrics |= recalls(ranks.subset, (1, 2, 3), prefix="subset_recall")
        metrics |= mean_average_precisions(ranks.targets, (5, 10))
        return metrics | {"mean_rank": mean_rank(ranks.targets)}


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


def _draft(group: Group, reference: Member) -> _Draft:
    images, rng = group.images, group.rng
    (target,) = draw_members(rng, 1, reference=reference)
    rivals = draw_members(rng, SUBSET_SIZE - 2, reference=reference, exclude=(target,))
    changes = group.family.between(reference, target)
    style = pick(rng, STYLES)
    return _Draft(
        reference=images[reference],
        target=images[target],
        text=modification(changes, images[reference].scene, style, rng),
        subset=tuple(images[member].id for member in sorted((target, *rivals))),
        tags=change_tags(changes, style),
    )
