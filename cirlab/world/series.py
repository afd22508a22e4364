"""Families of look-alikes: a base scene, and every subset of five changes to it.

Each change is made in half of a family's 32 scenes. So the same words are true of many of
them, and only the reference tells which one is meant; and each scene has five neighbours at
one change, ten at two and ten at three, so that the reference alone does not tell either:
text alone and image alone are both not enough, by construction.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np

from cirlab.world.changes import Change, apply_all, draw_changes
from cirlab.world.language import describe
from cirlab.world.phrasing import STYLES, Style, modification
from cirlab.world.scene import Scene, Split, draw_scene, generator, pick, pick_share
from cirlab.world.vocabulary import SETTING_VALUES

#: Cumulative shares of one, two and three changes between a reference and its target.
CHANGE_SHARES = (0.40, 0.75, 1.0)
POOL_SIZE = 5
FAMILY_SIZE = 2**POOL_SIZE

#: Which of a family's changes a scene has, one bit each; 0 is the base.
Member = int


@dataclass(frozen=True)
class Family:
    """A base scene and five changes, any subset of which makes a member."""

    base: Scene
    pool: tuple[Change, ...]

    def scene(self, member: Member) -> Scene:
        """The member's scene, always with the same nuisance, and not that of another member."""
        changes = [self.pool[i] for i in _BITS[member]]
        nuisance = (self.base.nuisance + member * 0x9E3779B9) % 2**32
        return apply_all(self.base, changes).twin(nuisance)

    def between(self, reference: Member, target: Member) -> tuple[Change, ...]:
        """The changes that lead from one member to another."""
        return tuple(
            self.pool[i].inverse() if reference >> i & 1 else self.pool[i]
            for i in _BITS[reference ^ target]
        )


def draw_family(rng: np.random.Generator) -> Family:
    """A random base scene and changes of it."""
    base = draw_scene(rng)
    return Family(base=base, pool=draw_changes(base, POOL_SIZE, rng))


def draw_members(
    rng: np.random.Generator, count: int, reference: Member = 0, exclude: Collection[Member] = ()
) -> list[Member]:
    """Distinct members at one to three changes from `reference`, by `CHANGE_SHARES`.

    Args:
        rng: decides which.
        count: how many, up to 25 less the excluded ones.
        reference: is never drawn.
        exclude: members that are not drawn either.
    """
    left = [[reference ^ step for step in steps] for steps in _steps()]
    left = [[member for member in members if member not in exclude] for members in left]
    if count > sum(map(len, left)):
        raise ValueError(f"{count} members are more than the {sum(map(len, left))} within reach")
    chosen: list[Member] = []
    while len(chosen) < count:
        options = left[pick_share(rng, CHANGE_SHARES)]
        if options:
            chosen.append(options.pop(int(rng.random() * len(options))))
    return chosen


def series(seed: int, size: int = 4, split: Split = "train") -> tuple[Scene, ...]:
    """A base scene and size - 1 variations of it, by one to three changes each."""
    rng = generator(split, seed)
    return draw_series(rng, size)


def draw_series(rng: np.random.Generator, size: int) -> tuple[Scene, ...]:
    """A base scene and size - 1 variations of it, up to 26 in all."""
    family = draw_family(rng)
    return tuple(family.scene(member) for member in (0, *draw_members(rng, size - 1)))


def composition_example(
    rng: np.random.Generator, style: Style | None = None
) -> tuple[str, str, str]:
    """What composing means, in words only: (source caption, change, resulting caption).

    Both captions say the same kinds of things, those that change among them, so that the
    second follows from the first and the change.
    """
    base = draw_scene(rng)
    count = 1 + pick_share(rng, CHANGE_SHARES)
    changes = draw_changes(base, count, rng)
    target = apply_all(base, changes)
    optional = ("size", "texture", "position", *SETTING_VALUES)
    said = {"colour"} | {facet for facet in optional if rng.random() < 0.5}
    said |= {facet for change in changes for facet in change.facets()}
    spoken = pick(rng, STYLES) if style is None else style
    text = modification(changes, base, spoken, rng)
    return describe(base, said, rng), text, describe(target, said, rng)


_BITS = [[i for i in range(POOL_SIZE) if member >> i & 1] for member in range(FAMILY_SIZE)]


@cache
def _steps() -> list[list[int]]:
    """Differences of one, two and three changes, as bits."""
    return [
        [sum(1 << i for i in chosen) for chosen in combinations(range(POOL_SIZE), n)]
        for n in (1, 2, 3)
    ]
