"""A naive reader of the world's noun phrases: the oracle that the language is true."""

from __future__ import annotations

import re
from typing import NamedTuple

from cirlab.world.language import relation_of
from cirlab.world.scene import Scene, Thing
from cirlab.world.vocabulary import (
    COLOURS,
    LOOK_VALUES,
    PLURALS,
    POSITIONS,
    SETTING_PHRASES,
    SETTING_VALUES,
    SHAPES,
    SIZES,
    TEXTURES,
)

_SINGULAR = {plural: shape for shape, plural in PLURALS.items()} | {s: s for s in SHAPES}
_COUNTS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3}
_NOUN = "|".join(sorted(_SINGULAR, key=len, reverse=True))
PHRASE = (
    rf"(?:(?:the )?(?P<count>{'|'.join(_COUNTS)}) |the |no )"
    rf"(?:(?P<size>{'|'.join(SIZES)}) )?(?:(?P<texture>{'|'.join(TEXTURES)}) )?"
    rf"(?:(?P<colour>{'|'.join(COLOURS)}) )?(?P<noun>{_NOUN})\b"
)


class Phrase(NamedTuple):
    """What a noun phrase claims; None is left unsaid."""

    count: int | None
    size: str | None
    texture: str | None
    colour: str | None
    shape: str

    def is_true_of(self, thing: Thing) -> bool:
        claims = self._asdict()
        return all(value is None or getattr(thing, key) == value for key, value in claims.items())

    def things(self, scene: Scene) -> list[Thing]:
        return [thing for thing in scene.things if self.is_true_of(thing)]


def phrases(text: str) -> list[Phrase]:
    """All noun phrases of a text, in order."""
    return [_phrase(found.groupdict()) for found in re.finditer(PHRASE, text)]


def _phrase(said: dict[str, str | None]) -> Phrase:
    noun, count = said.pop("noun"), said.pop("count")
    assert noun is not None
    number = _COUNTS[count] if count else None
    return Phrase(count=number, shape=_SINGULAR[noun], **said)  # type: ignore[arg-type]


# ---- the setting, and what whole answers claim ---------------------------------------------

_POSITION = "|".join(sorted(POSITIONS, key=len, reverse=True))
_RELATION = "left of|right of|above|below"
_PLACED = rf"(?P<part>one of )?{PHRASE}(?: is| are)?(?P<where>(?:(?:,| and)? (?:{_POSITION}))*)"
_RELATED = rf"{PHRASE}(?: is)? (?P<relation>{_RELATION}) (?P<second>.*)"
_VALUES = "|".join(value for values in LOOK_VALUES.values() for value in values)
_NEGATION = rf"(?:there is not an?|no) (?P<value>{_VALUES})(?: one)?"


def settings(text: str) -> set[tuple[str, str]]:
    """Facets and values of the setting that a text names."""
    return {
        (facet, value)
        for facet, values in SETTING_PHRASES.items()
        for value, options in values.items()
        if any(re.search(rf"\b{option}\b", text) for option in options)
    }


def is_true(text: str, scene: Scene) -> bool:
    """Whether everything holds that a caption or an answer claims."""
    text = text.removeprefix("no, ")
    if found := re.fullmatch(_NEGATION, text):
        return all(found["value"] not in thing.look for thing in scene.things)
    if found := re.fullmatch(rf"there is not one ({_POSITION})", text):
        return POSITIONS.index(found[1]) not in scene.taken_cells()
    return (
        all(getattr(scene, facet) == value for facet, value in settings(text))
        and all(_stands(found, scene) for found in re.finditer(_PLACED, text))
        and all(_is_related(found, scene) for found in re.finditer(_RELATED, text))
    )


def _stands(found: re.Match[str], scene: Scene) -> bool:
    """Whether some thing is as a phrase says, in the cells that it names."""
    said = found.groupdict()
    part, where = said.pop("part"), said.pop("where")
    cells = {POSITIONS.index(name) for name in re.findall(_POSITION, where)}
    return any(
        not cells or cells == set(thing.cells) or (part is not None and cells < set(thing.cells))
        for thing in _phrase(said).things(scene)
    )


def _is_related(found: re.Match[str], scene: Scene) -> bool:
    said = found.groupdict()
    relation, rest = said.pop("relation"), said.pop("second")
    seconds = phrases(str(rest))[0].things(scene)
    firsts = _phrase(said).things(scene)
    return any(relation_of(a, b) == relation for a in firsts for b in seconds)


def tells_the_difference(text: str, before: Scene, after: Scene) -> bool:
    """Whether a text speaks of what changes between two scenes, and of nothing else."""
    changed = {f for f in SETTING_VALUES if getattr(before, f) != getattr(after, f)}
    told = settings(text)
    values = {(f, getattr(scene, f)) for f in changed for scene in (before, after)}
    wanted = {(facet, getattr(after, facet)) for facet in changed}
    shapes = {thing.shape for thing in set(before.things) ^ set(after.things)}
    spoken = {phrase.shape for phrase in phrases(text)}
    return wanted <= told <= values and spoken <= shapes and bool(spoken) == bool(shapes)
