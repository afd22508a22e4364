from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest

from cirlab.world.changes import Change, SettingChange, ThingChange, apply_all
from cirlab.world.phrasing import STYLES, speak
from cirlab.world.scene import draw_scene, generator
from cirlab.world.series import (
    FAMILY_SIZE,
    composition_example,
    draw_family,
    draw_members,
    draw_series,
    series,
)
from cirlab.world.vocabulary import SETTING_PHRASES, SETTING_VALUES
from tests.world.reading import phrases


def shapes_of(change: Change) -> set[str]:
    if isinstance(change, SettingChange):
        return set()
    return {thing.shape for thing in (*change.before, *change.after)}


FAMILIES = [draw_family(generator("val", 20, i)) for i in range(40)]


def test_members_are_scenes_of_their_own_and_always_the_same() -> None:
    for family in FAMILIES:
        scenes = [family.scene(member) for member in range(FAMILY_SIZE)]
        assert scenes[0] == family.base
        assert len({scene.signature() for scene in scenes}) == FAMILY_SIZE
        assert len({scene.nuisance for scene in scenes}) == FAMILY_SIZE
        assert scenes == [family.scene(member) for member in range(FAMILY_SIZE)]


def test_changes_between_two_members_lead_from_one_to_the_other() -> None:
    for family in FAMILIES:
        for reference, target in combinations(range(FAMILY_SIZE), 2):
            changes = family.between(reference, target)
            assert len(changes) == (reference ^ target).bit_count()
            reached = apply_all(family.scene(reference), changes)
            assert reached.signature() == family.scene(target).signature()
            back = [change.inverse() for change in changes]
            assert list(family.between(target, reference)) == back


def test_the_words_of_a_change_mean_that_change_only_in_every_member() -> None:
    """What makes the ground truth complete: no other change of the family fits the words."""
    for i, family in enumerate(FAMILIES):
        rng = generator("val", 21, i)
        for reference in range(0, FAMILY_SIZE, 3):
            scene = family.scene(reference)
            for position in range(len(family.pool)):
                (change,) = family.between(reference, reference ^ 1 << position)
                others = [c for i, c in enumerate(family.pool) if i != position]
                said = speak(change, scene, STYLES[reference % 2], rng)
                if isinstance(change, ThingChange):
                    shapes = {phrase.shape for phrase in phrases(said)}
                    assert shapes
                    assert not any(shapes & shapes_of(other) for other in others), said
                else:
                    options = SETTING_PHRASES[change.facet]
                    told = {value for value in options if any(o in said for o in options[value])}
                    assert {change.after} <= told <= {change.after, change.before}, said


@pytest.mark.parametrize("reference", [0, 13, 31])
def test_members_are_drawn_by_share_and_never_the_reference(reference: int) -> None:
    counts: Counter[int] = Counter()
    for i in range(1500):
        (member,) = draw_members(generator("val", 22, i), 1, reference=reference)
        counts[(member ^ reference).bit_count()] += 1
    assert set(counts) == {1, 2, 3}
    for changes, share in ((1, 0.40), (2, 0.35), (3, 0.25)):
        assert abs(counts[changes] / 1500 - share) < 0.05


def test_all_members_within_reach_can_be_drawn_but_no_more() -> None:
    rng = generator("val", 23)
    assert len(set(draw_members(rng, 25, reference=6))) == 25
    drawn = draw_members(rng, 22, reference=6, exclude=(7, 4, 2))
    assert not {6, 7, 4, 2} & set(drawn)
    with pytest.raises(ValueError, match="26 members are more than the 25"):
        draw_members(rng, 26)
    with pytest.raises(ValueError, match="more than the 24"):
        draw_members(rng, 25, exclude=(1,))


def test_a_series_is_a_scene_and_variations_of_it() -> None:
    for seed in range(20):
        scenes = series(seed, size=4)
        assert scenes == series(seed, size=4)
        assert len({scene.signature() for scene in scenes}) == 4
        assert scenes != series(seed, size=4, split="val")
    assert series(1, size=1) == (draw_scene(generator("train", 1)),)
    assert len(draw_series(generator("val", 1), 26)) == 26


def test_composition_examples_change_what_the_text_says() -> None:
    kept = 0
    for i in range(300):
        before, text, after = composition_example(generator("val", 24, i))
        assert before != after
        assert phrases(text) or any(
            option in text
            for facet in SETTING_VALUES
            for options in SETTING_PHRASES[facet].values()
            for option in options
        )
        # What the text does not speak of stays: the captions share most of their words.
        common = Counter(before.split()) & Counter(after.split())
        kept += sum(common.values()) >= len(after.split()) / 3
    assert kept > 270


def test_composition_examples_keep_to_the_asked_style() -> None:
    texts = [composition_example(generator("val", 25, i), style=STYLES[0])[1] for i in range(200)]
    assert not [text for text in texts if " gone" in text or text.startswith("without")]
