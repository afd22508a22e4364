"""Dialogues about a scene: somebody looks for it and asks, somebody who sees it answers.

As in ChatIR (Levy et al., arXiv 2305.20062) and VisDial: a dialogue begins with a caption that
leaves things out, and each round is one text, "question? answer". Answers are true, say by
themselves what was found out, and keep to the words of captions: there is no "yes" in them.
Nothing is asked twice, and what was told already only when nothing else is left.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import combinations

import numpy as np

from cirlab.world.language import (
    ADJECTIVES,
    caption,
    definite,
    indefinite,
    join,
    matches,
    position,
    relation_of,
    setting_phrase,
    shuffled,
)
from cirlab.world.scene import Scene, Thing, pick
from cirlab.world.vocabulary import (
    LOOK_VALUES,
    PLURALS,
    POSITIONS,
    SETTING_PHRASES,
    SETTING_VALUES,
    SHAPES,
)

#: What is asked of a whole scene, by facet, the plainest question first.
QUESTIONS: dict[str, tuple[str, ...]] = {
    "place": ("what is the place?", "where is it?", "where was the photo?"),
    "time": ("what time is it?", "when is it?", "when was the photo?"),
    "weather": ("what is the weather?", "how is the weather?", "what is the weather like?"),
    "view": ("what is the view?", "how is it seen?", "where do we look from?"),
    "shape": ("what shapes are there?", "what is in the picture?", "what do you see?"),
    "number": ("how many things are there?", "how many things do you see?"),
    "colour": ("what colours are there?", "which colours do you see?"),
    "size": ("what sizes are there?", "how large are all the things?"),
    "texture": ("what textures are there?", "which textures do you see?"),
    "position": ("where are all the things?", "where do you see things?"),
}
_ATTRIBUTE_QUESTIONS = {
    "colour": ("what colour {be} {it}?", "which colour {do} {it} have?"),
    "size": ("how large {be} {it}?", "what size {be} {it}?", "{be} {it} small or large?"),
    "texture": ("what texture {do} {it} have?", "which texture {be} {it}?"),
}

#: How many questions can be asked about any scene.
MAX_ROUNDS = 38

#: What a question is about: asked or spoken of at most once.
Topic = tuple[object, ...]
#: Puts a question and its answer into words.
Speaker = Callable[[], tuple[str, str]]


def dialogue(
    scene: Scene, rng: np.random.Generator, rounds: int = 10
) -> tuple[str, tuple[str, ...]]:
    """Speak about a scene as two people do, one of whom sees it.

    Args:
        scene: what is spoken of.
        rng: decides caption, questions, their order and phrasings.
        rounds: how many questions, up to `MAX_ROUNDS`; of some scenes more can be asked.

    Returns:
        The caption, and one text "question? answer" for each round.

    Raises:
        ValueError: there is nothing left to ask.
    """
    opening = caption(scene, rng)
    talk = _Talk(scene, rng)
    talk.hear(opening)
    return opening, tuple(talk.ask() for _ in range(rounds))


@dataclass
class _Talk:
    """What was said so far, and what can be asked next.

    Attributes:
        mentioned: things whose shape was named.
        settled: topics of which nothing is left to ask.
        asked: those of them that a question was about.
    """

    scene: Scene
    rng: np.random.Generator
    mentioned: set[Thing] = field(default_factory=set)
    settled: set[Topic] = field(default_factory=set)
    asked: set[Topic] = field(default_factory=set)

    def ask(self) -> str:
        """Ask one open question, and answer it."""
        topics = self._open_topics()
        if not topics:
            self.settled = set(self.asked)
            topics = self._open_topics()
        if not topics:
            raise ValueError(f"there is nothing left to ask about {self.scene}")
        topic, speak = pick(self.rng, topics)
        question, answer = speak()
        self.asked.add(topic)
        self.settled.add(topic)
        self.hear(answer)
        return f"{question} {answer}"

    def hear(self, text: str) -> None:
        """Settle the topics that a caption or an answer speaks of."""
        for facet in SETTING_VALUES:
            if _setting_pattern(facet).search(text):
                self.settled.add((facet,))
        for cell in range(len(POSITIONS)):
            if _cell_pattern(cell).search(text):
                self.settled.add(("cell", cell))
        for thing in self.scene.things:
            self._hear_of(thing, text)
        for attribute in ADJECTIVES:
            if all((attribute, thing) in self.settled for thing in self.scene.things):
                self.settled.add((attribute,))

    def refer(self, thing: Thing, without: str | None = None) -> str | None:
        """A phrase that is true of this thing only; None if there is none.

        Args:
            thing: what is meant.
            without: an adjective that must not be said.
        """
        said: set[str] = set()
        rivals = [other for other in self.scene.things if other != thing]
        rivals = [other for other in rivals if matches(thing, other, said)]
        for adjective in shuffled(self.rng, ADJECTIVES):
            left = [other for other in rivals if matches(thing, other, {*said, adjective})]
            if adjective != without and len(left) < len(rivals):
                said.add(adjective)
                rivals = left
        return None if rivals else definite(thing, said)

    def _hear_of(self, thing: Thing, text: str) -> None:
        noun = thing.shape if thing.count == 1 else PLURALS[thing.shape]
        for found in _name_pattern(noun).finditer(text):
            adjectives = found.group(1).split()
            if set(adjectives) <= set(thing.look):
                self.mentioned.add(thing)
                self.settled.add(("presence", thing.shape))
                said = [name for name in ADJECTIVES if getattr(thing, name) in adjectives]
                self.settled |= {(name, thing) for name in said}
        if all(("cell", cell) in self.settled for cell in thing.cells):
            self.settled.add(("where", thing))

    def _open_topics(self) -> list[tuple[Topic, Speaker]]:
        """What is left to ask, of a kind that has something left; none at last."""
        keys = self.rng.random(len(_KINDS)) ** (1 / _WEIGHTS)
        for i in np.argsort(-keys):
            topics = _KINDS[i](self).items()
            left = [(topic, speak) for topic, speak in topics if topic not in self.settled]
            if left:
                return left
        return []


@cache
def _setting_pattern(facet: str) -> re.Pattern[str]:
    phrases = [phrase for options in SETTING_PHRASES[facet].values() for phrase in options]
    return re.compile(rf"\b({'|'.join(phrases)})\b")


@cache
def _cell_pattern(cell: int) -> re.Pattern[str]:
    # "at the top" is the beginning of "at the top left".
    return re.compile(rf"\b{POSITIONS[cell]}\b(?! left\b| right\b)")


@cache
def _name_pattern(noun: str) -> re.Pattern[str]:
    """A noun with its adjectives."""
    adjectives = "|".join(value for name in ADJECTIVES for value in LOOK_VALUES[name])
    return re.compile(rf"((?:\b(?:{adjectives}) )*)\b{noun}\b")


# ---- the setting --------------------------------------------------------------------------


def _settings(talk: _Talk) -> dict[Topic, Speaker]:
    return {(facet,): partial(_setting, talk, facet) for facet in SETTING_VALUES}


def _setting(talk: _Talk, facet: str) -> tuple[str, str]:
    value = getattr(talk.scene, facet)
    phrase = setting_phrase(facet, value, talk.rng)
    if talk.rng.random() < 0.6:
        return pick(talk.rng, QUESTIONS[facet]), phrase
    guess = _guess(value, SETTING_VALUES[facet], talk)
    answer = phrase if guess == value else f"no, {phrase}"
    return f"is it {setting_phrase(facet, guess)}?", answer


def _guess(value: str, options: Sequence[str], talk: _Talk) -> str:
    """What somebody supposes who does not see the scene: right in two of five."""
    if talk.rng.random() < 0.4:
        return value
    return pick(talk.rng, [option for option in options if option != value])


# ---- all things ---------------------------------------------------------------------------


def _overviews(talk: _Talk) -> dict[Topic, Speaker]:
    facets = ("shape", *ADJECTIVES, "position")
    return {(facet,): partial(_overview, talk, facet) for facet in facets}


def _overview(talk: _Talk, facet: str) -> tuple[str, str]:
    # What was listed once is complete: no further shape or value can be there.
    talk.settled |= {("shape",), *(("presence", shape) for shape in SHAPES)}
    talk.settled |= {("value", facet, value) for value in LOOK_VALUES.get(facet, ())}
    wordings = QUESTIONS[facet] + (QUESTIONS["number"] if facet == "shape" else ())
    if facet != "position":
        return pick(talk.rng, wordings), _listed(talk.scene.things, {facet})
    placed = [f"{indefinite(thing, ())} {position(thing.cells)}" for thing in talk.scene.things]
    return pick(talk.rng, wordings), join(placed)


def _listed(things: Sequence[Thing], said: set[str]) -> str:
    return join([indefinite(thing, said) for thing in things])


def _presences(talk: _Talk) -> dict[Topic, Speaker]:
    return {("presence", shape): partial(_presence, talk, shape) for shape in SHAPES}


def _presence(talk: _Talk, shape: str) -> tuple[str, str]:
    things = [thing for thing in talk.scene.things if thing.shape == shape]
    many = talk.rng.random() < 0.4
    question = f"how many {PLURALS[shape]} are there?" if many else f"is there a {shape}?"
    if not things:
        return question, pick(talk.rng, ("there is not a {}", "no {}")).format(shape)
    verb = "is" if things[0].count == 1 else "are"
    said = {"colour"} if len(things) > 1 else set()
    return question, f"there {verb} {_listed(things, said)}"


def _values(talk: _Talk) -> dict[Topic, Speaker]:
    return {
        ("value", attribute, value): partial(_value, talk, attribute, value)
        for attribute in ("colour", "texture")
        for value in LOOK_VALUES[attribute]
    }


def _value(talk: _Talk, attribute: str, value: str) -> tuple[str, str]:
    question = pick(talk.rng, ("what is {}?", "is any of the things {}?")).format(value)
    things = [thing for thing in talk.scene.things if getattr(thing, attribute) == value]
    if not things:
        article = "an" if value.startswith("o") else "a"
        return question, f"there is not {article} {value} one"
    return question, _listed(things, {attribute})


# ---- positions ----------------------------------------------------------------------------


def _cells(talk: _Talk) -> dict[Topic, Speaker]:
    return {("cell", cell): partial(_cell, talk, cell) for cell in range(len(POSITIONS))}


def _cell(talk: _Talk, cell: int) -> tuple[str, str]:
    where = POSITIONS[cell]
    question = pick(talk.rng, ("what is {}?", "what do you see {}?")).format(where)
    for thing in talk.scene.things:
        if cell in thing.cells:
            said = {name for name in ADJECTIVES if talk.rng.random() < 0.6}
            phrase = indefinite(thing, said)
            return question, f"{phrase if thing.count == 1 else f'one of {phrase}'} {where}"
    return question, f"there is not one {where}"


def _wheres(talk: _Talk) -> dict[Topic, Speaker]:
    return {
        ("where", thing): partial(_where, thing, ref)
        for thing, ref in _references(talk, without=None)
    }


def _where(thing: Thing, ref: str) -> tuple[str, str]:
    be = "is" if thing.count == 1 else "are"
    return f"where {be} {ref}?", f"{ref} {be} {position(thing.cells)}"


def _references(talk: _Talk, without: str | None) -> list[tuple[Thing, str]]:
    """The things that were mentioned and can be told from the others, with phrases for them."""
    named = [(thing, talk.refer(thing, without)) for thing in sorted(talk.mentioned)]
    return [(thing, ref) for thing, ref in named if ref is not None]


def _relations(talk: _Talk) -> dict[Topic, Speaker]:
    pairs = combinations(_references(talk, without=None), 2)
    return {
        ("relation", first, second): partial(_relation, talk, (ref, other_ref), relation)
        for (first, ref), (second, other_ref) in pairs
        if (relation := relation_of(first, second)) is not None
    }


_OPPOSITES = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def _relation(talk: _Talk, refs: tuple[str, str], relation: str) -> tuple[str, str]:
    first, second = refs
    answer = f"{first} is {relation} {second}"
    if talk.rng.random() < 0.5:
        return f"is {first} {relation} {second}?", answer
    return f"is {first} {_OPPOSITES[relation]} {second}?", f"no, {answer}"


# ---- one thing ----------------------------------------------------------------------------


def _attributes(talk: _Talk) -> dict[Topic, Speaker]:
    return {
        (attribute, thing): partial(_attribute, talk, attribute, thing, ref)
        for attribute in ADJECTIVES
        for thing, ref in _references(talk, without=attribute)
    }


def _attribute(talk: _Talk, attribute: str, thing: Thing, ref: str) -> tuple[str, str]:
    be, do = ("is", "does") if thing.count == 1 else ("are", "do")
    value = getattr(thing, attribute)
    told = {name for name in ADJECTIVES if getattr(thing, name) in ref.split()}
    answer = indefinite(thing, {attribute, *told})
    if talk.rng.random() < 0.6:
        wording = pick(talk.rng, _ATTRIBUTE_QUESTIONS[attribute])
        return wording.format(be=be, do=do, it=ref), answer
    guess = _guess(value, LOOK_VALUES[attribute], talk)
    return f"{be} {ref} {guess}?", answer if guess == value else f"no, {answer}"


_Kind = Callable[[_Talk], dict[Topic, Speaker]]
#: Kinds of question, and how often each is asked while it has something left to ask.
_SHARES: tuple[tuple[_Kind, float], ...] = (
    (_settings, 3.0),
    (_attributes, 3.0),
    (_wheres, 1.5),
    (_cells, 1.0),
    (_presences, 1.2),
    (_overviews, 1.0),
    (_values, 0.6),
    (_relations, 0.7),
)
_KINDS = [kind for kind, _ in _SHARES]
_WEIGHTS = np.array([weight for _, weight in _SHARES])
