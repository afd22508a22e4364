"""What a dialogue has told of a scene so far, and a caption that says this and nothing else.

Dialogues (`cirlab.world.dialogue`, and those that `cirlab.world.oracle` answers) speak of things
in phrases, "a small red star at the top"; which thing is meant, the scene tells. Where a phrase is
true of several, one that was spoken of before is taken, so that captions stay true in any case.
What is told of things that are not there, and of how things stand to each other, is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

from cirlab.world.conversation import question_and_answer
from cirlab.world.language import ADJECTIVES, indefinite, position, setting_phrase
from cirlab.world.scene import Scene, Thing
from cirlab.world.vocabulary import (
    COUNTS,
    LOOK_VALUES,
    PLURALS,
    POSITIONS,
    SETTING_PHRASES,
    SETTING_VALUES,
    SHAPES,
)


@dataclass(frozen=True)
class Mention:
    """A phrase about things.

    Attributes:
        shape: theirs.
        count: how many copies; None where only "the stars" are spoken of.
        looks: what is said of size, texture and colour, by name.
        cells: where they are said to stand; of copies perhaps not all.
    """

    shape: str
    count: int | None
    looks: dict[str, str]
    cells: tuple[int, ...] = ()

    def fits(self, thing: Thing) -> bool:
        """Whether the phrase is true of a thing."""
        count = thing.count > 1 if self.count is None else thing.count == self.count
        return (
            count
            and thing.shape == self.shape
            and all(getattr(thing, name) == value for name, value in self.looks.items())
            and set(self.cells) <= set(thing.cells)
        )


@dataclass
class Told:
    """What was told of a scene.

    Attributes:
        things: what was said of each of size, texture, colour, and its cells, in the order in
            which they were first spoken of.
        setting: place, time, weather, view, as far as they were named.
    """

    things: dict[Thing, set[str | int]] = field(default_factory=dict)
    setting: dict[str, str] = field(default_factory=dict)

    def attributes(self, thing: Thing) -> set[str]:
        """Which of size, texture, colour and position are known; the latter only of all copies."""
        said = {name for name in ADJECTIVES if name in self.things[thing]}
        return said | ({"position"} if set(thing.cells) <= self.things[thing] else set())

    def caption(self) -> str:
        """All of it in one text, settings in their plainest phrase."""
        return ", ".join([*map(self._phrase, self.things), *self._settings()])

    def _phrase(self, thing: Thing) -> str:
        said = self.attributes(thing)
        where = f" {position(thing.cells)}" if "position" in said else ""
        return f"{indefinite(thing, said)}{where}"

    def _settings(self) -> Iterator[str]:
        for facet in SETTING_VALUES:
            if facet in self.setting:
                yield setting_phrase(facet, self.setting[facet])


def told(scene: Scene, caption: str, rounds: Iterable[str] = ()) -> Told:
    """What a caption and the answers of some rounds tell; questions tell nothing.

    Args:
        scene: what is spoken of, truthfully.
        caption: what the dialogue began with.
        rounds: "question? answer" each.

    Raises:
        ValueError: something is said of a thing that is not in the scene.
    """
    found = Told()
    for text in (caption, *(question_and_answer(text)[1] for text in rounds)):
        found.setting |= settings_in(text)
        spoken: list[Thing] = []
        for mention in mentions_in(text):
            thing = _meant(mention, scene, found, spoken)
            spoken.append(thing)
            known = found.things.setdefault(thing, set())
            known.update(mention.looks, mention.cells)
    return found


def settings_in(text: str) -> dict[str, str]:
    """Values of the setting that a text names, by facet."""
    by_phrase, pattern = _settings()
    return dict(by_phrase[found.group()] for found in pattern.finditer(text))


def mentions_in(text: str) -> Iterator[Mention]:
    """The things that a text says are there, in its order."""
    for found in _mention_pattern().finditer(text):
        if found["none"]:
            continue
        noun = found["noun"]
        single = noun in SHAPES
        shape = noun if single else next(s for s, plural in PLURALS.items() if plural == noun)
        word = found["count"]
        count = 1 if single else COUNTS.index(word) + 1 if word in COUNTS else None
        looks = {_attribute_of(value): value for value in found["looks"].split()}
        where = found["where"] or ""
        cells = [POSITIONS.index(name) for name in _position_pattern().findall(where)]
        yield Mention(shape, count, looks, tuple(cells))


def _meant(mention: Mention, scene: Scene, found: Told, spoken: Sequence[Thing]) -> Thing:
    """The thing that a phrase is about, no other phrase of the same text being about it."""
    fitting = [thing for thing in scene.things if mention.fits(thing)]
    if not fitting:
        raise ValueError(f"{mention} is true of nothing in {scene}")
    return max(fitting, key=lambda thing: (thing not in spoken, thing in found.things))


def _attribute_of(value: str) -> str:
    return next(name for name in ADJECTIVES if value in LOOK_VALUES[name])


@cache
def _settings() -> tuple[dict[str, tuple[str, str]], re.Pattern[str]]:
    by_phrase = {
        phrase: (facet, value)
        for facet, values in SETTING_PHRASES.items()
        for value, phrases in values.items()
        for phrase in phrases
    }
    return by_phrase, re.compile(rf"\b(?:{_longest_first(by_phrase)})\b")


@cache
def _position_pattern() -> re.Pattern[str]:
    return re.compile(rf"\b(?:{_longest_first(POSITIONS)})\b")


@cache
def _mention_pattern() -> re.Pattern[str]:
    adjectives = _longest_first(value for name in ADJECTIVES for value in LOOK_VALUES[name])
    nouns = _longest_first((*SHAPES, *PLURALS.values()))
    where = rf"(?:{_longest_first(POSITIONS)})\b"
    return re.compile(
        rf"\b(?:(?P<none>not an?|no)|(?:one of |the )?(?P<count>an?|two|three)|the) "
        rf"(?P<looks>(?:(?:{adjectives}) )*)(?P<noun>{nouns})\b"
        rf"(?: (?:(?:is|are) )?(?P<where>{where}(?:(?:, | and ){where})*))?"
    )


def _longest_first(options: Iterable[str]) -> str:
    # "at the top" is the beginning of "at the top left".
    return "|".join(sorted(options, key=len, reverse=True))
