"""GeneCIS's rules in the built-in world: one word tells in what a picture is to resemble another.

Four tasks (Vaze et al., arXiv 2306.07969), each query with a small gallery in which exactly one
picture is right:

- focus_attribute: the reference shows a red star among others; "red" asks for a red star.
- change_attribute: it shows a blue star; "red" asks for a red star.
- focus_object: it shows a star on a beach among others; "star" asks for a star on a beach.
- change_object: it shows no star on its beach; "star" asks for a beach with one.

About half of the wrong pictures are look-alikes of the reference without what the word says, the
rest have it in another place, or at other shapes: the reference alone does not tell the right one,
and the word alone does not either.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Literal

import numpy as np

from cirlab.benchmarks.genecis import TASKS, GeneCISRules, Task
from cirlab.benchmarks.world_families import (
    FAMILIES,
    Group,
    Stream,
    WorldFamilies,
    is_within_reach,
)
from cirlab.errors import UserError
from cirlab.records import Query
from cirlab.world.image import SceneImage
from cirlab.world.language import ADJECTIVES
from cirlab.world.scene import Scene
from cirlab.world.series import FAMILY_SIZE, Member
from cirlab.world.vocabulary import LOOK_VALUES, SHAPES

#: Pictures that a query ranks, as in GeneCIS.
ATTRIBUTE_CANDIDATES = 10
OBJECT_CANDIDATES = 15
_ATTRIBUTE_VALUES = tuple(value for name in ADJECTIVES for value in LOOK_VALUES[name])


class WorldGeneCIS(GeneCISRules, WorldFamilies):
    """Reference picture and one word; 10 pictures in the attribute tasks, 15 in the object tasks.

    Args:
        families: each gives 32 gallery scenes and about 8 nuisance twins of these, of which
            queries take their candidates.
        queries_per_task: of each of the four.
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
        queries_per_task: int = 100,
        split: Literal["val", "test"] = "val",
        seed: int = 0,
        name: str = "world_genecis",
        image_size: int = 64,
    ) -> None:
        super().__init__(families, split, seed, name, image_size)
        self.at_least(queries_per_task=queries_per_task)
        self.queries_per_task = queries_per_task

    def ask(self, groups: Sequence[Group], gallery: Sequence[SceneImage]) -> Iterable[Query]:
        for number, task in enumerate(TASKS):
            rng = self.numbers(Stream.GENECIS, number)
            queries = list(islice(self._queries(task, groups, gallery, rng), self.queries_per_task))
            if len(queries) < self.queries_per_task:
                raise UserError(
                    f"{self.name} can ask {len(queries)} queries of {task}, not "
                    f"{self.queries_per_task}; lower queries_per_task, or raise families"
                )
            yield from queries

    def _queries(
        self,
        task: Task,
        groups: Sequence[Group],
        gallery: Sequence[SceneImage],
        rng: np.random.Generator,
    ) -> Iterator[Query]:
        words = SHAPES if task.endswith("object") else _ATTRIBUTE_VALUES
        tried = list(product(groups, range(FAMILY_SIZE), words))
        found = 0
        for i in rng.permutation(len(tried)):
            group, member, word = tried[i]
            condition = _Condition.of(task, group.images[member].scene, word)
            candidates = condition and _candidates(condition, group, member, gallery, rng)
            if candidates:
                yield Query(
                    id=f"{task}/{found}",
                    text=word,
                    image=group.images[member],
                    targets=(candidates[0].id,),
                    candidates=tuple(sorted(image.id for image in candidates)),
                    tags={"task": task},
                )
                found += 1


@dataclass(frozen=True)
class _Condition:
    """What a word asks for, given the reference.

    Attributes:
        word: a shape, or the value of another attribute.
        shapes: of the things that are to have the value.
        place: where a shape is to be found; empty if the word is no shape.
    """

    word: str
    shapes: frozenset[str]
    place: str = ""

    @classmethod
    def of(cls, task: Task, reference: Scene, word: str) -> _Condition | None:
        """None where the word makes no query of this task."""
        having = frozenset(thing.shape for thing in reference.things if word in thing.look)
        if task.startswith("focus") != bool(having):
            return None
        if task.endswith("object"):
            return cls(word, frozenset({word}), reference.place)
        return cls(word, having or frozenset(thing.shape for thing in reference.things))

    def is_right(self, scene: Scene) -> bool:
        """Whether a picture has what the word says where the reference tells to look."""
        return self._has(scene, self.shapes) and self.place in ("", scene.place)

    def misleads(self, scene: Scene) -> bool:
        """Whether it has what the word says, and is wrong."""
        return self._has(scene, frozenset(SHAPES)) and not self.is_right(scene)

    def _has(self, scene: Scene, shapes: frozenset[str]) -> bool:
        return any(thing.shape in shapes and self.word in thing.look for thing in scene.things)


def _candidates(
    condition: _Condition,
    group: Group,
    member: Member,
    gallery: Sequence[SceneImage],
    rng: np.random.Generator,
) -> list[SceneImage]:
    """The right picture first, then wrong ones; none if there are too few."""
    mates = [
        group.images[i] for i in rng.permutation(FAMILY_SIZE) if is_within_reach(member, int(i))
    ]
    right = [image for image in mates if condition.is_right(image.scene)]
    alike = [image for image in mates if not condition.is_right(image.scene)]
    size = OBJECT_CANDIDATES if condition.place else ATTRIBUTE_CANDIDATES
    look_alikes = size // 2
    if not right or len(alike) < look_alikes:
        return []
    own = {image.id for image in (*group.images, *group.twins)}
    shuffled = (gallery[i] for i in rng.permutation(len(gallery)))
    misleading = (
        image for image in shuffled if image.id not in own and condition.misleads(image.scene)
    )
    others = list(islice(misleading, size - 1 - look_alikes))
    found = [right[0], *alike[:look_alikes], *others]
    return found if len(found) == size else []
