"""Fashion-IQ's rules in the built-in world: two captions, three categories with pools of their own.

The categories, garments in Fashion-IQ (Wu et al., arXiv 1905.12794), are places here: a beach, a
field, the sea. Reference and target are of one place and two or three changes apart. As of two
people who compare them, each of the two captions tells a part, and leaves out something that the
other says; their joined text tells everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from cirlab.benchmarks.fashioniq import (
    TEMPLATES,
    CaptionTemplate,
    FashionIQRules,
    Pool,
)
from cirlab.benchmarks.world_families import (
    FAMILIES,
    MAX_CHANGES,
    Group,
    Stream,
    WorldFamilies,
    ids_by_signature,
)
from cirlab.errors import UserError
from cirlab.reading.official import check_choice
from cirlab.records import Query
from cirlab.world.image import SceneImage
from cirlab.world.phrasing import modification
from cirlab.world.scene import pick
from cirlab.world.series import FAMILY_SIZE, Member

CATEGORIES = ("beach", "field", "sea")


class WorldFashionIQ(FashionIQRules, WorldFamilies):
    """Reference picture and two captions of the change; ranked among the pictures of its place.

    The reference may be ranked, as most papers let it. A pair is asked about only if no other
    picture of the gallery shows the target's scene, since one target counts.

    Args:
        families: each gives 32 gallery scenes and about 8 nuisance twins of these.
        queries_per_category: of each of the three places.
        pool: what a query ranks: "original" is every picture of its place, "union" only the
            references and targets of the place's queries.
        caption_template: how two captions become one text, see `FashionIQ`.
        both_orders: ask with the captions in either order and average the vectors, as SEARLE.
        exclude_reference: never rank the reference itself, as CoVR.
        split: val or test; training never sees either's scenes.
        seed: another gallery and other queries of the same kind.
        name: where it stands in the results; null: world_fashioniq_<pool>.
        image_size: side of the pictures in pixels.

    Raises:
        UserError: a number is out of range, or an unknown pool or template.
    """

    def __init__(
        self,
        families: int = FAMILIES,
        queries_per_category: int = 100,
        pool: Pool = "original",
        caption_template: CaptionTemplate = "and",
        both_orders: bool = False,
        exclude_reference: bool = False,
        split: Literal["val", "test"] = "val",
        seed: int = 0,
        name: str | None = None,
        image_size: int = 64,
    ) -> None:
        check_choice("pool of WorldFashionIQ", pool, get_args(Pool))
        check_choice("caption_template of WorldFashionIQ", caption_template, tuple(TEMPLATES))
        super().__init__(families, split, seed, name or f"world_fashioniq_{pool}", image_size)
        self.at_least(queries_per_category=queries_per_category)
        self.queries_per_category = queries_per_category
        self.pool: Pool = pool
        self.choose(caption_template, both_orders, exclude_reference)

    def ask(self, groups: Sequence[Group], gallery: Sequence[SceneImage]) -> Iterable[Query]:
        equal = ids_by_signature(gallery)
        self.reversed = []
        unique = {names[0] for names in equal.values() if len(names) == 1}
        for number, category in enumerate(CATEGORIES):
            rng = self.numbers(Stream.FASHION, number)
            pairs = [pair for pair in self._pairs(groups, category) if pair.target_id in unique]
            chosen = [pairs[i] for i in rng.permutation(len(pairs))[: self.queries_per_category]]
            if len(chosen) < self.queries_per_category:
                raise UserError(
                    f"{self.name} has {len(chosen)} pairs of category {category}, but is to ask "
                    f"{self.queries_per_category} queries of each; lower queries_per_category, or "
                    "raise families"
                )
            pool = self._pool(category, chosen, gallery)
            for pair in chosen:
                captions = pair.captions(rng)
                self.reversed.append(self._text(captions[::-1]))
                yield self._query(category, pair, pool, captions)

    def _pairs(self, groups: Sequence[Group], category: str) -> Iterable[_Pair]:
        for group in groups:
            members = [
                member
                for member in range(FAMILY_SIZE)
                if group.images[member].scene.place == category
            ]
            yield from (
                _Pair(group, reference, target)
                for reference in members
                for target in members
                if 2 <= (reference ^ target).bit_count() <= MAX_CHANGES
            )

    def _pool(
        self, category: str, pairs: Sequence[_Pair], gallery: Sequence[SceneImage]
    ) -> tuple[str, ...]:
        if self.pool == "union":
            ids = (name for pair in pairs for name in (pair.reference_id, pair.target_id))
            return tuple(dict.fromkeys(ids))
        return tuple(image.id for image in gallery if image.scene.place == category)

    def _query(
        self, category: str, pair: _Pair, pool: tuple[str, ...], captions: Sequence[str]
    ) -> Query:
        return Query(
            id=f"{category}/{pair.reference_id}>{pair.target_id}",
            text=self._text(captions),
            image=pair.group.images[pair.reference],
            targets=(pair.target_id,),
            exclude=(pair.reference_id,) if self.exclude_reference else (),
            candidates=pool,
            tags={"category": category},
        )

    def _text(self, captions: Sequence[str]) -> str:
        return TEMPLATES[self.caption_template].joined(captions)


@dataclass(frozen=True)
class _Pair:
    """Reference and target of one family and place."""

    group: Group
    reference: Member
    target: Member

    @property
    def reference_id(self) -> str:
        return self.group.images[self.reference].id

    @property
    def target_id(self) -> str:
        return self.group.images[self.target].id

    def captions(self, rng: np.random.Generator) -> tuple[str, str]:
        """Two descriptions, each of some changes, that leave none out together."""
        found = self.group.family.between(self.reference, self.target)
        changes = [found[i] for i in rng.permutation(len(found))]
        # Of three changes both may speak of the one in the middle, as two people do.
        until, since = pick(rng, ((1, 1),) if len(changes) == 2 else ((1, 1), (2, 2), (2, 1)))
        scene = self.group.images[self.reference].scene
        first, second = (
            modification(part, scene, "description", rng)
            for part in (changes[:until], changes[since:])
        )
        return first, second
