"""A caption, an instruction, and the caption that results: what InstructCIR's triplets consist of.

InstructCIR (arXiv 2412.05756) has an LLM write instruction and resulting caption for image-caption
data. Here they are exact. Captions that leave things out, as people's do, say at least what the
instruction speaks of, so that the second follows from the first and the instruction; and what
does not change is said in the same words in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

import numpy as np

from cirlab.world.changes import Change, SettingChange, ThingChange, apply_all, draw_changes
from cirlab.world.language import (
    ADJECTIVE_CHANCE,
    ADJECTIVES,
    OPENINGS,
    SETTING_CHANCE,
    full_caption,
    indefinite,
    join,
    position,
    relation_of,
    setting_phrase,
    shuffled,
    telling,
)
from cirlab.world.phrasing import Style, combine, speak
from cirlab.world.scene import Scene, Thing, draw_scene, pick, pick_share
from cirlab.world.series import CHANGE_SHARES
from cirlab.world.vocabulary import SETTING_PHRASES, SETTING_VALUES

#: Share of captions that say everything, in [0, 1].
FULL_CAPTIONS = 0.3


class CaptionEdit(NamedTuple):
    """What to make of a caption, and what it becomes."""

    caption: str
    instruction: str
    modified_caption: str


def world_answer(rng: np.random.Generator, full_captions: float = FULL_CAPTIONS) -> CaptionEdit:
    """A caption of a random scene, one to three changes as an instruction, and the result.

    Args:
        rng: decides scene, changes and words.
        full_captions: share of captions that say everything, in [0, 1].
    """
    scene = draw_scene(rng)
    changes = draw_changes(scene, 1 + pick_share(rng, CHANGE_SHARES), rng)
    return edit(scene, changes, "instruction", rng, full=rng.random() < full_captions)


def edit(
    scene: Scene, changes: Sequence[Change], style: Style, rng: np.random.Generator, *, full: bool
) -> CaptionEdit:
    """Speak of a scene, of changes to it, and of what it becomes.

    The first caption is not true of the resulting scene. Where something is added, it is since
    the caption names everything that there was.

    Args:
        scene: the reference.
        changes: of it, one or more, with disjoint claims.
        style: of the instruction.
        rng: decides what is said and how.
        full: both captions say everything; otherwise what the instruction speaks of, and more at
            random.
    """
    told = [
        (changes[i], speak(changes[i], scene, style, rng)) for i in rng.permutation(len(changes))
    ]
    text = combine([words for _, words in told], style, rng)
    if full:
        return CaptionEdit(full_caption(scene), text, full_caption(apply_all(scene, changes)))
    before, after = _as_people_speak(scene, told, rng)
    return CaptionEdit(before, text, after)


#: A change, and the words for it.
Told = tuple[Change, str]


def _as_people_speak(
    scene: Scene, told: Sequence[Told], rng: np.random.Generator
) -> tuple[str, str]:
    """Captions before and after, in one wording."""
    mentions = _mentions(scene, told, rng)
    relation = _relation(mentions, rng)
    things = [(m.before, m.said) for m in mentions], [(m.after, m.said) for m in mentions]
    settings = _settings(scene, told, rng)
    opening = pick(rng, OPENINGS)
    in_front = bool(settings[0]) and rng.random() < 0.2
    before, after = (
        _sentence(_listed(listed, relation), setting, opening, in_front)
        for listed, setting in zip(things, settings, strict=True)
    )
    return before, after


def _sentence(things: str, setting: Sequence[str], opening: str, in_front: bool) -> str:
    if in_front:
        return f"{setting[0]}, {' '.join([things, *setting[1:]])}"
    return " ".join([opening + things, *setting])


# ---- things -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Mention:
    """A thing that is spoken of before and after; None where it is not there.

    Attributes:
        said: adjectives, and "position".
    """

    before: Thing | None
    after: Thing | None
    said: frozenset[str]


def _mentions(scene: Scene, told: Sequence[Told], rng: np.random.Generator) -> list[_Mention]:
    """What is spoken of, in order: what is added comes last, as one adds it."""
    place_all = rng.random() < 0.35
    target = apply_all(scene, (change for change, _ in told))
    changed = [
        mention
        for change, words in told
        if isinstance(change, ThingChange)
        for mention in _changed(change, words, scene, target, place_all, rng)
    ]
    same = [thing for thing in scene.things if thing in target.things]
    if all(mention.before is not None for mention in changed):
        # Of the rest some are spoken of, and at least one where nothing else would be left.
        same = [same[i] for i in rng.permutation(len(same))]
        least = 0 if any(mention.before and mention.after for mention in changed) else 1
        same = same[: max(least, int(rng.random() * (len(same) + 1)))]
    place = {"position"} if place_all else set()
    kept = [_Mention(thing, thing, frozenset(_some(rng) | place)) for thing in same]
    mentions = [*(m for m in changed if m.before is not None), *kept]
    ordered = [mentions[i] for i in rng.permutation(len(mentions))]
    return [*ordered, *(m for m in changed if m.before is None)]


def _changed(
    change: ThingChange,
    words: str,
    scene: Scene,
    target: Scene,
    place_all: bool,
    rng: np.random.Generator,
) -> Iterator[_Mention]:
    """The things of a change.

    Of each is said what changes, what the instruction says, and what tells it from all others; of
    what it was before also more, but nothing that would not follow for what it becomes.
    """
    for before, after in zip_longest(change.before, change.after):
        said = _some(rng) if before is not None else set()
        said |= change.facets() & set(ADJECTIVES)
        for thing, there in ((before, scene), (after, target)):
            if thing is not None:
                said |= {a for a in ADJECTIVES if getattr(thing, a) in words.split()}
                others = [other for other in there.things if other != thing]
                said = telling(thing, others, rng, must=said, extra=0.0)
        if _placed(change, words) or (place_all and _keeps_place(before, after)):
            said.add("position")
        yield _Mention(before, after, frozenset(said))


def _placed(change: ThingChange, words: str) -> bool:
    """Whether the instruction says where the things of a change are to be."""
    return change.category == "relationship" or any(
        position(thing.cells) in words for thing in change.after
    )


def _keeps_place(before: Thing | None, after: Thing | None) -> bool:
    """Whether the place before tells the place after."""
    return before is not None and (after is None or before.cells == after.cells)


def _some(rng: np.random.Generator) -> set[str]:
    return {a for a in ADJECTIVES if rng.random() < ADJECTIVE_CHANCE[a]}


def _relation(mentions: Sequence[_Mention], rng: np.random.Generator) -> str | None:
    """How the first two things stand to each other, where that is worth a word and stays so."""
    if len(mentions) < 2 or rng.random() >= 0.4:
        return None
    (first, first_after), (second, second_after) = ((m.before, m.after) for m in mentions[:2])
    if not (first and first_after and second and second_after):
        return None
    if any("position" in mention.said for mention in mentions):
        return None
    relation = relation_of(first, second)
    return relation if relation == relation_of(first_after, second_after) else None


def _listed(things: Iterable[tuple[Thing | None, frozenset[str]]], relation: str | None) -> str:
    parts = [
        f"{indefinite(thing, said)} {position(thing.cells)}"
        if "position" in said
        else indefinite(thing, said)
        for thing, said in things
        if thing is not None
    ]
    if relation is not None:
        first, second, *rest = parts
        parts = [f"{first} {relation} {second}", *rest]
    return join(parts)


# ---- setting ------------------------------------------------------------------------------


def _settings(
    scene: Scene, told: Sequence[Told], rng: np.random.Generator
) -> tuple[list[str], list[str]]:
    """Phrases before and after, in one order; what stays is said in the same words."""
    changed = {c.facet: (c, words) for c, words in told if isinstance(c, SettingChange)}
    said = [f for f in SETTING_VALUES if f in changed or rng.random() < SETTING_CHANCE[f]]
    before: list[str] = []
    after: list[str] = []
    for facet in shuffled(rng, said):
        if facet in changed:
            change, words = changed[facet]
            before.append(_phrase(facet, change.before, words, rng))
            after.append(_phrase(facet, change.after, words, rng))
        else:
            phrase = setting_phrase(facet, getattr(scene, facet), rng)
            before.append(phrase)
            after.append(phrase)
    return before, after


def _phrase(facet: str, value: str, words: str, rng: np.random.Generator) -> str:
    """The instruction's own words where it has some."""
    spoken = [phrase for phrase in SETTING_PHRASES[facet][value] if phrase in words]
    return spoken[0] if spoken else setting_phrase(facet, value, rng)
