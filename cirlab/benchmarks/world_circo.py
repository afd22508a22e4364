"""CIRCO's rules in the built-in world: every picture that fits is a target, often several do.

In CIRCO (Baldrati et al., arXiv 2303.15247) reference and targets share a concept, the text says
how they differ, and everything else is free. Here they share the things, as changed by the text,
and of the setting only what the text speaks of is asked for: the same things by day or at night,
in fog or in the rain, are all right if the text names neither.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from cirlab.benchmarks.circo import TEMPLATES, CIRCORules
from cirlab.benchmarks.world_families import FAMILIES, Group, Stream, WorldFamilies
from cirlab.errors import UserError
from cirlab.records import Query
from cirlab.world.changes import Category, Change, SettingChange
from cirlab.world.image import SceneImage
from cirlab.world.language import indefinite, join
from cirlab.world.phrasing import STYLES, modification
from cirlab.world.scene import Scene, Thing, pick
from cirlab.world.series import FAMILY_SIZE, POOL_SIZE, Member

#: CIRCO's name of the semantic aspect that each category of change is nearest to.
ASPECTS: Mapping[Category, str] = {
    "attribute": "direct_addressing",
    "added": "addition",
    "removed": "negation",
    "relationship": "spatial_relations_background",
    "viewpoint": "viewpoint",
    "number": "cardinality",
}
CONJUNCTION = "statement_with_conjunction"


class WorldCIRCO(CIRCORules, WorldFamilies):
    """Reference picture and one or two changes; all pictures with the changed things are targets.

    The reference may be ranked, as CIRCO's authors let it. The principal target has the
    reference's setting, as far as the text does not change it.

    Args:
        families: each gives 32 gallery scenes and about 8 nuisance twins of these; queries are
            asked of those in which the setting changes.
        queries: how many.
        query: how a query's words become its text, by name as in `CIRCO`: "relative" is the
            change alone; "magiclens" and "megapairs" also name the things that are shared.
        exclude_reference: never rank the reference, as CoVR.
        split: val or test; training never sees either's scenes.
        seed: another gallery and other queries of the same kind.
        name: where it stands in the results.
        image_size: side of the pictures in pixels.

    Raises:
        UserError: a number is out of range, or an unknown template.
    """

    def __init__(
        self,
        families: int = FAMILIES,
        queries: int = 200,
        query: Literal["relative", "magiclens", "megapairs"] = "relative",
        exclude_reference: bool = False,
        split: Literal["val", "test"] = "val",
        seed: int = 0,
        name: str = "world_circo",
        image_size: int = 64,
    ) -> None:
        super().__init__(families, split, seed, name, image_size)
        self.at_least(queries=queries)
        if query not in TEMPLATES:
            raise UserError(f"query of {name} is {query!r}; use one of: {', '.join(TEMPLATES)}")
        self.number_of_queries = queries
        self.exclude_reference = exclude_reference
        self.exclusion = "the reference image" if exclude_reference else "none"
        self.template = TEMPLATES[query]
        self.query_template = f"{query}: {self.template}"

    def ask(self, groups: Sequence[Group], gallery: Sequence[SceneImage]) -> Iterable[Query]:
        rng = self.numbers(Stream.CIRCO)
        images = defaultdict(list)
        for image in gallery:
            images[image.scene.things].append(image)
        drafts = [draft for group in groups for draft in _drafts(group)]
        if len(drafts) < self.number_of_queries:
            raise UserError(
                f"{self.name} can ask {len(drafts)} queries of {self.families} families, not "
                f"{self.number_of_queries}; lower queries, or raise families"
            )
        for i in rng.permutation(len(drafts))[: self.number_of_queries]:
            yield self._query(drafts[i], images, rng)

    def _query(
        self,
        draft: _Draft,
        images: Mapping[tuple[Thing, ...], Sequence[SceneImage]],
        rng: np.random.Generator,
    ) -> Query:
        principal, changes = draft.target, draft.changes
        others = [
            image.id
            for image in images[principal.scene.things]
            if image.id != principal.id and _is_set(image.scene, changes)
        ]
        text = modification(changes, draft.reference.scene, pick(rng, STYLES), rng)
        concept = shared_concept(draft.reference.scene, principal.scene)
        aspects = {ASPECTS[change.category] for change in changes}
        if len(changes) > 1:
            aspects.add(CONJUNCTION)
        return Query(
            id=f"{draft.reference.id}>{principal.id}",
            text=self.template.format(relative_caption=text, shared_concept=concept),
            image=draft.reference,
            targets=(principal.id, *others),
            exclude=(draft.reference.id,) if self.exclude_reference else (),
            tags={"aspect": "+".join(sorted(aspects))},
        )


@dataclass(frozen=True)
class _Draft:
    """A query before its targets are looked up."""

    reference: SceneImage
    target: SceneImage
    changes: tuple[Change, ...]


def _drafts(group: Group) -> Iterator[_Draft]:
    """All pairs that share something, and leave a change of the setting open."""
    for reference in range(FAMILY_SIZE):
        for target in range(FAMILY_SIZE):
            if (reference ^ target).bit_count() in (1, 2) and _is_open(group, reference ^ target):
                images = group.images[reference], group.images[target]
                if shared_concept(images[0].scene, images[1].scene):
                    yield _Draft(*images, group.family.between(reference, target))


def _is_open(group: Group, step: Member) -> bool:
    return any(
        isinstance(group.family.pool[i], SettingChange)
        for i in range(POOL_SIZE)
        if not step >> i & 1
    )


def _is_set(scene: Scene, changes: Iterable[Change]) -> bool:
    """Whether the setting is what the changes ask for."""
    return all(
        getattr(scene, change.facet) == change.after
        for change in changes
        if isinstance(change, SettingChange)
    )


def shared_concept(reference: Scene, target: Scene) -> str:
    """The things that both have, in words that are true of both; empty if they share none."""
    return join([words for thing in target.things if (words := _shared(thing, reference))] or [""])


def _shared(thing: Thing, reference: Scene) -> str:
    """Shape, and colour and number where they agree."""
    alike = [other for other in reference.things if other.shape == thing.shape]
    if not alike:
        return ""
    other = max(alike, key=lambda other: (other.colour == thing.colour, other.count == thing.count))
    spoken = thing if other.count == thing.count else replace(thing, cells=thing.cells[:1])
    return indefinite(spoken, {"colour"} if other.colour == thing.colour else ())
