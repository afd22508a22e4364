"""True answers to questions that can be asked of any scene without having seen it.

Of those that `cirlab.world.dialogue` asks, all but the ones about a thing that was spoken of
before. Answers are said as there, always in the same words.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import cache, partial

from cirlab.world.conversation import DESCRIBE, DESCRIBE_ALL
from cirlab.world.dialogue import QUESTIONS
from cirlab.world.language import (
    ADJECTIVES,
    full_caption,
    indefinite,
    join,
    position,
    setting_phrase,
)
from cirlab.world.scene import Scene
from cirlab.world.vocabulary import (
    LOOK_VALUES,
    PLURALS,
    POSITIONS,
    SETTING_PHRASES,
    SETTING_VALUES,
    SHAPES,
)

#: Tells of a scene what a question asks.
Answer = Callable[[Scene], str]

#: Attributes whose values are asked for one by one: "what is red?".
_NAMED_VALUES = ("colour", "texture")


def answer_to(scene: Scene, question: str) -> str:
    """The true answer; empty where the question is none of those that are understood."""
    answer = _answers().get(_plain(question))
    return "" if answer is None else answer(scene)


def askable() -> tuple[str, ...]:
    """One wording of everything that can be asked, guesses aside; overviews come first."""
    return (
        *(wordings[0] for wordings in QUESTIONS.values()),
        *(f"what is {where}?" for where in POSITIONS),
        *(f"how many {PLURALS[shape]} are there?" for shape in SHAPES),
        *(f"what is {value}?" for name in _NAMED_VALUES for value in LOOK_VALUES[name]),
    )


@cache
def _answers() -> Mapping[str, Answer]:
    """By question, in lower case and with single blanks."""
    known: dict[str, Answer] = {_plain(DESCRIBE): full_caption, _plain(DESCRIBE_ALL): full_caption}
    for facet, wordings in QUESTIONS.items():
        known |= dict.fromkeys(wordings, _about(facet))
    for facet, values in SETTING_PHRASES.items():
        for value, phrases in values.items():
            guessed = partial(_guess, facet, value)
            known |= {f"is it {phrase}?": guessed for phrase in phrases}
    for shape in SHAPES:
        asked = (f"how many {PLURALS[shape]} are there?", f"is there a {shape}?")
        known |= dict.fromkeys(asked, partial(_presence, shape))
    for name in _NAMED_VALUES:
        for value in LOOK_VALUES[name]:
            asked = (f"what is {value}?", f"is any of the things {value}?")
            known |= dict.fromkeys(asked, partial(_value, name, value))
    for cell, where in enumerate(POSITIONS):
        asked = (f"what is {where}?", f"what do you see {where}?")
        known |= dict.fromkeys(asked, partial(_cell, cell))
    return known


def _about(facet: str) -> Answer:
    if facet in SETTING_VALUES:
        return partial(_setting, facet)
    if facet == "position":
        return _positions
    return partial(_listed, {facet})


def _setting(facet: str, scene: Scene) -> str:
    return setting_phrase(facet, getattr(scene, facet))


def _guess(facet: str, value: str, scene: Scene) -> str:
    phrase = _setting(facet, scene)
    return phrase if getattr(scene, facet) == value else f"no, {phrase}"


def _listed(said: Collection[str], scene: Scene) -> str:
    return join([indefinite(thing, said) for thing in scene.things])


def _positions(scene: Scene) -> str:
    return join([f"{indefinite(thing, ())} {position(thing.cells)}" for thing in scene.things])


def _presence(shape: str, scene: Scene) -> str:
    things = [thing for thing in scene.things if thing.shape == shape]
    if not things:
        return f"there is not a {shape}"
    said = {"colour"} if len(things) > 1 else set()
    verb = "is" if things[0].count == 1 else "are"
    return f"there {verb} {join([indefinite(thing, said) for thing in things])}"


def _value(name: str, value: str, scene: Scene) -> str:
    things = [thing for thing in scene.things if getattr(thing, name) == value]
    if not things:
        return f"there is not {'an' if value.startswith('o') else 'a'} {value} one"
    return join([indefinite(thing, {name}) for thing in things])


def _cell(cell: int, scene: Scene) -> str:
    for thing in scene.things:
        if cell in thing.cells:
            phrase = indefinite(thing, ADJECTIVES)
            return f"{phrase if thing.count == 1 else f'one of {phrase}'} {POSITIONS[cell]}"
    return f"there is not one {POSITIONS[cell]}"


def _plain(question: str) -> str:
    return " ".join(question.lower().split())
