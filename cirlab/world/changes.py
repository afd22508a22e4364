"""Changes of a scene in the six categories of MTCIR (CoLLM, arXiv 2503.19910, section 4).

A change replaces some things by others, or one value of the setting by another. So all
changes apply and invert alike, and two changes that claim nothing in common can be applied in
either order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np

from cirlab.world.scene import MAX_CELLS, Scene, Thing, draw_thing, pick
from cirlab.world.vocabulary import LOOK_VALUES, POSITIONS, SETTING_VALUES, SHAPES

Category = Literal["attribute", "added", "removed", "relationship", "viewpoint", "number"]
CATEGORIES: tuple[Category, ...] = (
    "attribute",
    "added",
    "removed",
    "relationship",
    "viewpoint",
    "number",
)
_INVERSE: dict[Category, Category] = {"added": "removed", "removed": "added"}
MAX_THINGS = 4


@dataclass(frozen=True)
class ThingChange:
    """Some things become others, disappear (`after` is empty) or appear (`before` is empty)."""

    category: Category
    before: tuple[Thing, ...]
    after: tuple[Thing, ...]

    def apply(self, scene: Scene) -> Scene:
        """The scene after the change; `before` must be in it."""
        kept = [thing for thing in scene.things if thing not in self.before]
        if len(kept) + len(self.before) != len(scene.things):
            raise ValueError(f"{self.before} are not all in the scene {scene.things}")
        return replace(scene, things=tuple(sorted([*kept, *self.after])))

    def inverse(self) -> ThingChange:
        """The change that leads back."""
        category = _INVERSE.get(self.category, self.category)
        return ThingChange(category, before=self.after, after=self.before)

    def claims(self) -> set[object]:
        """Shapes and cells it touches: changes with disjoint claims do not interfere.

        Shapes are claimed, not single things, so that "with a red star" can mean one of the
        changes only.
        """
        touched = (*self.before, *self.after)
        cells = {cell for thing in touched for cell in thing.cells}
        return cells | {thing.shape for thing in touched}

    def facets(self) -> set[str]:
        """What must be said of the scene for the change to be heard; shapes always are."""
        if self.category == "relationship":
            return {"position"}
        if self.category != "attribute":
            return set()
        (before,), (after,) = self.before, self.after
        return {a for a in LOOK_VALUES if getattr(before, a) != getattr(after, a)}


@dataclass(frozen=True)
class SettingChange:
    """Another place, time or weather (category attribute), or another view (viewpoint)."""

    facet: str
    before: str
    after: str

    @property
    def category(self) -> Category:
        return "viewpoint" if self.facet == "view" else "attribute"

    def apply(self, scene: Scene) -> Scene:
        """The scene after the change; it must have the value `before`."""
        if getattr(scene, self.facet) != self.before:
            raise ValueError(f"the scene's {self.facet} is not {self.before!r}")
        return replace_one(scene, self.facet, self.after)

    def inverse(self) -> SettingChange:
        """The change that leads back."""
        return SettingChange(self.facet, before=self.after, after=self.before)

    def claims(self) -> set[object]:
        """The facet it touches."""
        return {self.facet}

    def facets(self) -> set[str]:
        """What must be said of the scene for the change to be heard."""
        return {self.facet}


Change = ThingChange | SettingChange

S = TypeVar("S", Scene, Thing)


def replace_one(record: S, name: str, value: str) -> S:
    """A copy with one field, known by name, replaced."""
    fields: dict[str, Any] = {name: value}
    return replace(record, **fields)


def apply_all(scene: Scene, changes: Iterable[Change]) -> Scene:
    """The scene after several changes with disjoint claims, in any order."""
    for change in changes:
        scene = change.apply(scene)
    return scene


def draw_changes(scene: Scene, count: int, rng: np.random.Generator) -> tuple[Change, ...]:
    """Changes with disjoint claims, any subset of which can be applied to the scene.

    At most one thing is removed and never the only one; no change makes two things look
    alike; every shape that comes new is new to the scene. So the words of each change can
    mean that change only.
    """
    chosen: list[Change] = []
    claimed: set[object] = set()
    while len(chosen) < count:
        category = _CATEGORIES_BY_SHARE[int(rng.random() * len(_CATEGORIES_BY_SHARE))]
        if category in _ONCE and any(change.category == category for change in chosen):
            continue
        change = _DRAW[category](scene, claimed, rng)
        if change is not None and not change.claims() & claimed:
            chosen.append(change)
            claimed |= change.claims()
    return tuple(chosen)


# ---- one draw function for each category --------------------------------------------------


def _draw_attribute(scene: Scene, claimed: set[object], rng: np.random.Generator) -> Change | None:
    if rng.random() < 0.4:
        return _draw_setting(scene, pick(rng, ("place", "time", "weather")), rng)
    thing = pick(rng, scene.things)
    attribute = pick(rng, ("colour", "colour", "size", "texture", "shape"))
    taken = {other.shape for other in scene.things} if attribute == "shape" else set()
    values = [
        value
        for value in LOOK_VALUES[attribute]
        if value != getattr(thing, attribute) and value not in taken
    ]
    after = replace_one(thing, attribute, pick(rng, values))
    if any(after.look == other.look for other in scene.things):
        return None
    return ThingChange("attribute", before=(thing,), after=(after,))


def _draw_setting(scene: Scene, facet: str, rng: np.random.Generator) -> SettingChange:
    before = getattr(scene, facet)
    after = pick(rng, [value for value in SETTING_VALUES[facet] if value != before])
    return SettingChange(facet, before=before, after=after)


def _draw_viewpoint(scene: Scene, claimed: set[object], rng: np.random.Generator) -> Change:
    return _draw_setting(scene, "view", rng)


def _draw_added(scene: Scene, claimed: set[object], rng: np.random.Generator) -> Change | None:
    free = _free_cells(scene, claimed)
    count = 1 if rng.random() < 0.85 else 2
    if len(scene.things) >= MAX_THINGS or _room(scene, claimed) < count:
        return None
    cells = tuple(sorted(free[i] for i in rng.permutation(len(free))[:count]))
    new_shapes = [shape for shape in SHAPES if shape not in {t.shape for t in scene.things}]
    thing = replace(draw_thing(rng, cells), shape=pick(rng, new_shapes))
    return ThingChange("added", before=(), after=(thing,))


def _draw_removed(scene: Scene, claimed: set[object], rng: np.random.Generator) -> Change | None:
    if len(scene.things) == 1:
        return None
    return ThingChange("removed", before=(pick(rng, scene.things),), after=())


def _draw_relationship(
    scene: Scene, claimed: set[object], rng: np.random.Generator
) -> Change | None:
    single = [thing for thing in scene.things if thing.count == 1]
    if len(single) >= 2 and rng.random() < 0.45:
        first, second = (single[i] for i in rng.permutation(len(single))[:2])
        swapped = (replace(first, cells=second.cells), replace(second, cells=first.cells))
        return ThingChange("relationship", before=(first, second), after=swapped)
    free = _free_cells(scene, claimed)
    if not single or not free:
        return None
    thing = pick(rng, single)
    moved = replace(thing, cells=(pick(rng, free),))
    return ThingChange("relationship", before=(thing,), after=(moved,))


def _draw_number(scene: Scene, claimed: set[object], rng: np.random.Generator) -> Change | None:
    thing = pick(rng, scene.things)
    count = pick(rng, [n for n in (1, 2, 3) if n != thing.count])
    if count < thing.count:
        keep = rng.permutation(thing.count)[:count]
        cells = [thing.cells[i] for i in keep]
    else:
        free = _free_cells(scene, claimed)
        more = count - thing.count
        if _room(scene, claimed) < more:
            return None
        cells = [*thing.cells, *(free[i] for i in rng.permutation(len(free))[:more])]
    after = replace(thing, cells=tuple(sorted(cells)))
    return ThingChange("number", before=(thing,), after=(after,))


def _free_cells(scene: Scene, claimed: set[object]) -> list[int]:
    taken = scene.taken_cells()
    return [cell for cell in range(len(POSITIONS)) if cell not in taken and cell not in claimed]


def _room(scene: Scene, claimed: set[object]) -> int:
    """How many cells can still be filled, whichever changes were chosen before."""
    return MAX_CELLS - (len(POSITIONS) - len(_free_cells(scene, claimed)))


_DRAW: dict[Category, Callable[[Scene, set[object], np.random.Generator], Change | None]] = {
    "attribute": _draw_attribute,
    "added": _draw_added,
    "removed": _draw_removed,
    "relationship": _draw_relationship,
    "viewpoint": _draw_viewpoint,
    "number": _draw_number,
}
_SHARES: dict[Category, int] = {
    "attribute": 8,
    "added": 4,
    "removed": 4,
    "relationship": 3,
    "viewpoint": 2,
    "number": 2,
}
_CATEGORIES_BY_SHARE = [category for category in CATEGORIES for _ in range(_SHARES[category])]
_ONCE = {"removed", "added"}
