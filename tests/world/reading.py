"""A naive reader of the world's noun phrases: the oracle that the language is true."""

from __future__ import annotations

import re
from typing import NamedTuple

from cirlab.world.scene import Scene, Thing
from cirlab.world.vocabulary import COLOURS, PLURALS, SHAPES, SIZES, TEXTURES

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
