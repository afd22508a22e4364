"""Scenes: what stands where, in which setting, drawn from an integer seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np

from cirlab.world.vocabulary import LOOK_VALUES, POSITIONS, SETTING_VALUES

Split = Literal["train", "val", "test"]
#: What can be told apart in this world: two scenes of equal signature deserve equal words.
Signature = tuple[object, ...]

_SPLIT_NUMBERS: dict[str, int] = {"train": 1, "val": 2, "test": 3}
_OBJECT_SHARES = (0.08, 0.48, 0.88, 1.0)
_COPY_SHARES = (0.82, 0.95, 1.0)
#: Cells that may be taken, changes included: what keeps captions within 70 words.
MAX_CELLS = 6

T = TypeVar("T")


@dataclass(frozen=True, order=True)
class Thing:
    """One object, or two or three copies of it: the cells are where the copies stand."""

    cells: tuple[int, ...]
    shape: str
    colour: str
    size: str
    texture: str

    @property
    def count(self) -> int:
        return len(self.cells)

    @property
    def look(self) -> tuple[str, str, str, str]:
        return (self.shape, self.colour, self.size, self.texture)


@dataclass(frozen=True)
class Scene:
    """One to four things in distinct cells of a 3x3 grid, and a setting.

    Attributes:
        things: sorted; no two have the same look.
        nuisance: seed of what is never talked about: jitter, shades, noise, raindrops.
    """

    things: tuple[Thing, ...]
    place: str
    time: str
    weather: str
    view: str
    nuisance: int

    def signature(self) -> Signature:
        """Everything that can be talked about; equal for scenes that differ in nuisance."""
        return (self.things, self.place, self.time, self.weather, self.view)

    def twin(self, nuisance: int) -> Scene:
        """The same scene as another photograph would show it."""
        return replace(self, nuisance=nuisance)

    def taken_cells(self) -> set[int]:
        return {cell for thing in self.things for cell in thing.cells}


def generator(split: Split, *numbers: int) -> np.random.Generator:
    """The random numbers of one scene or series.

    Streams of different splits never meet: the split is the first word of the seed.

    Args:
        split: train, val or test.
        numbers: up to four non-negative integers, e.g. seed, epoch, group, member.
    """
    if len(numbers) > 4:
        raise ValueError(f"at most four numbers make a seed, not {len(numbers)}")
    # Padded, since numpy takes (1, 2) and (1, 2, 0) for the same seed anyway.
    words = (_SPLIT_NUMBERS[split], *numbers, *(0,) * (4 - len(numbers)))
    return np.random.default_rng(words)


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of `options`, all alike likely. Several times faster than `Generator.choice`."""
    return options[int(rng.random() * len(options))]


def pick_share(rng: np.random.Generator, cumulative: Sequence[float]) -> int:
    """Position drawn by cumulative shares that end at 1."""
    draw = rng.random()
    return next(i for i, share in enumerate(cumulative) if draw < share)


def draw_scene(rng: np.random.Generator) -> Scene:
    """A random scene: mostly two or three things, one in six of them in copies."""
    free = rng.permutation(len(POSITIONS)).tolist()
    things: list[Thing] = []
    looks: set[tuple[str, ...]] = set()
    for left in reversed(range(1 + pick_share(rng, _OBJECT_SHARES))):
        room = MAX_CELLS - (len(POSITIONS) - len(free)) - left
        count = min(1 + pick_share(rng, _COPY_SHARES), room)
        thing = draw_thing(rng, tuple(sorted(free[:count])))
        if thing.look not in looks:
            things.append(thing)
            looks.add(thing.look)
            free = free[count:]
    setting = {facet: pick(rng, values) for facet, values in SETTING_VALUES.items()}
    return Scene(things=tuple(sorted(things)), nuisance=draw_nuisance(rng), **setting)


def draw_thing(rng: np.random.Generator, cells: tuple[int, ...]) -> Thing:
    """A thing of random look in the given cells."""
    look = {name: pick(rng, values) for name, values in LOOK_VALUES.items()}
    return Thing(cells=cells, **look)


def draw_nuisance(rng: np.random.Generator) -> int:
    """A seed of what is never talked about."""
    return int(rng.integers(2**32))


def facets(scene: Scene) -> dict[str, str | tuple[str, ...]]:
    """What questions can be asked of: the setting, and the things in order of `things`.

    Returns:
        place, time, weather and view as one word each; shape, colour, size, texture, count
        (digits) and position as one entry for each thing.
    """
    answers: dict[str, str | tuple[str, ...]] = {
        name: getattr(scene, name) for name in SETTING_VALUES
    }
    for name in LOOK_VALUES:
        answers[name] = tuple(getattr(thing, name) for thing in scene.things)
    answers["count"] = tuple(str(thing.count) for thing in scene.things)
    answers["position"] = tuple(
        " and ".join(POSITIONS[cell] for cell in thing.cells) for thing in scene.things
    )
    return answers
