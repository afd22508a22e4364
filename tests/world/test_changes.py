from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import chain, combinations, permutations

import pytest

from cirlab.world.changes import (
    CATEGORIES,
    MAX_THINGS,
    Change,
    SettingChange,
    ThingChange,
    apply_all,
    draw_changes,
)
from cirlab.world.language import position, spot
from cirlab.world.phrasing import STYLES, combine, modification, speak
from cirlab.world.scene import MAX_CELLS, Scene, Thing, draw_scene, generator
from cirlab.world.series import POOL_SIZE
from cirlab.world.vocabulary import COLOURS, PLURALS, words_of
from tests.world.reading import phrases

CASES = [
    (scene, draw_changes(scene, POOL_SIZE, generator("val", 7, i, 1)))
    for i in range(250)
    for scene in [draw_scene(generator("val", 7, i))]
]


def subsets(changes: tuple[Change, ...]) -> list[tuple[Change, ...]]:
    sizes = range(len(changes) + 1)
    return list(chain.from_iterable(combinations(changes, n) for n in sizes))


def thing_changes() -> list[tuple[Scene, ThingChange]]:
    return [(s, c) for s, changes in CASES for c in changes if isinstance(c, ThingChange)]


def test_all_categories_are_drawn_and_named_rightly() -> None:
    counts = Counter(change.category for _, changes in CASES for change in changes)
    assert set(counts) == set(CATEGORIES)
    for _, change in thing_changes():
        before, after = change.before, change.after
        match change.category:
            case "added":
                assert not before and len(after) == 1
            case "removed":
                assert not after and len(before) == 1
            case "number":
                assert before[0].look == after[0].look and before[0].count != after[0].count
            case "relationship":
                assert [t.look for t in before] == [t.look for t in after]
                assert all(a.cells != b.cells for a, b in zip(before, after, strict=True))
            case "attribute":
                assert before[0].cells == after[0].cells
                pairs = zip(before[0].look, after[0].look, strict=True)
                assert sum(a != b for a, b in pairs) == 1


def test_any_subset_gives_a_valid_scene_of_its_own() -> None:
    for scene, changes in CASES[:100]:
        signatures = set()
        for subset in subsets(changes):
            result = apply_all(scene, subset)
            signatures.add(result.signature())
            cells = [cell for thing in result.things for cell in thing.cells]
            assert 1 <= len(result.things) <= MAX_THINGS
            assert len(set(cells)) == len(cells)
            assert len({thing.look for thing in result.things}) == len(result.things)
        assert len(signatures) == 2 ** len(changes)


def test_no_change_makes_two_things_look_alike() -> None:
    red = Thing((0,), shape="star", colour="red", size="small", texture="plain")
    things = (red, *(replace(red, cells=(i + 1,), colour=c) for i, c in enumerate(COLOURS[1:4])))
    scene = Scene(things, place="sea", time="day", weather="fog", view="level", nuisance=0)
    for i in range(300):
        for change in draw_changes(scene, 3, generator("val", 12, i)):
            result = change.apply(scene)
            assert len({thing.look for thing in result.things}) == len(result.things)


def test_order_does_not_matter_and_inverses_lead_back() -> None:
    for scene, changes in CASES[:60]:
        target = apply_all(scene, changes)
        for order in list(permutations(changes))[::17]:
            assert apply_all(scene, order) == target
        assert apply_all(target, [change.inverse() for change in changes]) == scene
        assert [change.inverse().inverse() for change in changes] == list(changes)


def test_changes_of_a_pool_claim_nothing_in_common() -> None:
    for _, changes in CASES:
        for first, second in combinations(changes, 2):
            assert not first.claims() & second.claims()


def test_a_change_of_another_scene_is_refused() -> None:
    scene = draw_scene(generator("val", 1))
    other = next(s for s, _ in CASES if not set(s.things) & set(scene.things))
    with pytest.raises(ValueError, match="not all in the scene"):
        ThingChange("removed", before=other.things, after=()).apply(scene)
    with pytest.raises(ValueError, match="place is not"):
        SettingChange("place", before="nowhere", after="sea").apply(scene)


def test_taken_cells_stay_within_the_limit() -> None:
    for scene, changes in CASES:
        for subset in subsets(changes):
            assert len(apply_all(scene, subset).taken_cells()) <= MAX_CELLS


# ---- in words -----------------------------------------------------------------------------


def test_words_of_a_thing_change_name_a_shape_that_it_alone_claims() -> None:
    for i, (scene, change) in enumerate(thing_changes()):
        for style in STYLES:
            said = speak(change, scene, style, generator("val", 8, i))
            shapes = {phrase.shape for phrase in phrases(said)}
            # "make it ..." apart, a phrase without article is the only one of its sentence.
            assert shapes and shapes <= change.claims(), said


def test_words_tell_the_new_value() -> None:
    size_words = {"large": {"large", "larger", "enlarge"}, "small": {"small", "smaller", "shrink"}}
    checked: Counter[str] = Counter()
    for i, (scene, change) in enumerate(thing_changes()):
        for style in STYLES:
            said = speak(change, scene, style, generator("val", 13, i))
            if change.category == "relationship" and len(change.after) == 1:
                cells = change.after[0].cells
                assert said.removesuffix(" now").endswith((position(cells), f" to {spot(cells)}"))
            elif change.category == "attribute":
                looks = zip(change.before[0].look, change.after[0].look, strict=True)
                (new,) = (after for before, after in looks if after != before)
                wanted = size_words.get(new, {new, PLURALS.get(new, new)})
                assert wanted & set(words_of(said)), said
            elif change.category == "number":
                before, after = change.before[0].count, change.after[0].count
                steps = {"one", "two", "three"} & set(words_of(said))
                assert {NUMBERS[after], NUMBERS[abs(after - before)]} & steps, said
            checked[change.category] += 1
    assert len(checked) == 5


NUMBERS = {1: "one", 2: "two", 3: "three"}


def test_definite_phrases_of_instructions_mean_one_thing_of_the_reference() -> None:
    for i, (scene, change) in enumerate(thing_changes()):
        said = speak(change, scene, "instruction", generator("val", 9, i))
        if change.category in ("removed", "relationship"):
            read = phrases(said)
            meant = [phrase.things(scene) for phrase in read]
            assert meant == [[thing] for thing in change.before], said


def test_descriptions_are_true_of_the_target_and_new_to_the_reference() -> None:
    checked: Counter[str] = Counter()
    for i, (scene, change) in enumerate(thing_changes()):
        target = change.apply(scene)
        for draw in range(4):
            said = speak(change, scene, "description", generator("val", 10, i, draw))
            if change.category == "removed":
                (read,) = phrases(said)
                assert read.things(scene) == list(change.before)
                assert read.things(target) == []
            elif change.category in ("added", "number"):
                for read in phrases(said):
                    assert read.things(target) and not read.things(scene), said
            elif change.category == "attribute" and not {"is", "are"} & set(said.split()):
                sides = [(len(r.things(scene)), len(r.things(target))) for r in phrases(said)]
                # What is new, once, and where it is named what was.
                assert sorted(sides) in ([(0, 1)], [(0, 1), (1, 0)]), said
            checked[change.category] += 1
    assert len(checked) == 5


def test_a_modification_holds_every_change() -> None:
    for i, (scene, changes) in enumerate(CASES):
        said = modification(changes[:3], scene, STYLES[i % 2], generator("val", 11, i))
        shapes = {phrase.shape for phrase in phrases(said)}
        for change in changes[:3]:
            if isinstance(change, ThingChange):
                assert shapes & change.claims(), said


def test_texts_are_joined_as_people_do() -> None:
    said = {combine(["a", "b", "c"], "description", generator("val", i)) for i in range(40)}
    assert said == {"a, b and c", "a, b, and c", "a, b, c"}
    assert combine(["a"], "instruction", generator("val", 1)) == "a"
