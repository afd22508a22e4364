from __future__ import annotations

import re
from itertools import product

import numpy as np
import pytest

from cirlab.world.language import (
    ADJECTIVES,
    caption,
    describe,
    full_caption,
    indefinite,
    position,
    refer,
    relation_of,
    spot,
    telling,
)
from cirlab.world.phrasing import STYLES, modification
from cirlab.world.scene import Scene, Thing, draw_scene, generator
from cirlab.world.series import FAMILY_SIZE, composition_example, draw_family, draw_members
from cirlab.world.vocabulary import SETTING_PHRASES, vocabulary, words_of
from tests.world.reading import PHRASE, phrases

SCENES = [draw_scene(generator("val", 1, i)) for i in range(400)]


def all_members() -> list[Scene]:
    families = [draw_family(generator("val", 2, i)) for i in range(60)]
    return [family.scene(member) for family in families for member in range(FAMILY_SIZE)]


def all_language() -> list[str]:
    texts = []
    for i in range(1200):
        rng = generator("train", 2, i)
        family = draw_family(rng)
        member = int(rng.integers(FAMILY_SIZE))
        (target,) = draw_members(rng, 1, reference=member)
        scene = family.scene(member)
        texts += [caption(scene, rng), full_caption(scene), *composition_example(rng)]
        texts += [modification(family.between(member, target), scene, s, rng) for s in STYLES]
    return texts


def test_language_keeps_to_its_vocabulary_and_uses_all_of_it() -> None:
    texts = all_language()
    words = {word for text in texts for word in words_of(text)}
    assert words == set(vocabulary())
    assert len(vocabulary()) < 200
    for text in texts:
        assert text == text.lower().strip()
        assert not re.search(r"  | ,|,,|,$|[^a-z, ]", text), text
        assert not re.search(r"\ba orange\b|\ban (?!orange|image|open)", text), text


def test_full_captions_are_equal_exactly_where_signatures_are() -> None:
    signature_of: dict[str, object] = {}
    for scene in all_members():
        said = full_caption(scene)
        assert full_caption(scene.twin(7)) == said
        assert signature_of.setdefault(said, scene.signature()) == scene.signature()
    assert len(set(signature_of.values())) == len(signature_of)


def test_captions_fit_a_context_of_72_tokens_with_both_ends() -> None:
    for scene in all_members():
        assert len(words_of(full_caption(scene))) <= 70


def test_full_captions_name_every_thing_with_everything() -> None:
    for scene in SCENES:
        read = phrases(full_caption(scene))
        assert all(None not in phrase for phrase in read)
        assert [phrase.things(scene) for phrase in read] == [[thing] for thing in scene.things]


def test_captions_are_true_and_leave_things_out() -> None:
    shorter = 0
    for i, scene in enumerate(SCENES):
        said = caption(scene, generator("val", 3, i))
        read = phrases(said)
        assert 1 <= len(read) <= len(scene.things)
        # Each phrase speaks of another thing: there is a way to tell them apart.
        assert _assignable([phrase.things(scene) for phrase in read]), (said, scene)
        for facet, value in _settings_said(said):
            assert getattr(scene, facet) == value, said
        shorter += len(said) < len(full_caption(scene))
    assert shorter > 0.98 * len(SCENES)


def test_captions_vary() -> None:
    rng = generator("val", 4)
    assert len({caption(SCENES[1], rng) for _ in range(100)}) > 60


def test_relations_in_captions_are_true() -> None:
    seen = set()
    for i, scene in enumerate(SCENES * 3):
        said = caption(scene, generator("val", 5, i))
        pattern = rf"{_unnamed(PHRASE)} (left of|right of|above|below) {_unnamed(PHRASE)}"
        for found in re.finditer(pattern, said):
            first, second = phrases(found.group())
            pairs = product(first.things(scene), second.things(scene))
            assert any(_stands(a, b, found.group(1)) for a, b in pairs), said
            seen.add(found.group(1))
    assert seen == {"left of", "right of", "above", "below"}


def test_relation_of_things_that_are_not_in_line_is_none() -> None:
    look = {"shape": "star", "colour": "red", "size": "small", "texture": "plain"}
    assert relation_of(Thing((0,), **look), Thing((4,), **look)) is None
    assert relation_of(Thing((0, 1), **look), Thing((2,), **look)) is None
    assert relation_of(Thing((0,), **look), Thing((2,), **look)) == "left of"
    assert relation_of(Thing((7,), **look), Thing((1,), **look)) == "below"


def test_references_are_true_of_one_thing_only() -> None:
    for i, scene in enumerate(SCENES):
        rng = generator("val", 6, i)
        for thing in scene.things:
            (read,) = phrases(refer(thing, scene, rng))
            assert read._replace(count=None).things(scene) == [thing]
            assert read.count in (None, thing.count)


def test_telling_says_what_it_must() -> None:
    scene = next(scene for scene in SCENES if len(scene.things) == 3)
    thing, *others = scene.things
    for seed, must in product(range(5), ADJECTIVES):
        assert must in telling(thing, others, generator("val", seed), must=(must,))


@pytest.mark.parametrize(
    ("cells", "at", "to"),
    [
        ((3,), "on the left", "the left"),
        ((4,), "in the centre", "the centre"),
        ((1, 8), "at the top and at the bottom right", "the top and the bottom right"),
        (
            (0, 4, 5),
            "at the top left, in the centre and on the right",
            "the top left, the centre and the right",
        ),
    ],
)
def test_positions(cells: tuple[int, ...], at: str, to: str) -> None:
    assert position(cells) == at
    assert spot(cells) == to


def test_articles_and_numbers() -> None:
    one = Thing((0,), shape="cross", colour="orange", size="small", texture="plain")
    three = Thing((0, 1, 2), shape="cross", colour="orange", size="small", texture="plain")
    assert indefinite(one, ("colour",)) == "an orange cross"
    assert indefinite(one, ("colour", "size")) == "a small orange cross"
    assert indefinite(three, ()) == "three crosses"


def test_describe_says_what_it_is_asked_for_and_no_more() -> None:
    scene = SCENES[2]
    assert describe(scene, {"view"}).count(",") == len(scene.things)
    read = phrases(describe(scene, {"texture"}, np.random.default_rng(0)))
    assert {phrase.texture for phrase in read} == {thing.texture for thing in scene.things}
    assert all(phrase.size is None and phrase.colour is None for phrase in read)


def _settings_said(text: str) -> list[tuple[str, str]]:
    return [
        (facet, value)
        for facet, values in SETTING_PHRASES.items()
        for value, options in values.items()
        if any(re.search(rf"\b{option}\b", text) for option in options)
    ]


def _assignable(options: list[list[Thing]]) -> bool:
    return any(len(set(chosen)) == len(chosen) for chosen in product(*options))


def _unnamed(pattern: str) -> str:
    return f"(?:{re.sub(r'[?]P<[a-z]+>', '?:', pattern)})"


def _stands(first: Thing, second: Thing, relation: str) -> bool:
    if first.count > 1 or second.count > 1:
        return False
    a, b = first.cells[0], second.cells[0]
    row, column = a // 3 - b // 3, a % 3 - b % 3
    return {
        "left of": row == 0 and column < 0,
        "right of": row == 0 and column > 0,
        "above": column == 0 and row < 0,
        "below": column == 0 and row > 0,
    }[relation]


def test_the_reader_itself_reads() -> None:
    (read,) = phrases("with two small dotted red crosses at the top")
    assert read == (2, "small", "dotted", "red", "cross")
    scene = Scene((), "sea", "day", "fog", "level", 0)
    assert read.things(scene) == []
