"""How people speak of a scene: noun phrases, references, captions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np

from cirlab.world.scene import Scene, Thing, pick
from cirlab.world.vocabulary import (
    COUNTS,
    PLURALS,
    POSITIONS,
    SETTING_PHRASES,
    SETTING_VALUES,
)

#: What may be left unsaid of a thing besides its position, in the order it is spoken.
ADJECTIVES = ("size", "texture", "colour")
#: How often people say what, in [0, 1].
SETTING_CHANCE = {"place": 0.5, "time": 0.5, "weather": 0.45, "view": 0.3}
ADJECTIVE_CHANCE = {"size": 0.5, "texture": 0.45, "colour": 0.8}
#: What a caption may begin with.
OPENINGS = (
    "",
    "",
    "",
    "a picture of ",
    "a photo of ",
    "an image of ",
    "a scene with ",
    "this shows ",
    "we see ",
    "you see ",
    "here we see ",
)


def name(thing: Thing, said: Collection[str]) -> str:
    """Adjectives and noun, without an article: "small red stars"."""
    words = [getattr(thing, adjective) for adjective in ADJECTIVES if adjective in said]
    words.append(thing.shape if thing.count == 1 else PLURALS[thing.shape])
    return " ".join(words)


def indefinite(thing: Thing, said: Collection[str]) -> str:
    """Such as "a small red star" or "two orange rings"."""
    noun = name(thing, said)
    article = COUNTS[thing.count - 1]
    if article == "a" and noun.startswith("o"):
        article = "an"
    return f"{article} {noun}"


def definite(thing: Thing, said: Collection[str], *, with_count: bool = False) -> str:
    """Such as "the small red star" or "the two rings"."""
    count = f"{COUNTS[thing.count - 1]} " if with_count and thing.count > 1 else ""
    return f"the {count}{name(thing, said)}"


def position(cells: Sequence[int]) -> str:
    """Such as "on the left" or "at the top and in the centre"."""
    return join([POSITIONS[cell] for cell in cells])


def spot(cells: Sequence[int]) -> str:
    """Such as "the left" or "the top and the centre"."""
    return join([POSITIONS[cell].split(maxsplit=1)[1] for cell in cells])


def join(parts: Sequence[str]) -> str:
    """Such as "a", "a and b" or "a, b and c"."""
    if len(parts) == 1:
        return parts[0]
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def matches(thing: Thing, other: Thing, said: Iterable[str]) -> bool:
    """Whether words that say the shape and `said` of `thing` are as true of `other`."""
    return thing.shape == other.shape and all(
        getattr(thing, adjective) == getattr(other, adjective) for adjective in said
    )


def telling(
    thing: Thing,
    others: Iterable[Thing],
    rng: np.random.Generator,
    *,
    must: Collection[str] = (),
    extra: float = 0.25,
) -> set[str]:
    """Which adjectives to say so that the words are true of none of `others`.

    Args:
        thing: what is spoken of.
        others: what must not be meant.
        rng: decides which adjectives are tried first.
        must: adjectives that are said in any case.
        extra: chance that one more is said than needed.
    """
    said = set(must)
    rivals = [other for other in others if matches(thing, other, said)]
    for adjective in shuffled(rng, ADJECTIVES):
        if adjective in said:
            continue
        if rivals or rng.random() < extra / 2:
            said.add(adjective)
            rivals = [other for other in rivals if matches(thing, other, said)]
    return said


def shuffled(rng: np.random.Generator, items: Sequence[str]) -> list[str]:
    """A copy in random order."""
    return [items[i] for i in rng.permutation(len(items))]


def refer(thing: Thing, scene: Scene, rng: np.random.Generator) -> str:
    """A definite phrase that is true of this thing only."""
    others = [other for other in scene.things if other != thing]
    said = telling(thing, others, rng)
    return definite(thing, said, with_count=rng.random() < 0.5)


def setting_phrase(facet: str, value: str, rng: np.random.Generator | None = None) -> str:
    """One way to speak of a setting; the plainest where `rng` is None."""
    options = SETTING_PHRASES[facet][value]
    return options[0] if rng is None else pick(rng, options)


def describe(scene: Scene, said: Collection[str], rng: np.random.Generator | None = None) -> str:
    """Say of every thing and of the setting what `said` names, and nothing else.

    Args:
        scene: what is spoken of.
        said: any of size, texture, colour, position, place, time, weather, view. Shape and
            number are always said.
        rng: varies order and phrasing; None speaks plainly.
    """
    things = list(scene.things)
    if rng is not None:
        things = [things[i] for i in rng.permutation(len(things))]
    parts = []
    for thing in things:
        where = f" {position(thing.cells)}" if "position" in said else ""
        parts.append(f"{indefinite(thing, said)}{where}")
    setting = [
        setting_phrase(facet, getattr(scene, facet), rng)
        for facet in SETTING_VALUES
        if facet in said
    ]
    return ", ".join([*parts, *setting])


_EVERYTHING = frozenset((*ADJECTIVES, "position", *SETTING_VALUES))


def full_caption(scene: Scene) -> str:
    """Everything that can be said of the scene: equal for, and only for, equal signatures."""
    return describe(scene, _EVERYTHING)


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """As people speak: some things, some of their attributes, sometimes the setting."""
    count = len(scene.things)
    keep = min(count, 1 + int(rng.random() * count + 0.35))
    things = [scene.things[i] for i in rng.permutation(count)[:keep]]
    body = _related(things, rng) if keep > 1 and rng.random() < 0.4 else _listed(things, rng)
    setting = [
        setting_phrase(facet, getattr(scene, facet), rng)
        for facet in SETTING_VALUES
        if rng.random() < SETTING_CHANCE[facet]
    ]
    setting = shuffled(rng, setting)
    if setting and rng.random() < 0.2:
        return f"{setting.pop(0)}, {' '.join([body, *setting])}"
    return " ".join([pick(rng, OPENINGS) + body, *setting])


def _spoken(thing: Thing, rng: np.random.Generator) -> str:
    said = [a for a in ADJECTIVES if rng.random() < ADJECTIVE_CHANCE[a]]
    return indefinite(thing, said)


def _listed(things: Sequence[Thing], rng: np.random.Generator) -> str:
    place_all = rng.random() < 0.35
    return join(
        [
            f"{_spoken(thing, rng)} {position(thing.cells)}" if place_all else _spoken(thing, rng)
            for thing in things
        ]
    )


def _related(things: Sequence[Thing], rng: np.random.Generator) -> str:
    """Two things by where they stand to each other, then the rest."""
    first, second, *rest = things
    relation = relation_of(first, second) or pick(rng, ("and", "with"))
    body = f"{_spoken(first, rng)} {relation} {_spoken(second, rng)}"
    return join([body, *(_spoken(thing, rng) for thing in rest)]) if rest else body


def relation_of(first: Thing, second: Thing) -> str | None:
    """How two single things of one row or column stand to each other; else None."""
    if first.count > 1 or second.count > 1:
        return None
    (row, column), (other_row, other_column) = (divmod(t.cells[0], 3) for t in (first, second))
    if row == other_row:
        return "left of" if column < other_column else "right of"
    if column == other_column:
        return "above" if row < other_row else "below"
    return None
