"""Families of look-alikes: a base scene and variations of it by one to three changes.

The variations of a family share a pool of changes, so that the same words are true of several
of them and only the reference tells which one is meant: text alone and image alone are both
not enough, by construction.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from cirlab.world.changes import Change, apply_all, draw_changes
from cirlab.world.language import describe
from cirlab.world.phrasing import STYLES, Style, modification
from cirlab.world.scene import Scene, Split, draw_nuisance, draw_scene, generator, pick, pick_share
from cirlab.world.vocabulary import SETTING_VALUES

#: Cumulative shares of one, two and three changes.
CHANGE_SHARES = (0.40, 0.75, 1.0)
POOL_SIZE = 4


@dataclass(frozen=True)
class Variation:
    """A scene, and the changes that lead to it from its family's base."""

    scene: Scene
    changes: tuple[Change, ...]

    def inverse(self) -> tuple[Change, ...]:
        """The changes that lead back to the base."""
        return tuple(change.inverse() for change in self.changes)


@dataclass(frozen=True)
class Family:
    """A base scene and its variations, all of different signature."""

    base: Scene
    variations: tuple[Variation, ...]

    @property
    def scenes(self) -> tuple[Scene, ...]:
        return (self.base, *(variation.scene for variation in self.variations))


def draw_family(rng: np.random.Generator, size: int = 6) -> Family:
    """A family of `size` scenes.

    Args:
        rng: decides everything about it.
        size: scenes with the base, from 1 to 15: there are 14 subsets of at most three out of
            a pool of four changes.
    """
    if not 1 <= size <= 15:
        raise ValueError(f"a family has 1 to 15 scenes, not {size}")
    base = draw_scene(rng)
    pool = draw_changes(base, POOL_SIZE, rng)
    subsets = _draw_subsets(rng, size - 1)
    variations = []
    for subset in subsets:
        changes = tuple(pool[i] for i in subset)
        scene = apply_all(base, changes).twin(draw_nuisance(rng))
        variations.append(Variation(scene=scene, changes=changes))
    return Family(base=base, variations=tuple(variations))


def _draw_subsets(rng: np.random.Generator, count: int) -> list[tuple[int, ...]]:
    by_size = [list(combinations(range(POOL_SIZE), n)) for n in (1, 2, 3)]
    chosen: list[tuple[int, ...]] = []
    while len(chosen) < count:
        options = by_size[pick_share(rng, CHANGE_SHARES)]
        if options:
            chosen.append(options.pop(int(rng.random() * len(options))))
    return chosen


def series(seed: int, size: int = 4, split: Split = "train") -> tuple[Scene, ...]:
    """A base scene and size - 1 variations of it."""
    return draw_family(generator(split, seed), size).scenes


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
