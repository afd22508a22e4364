from __future__ import annotations

from collections.abc import Iterator

import pytest

from cirlab.world.changes import apply_all, draw_changes
from cirlab.world.edits import CaptionEdit, edit, world_answer
from cirlab.world.language import full_caption
from cirlab.world.phrasing import STYLES, Style
from cirlab.world.scene import Scene, draw_scene, generator
from cirlab.world.vocabulary import COLOURS, SETTING_VALUES, SIZES, TEXTURES, words_of
from tests.world.reading import is_true, phrases, settings


def edits(
    style: Style, *, full: bool, count: int = 1500
) -> Iterator[tuple[Scene, Scene, CaptionEdit]]:
    for i in range(count):
        rng = generator("val", 40, i)
        scene = draw_scene(rng)
        changes = draw_changes(scene, 1 + i % 3, rng)
        yield scene, apply_all(scene, changes), edit(scene, changes, style, rng, full=full)


@pytest.mark.parametrize("style", STYLES)
def test_each_caption_is_true_of_its_scene_and_the_first_one_of_that_only(style: Style) -> None:
    for before, after, (caption, _, modified) in edits(style, full=False):
        assert is_true(caption, before)
        assert is_true(modified, after)
        grown = sum(t.count for t in after.things) > sum(t.count for t in before.things)
        names_all = len(phrases(caption)) == len(before.things)
        assert not is_true(caption, after) or (grown and names_all), (caption, modified)


@pytest.mark.parametrize("style", STYLES)
def test_nothing_that_changes_is_left_unsaid(style: Style) -> None:
    for before, after, (caption, _, modified) in edits(style, full=False):
        for facet in SETTING_VALUES:
            old, new = (facet, getattr(before, facet)), (facet, getattr(after, facet))
            if old != new:
                assert old in settings(caption) and new in settings(modified)
        for text, scene, other in ((caption, before, after), (modified, after, before)):
            named = [phrase.things(scene) for phrase in phrases(text)]
            for thing in set(scene.things) - set(other.things):
                assert [thing] in named, (text, thing)


def test_the_result_holds_nothing_but_what_caption_and_instruction_say() -> None:
    adjectives = {*COLOURS, *SIZES, *TEXTURES}
    for _, _, (caption, instruction, modified) in edits("instruction", full=False):
        said = set(words_of(f"{caption} {instruction}"))
        # "enlarge", "make it smaller": a size that is said by its direction.
        said |= {"large", "small"} & set(words_of(modified))
        assert set(words_of(modified)) & adjectives <= said
        shown = set(words_of(f"{caption} {modified}"))
        assert set(words_of(instruction)) & adjectives <= shown
        assert settings(modified) <= settings(caption) | settings(instruction)


def test_what_stays_is_said_in_the_same_words() -> None:
    kept = [
        len(set(words_of(caption)) & set(words_of(modified))) / len(set(words_of(modified)))
        for _, _, (caption, _, modified) in edits("instruction", full=False)
    ]
    assert sum(kept) / len(kept) > 0.7


def test_full_captions_are_those_of_the_scenes() -> None:
    for before, after, said in edits("description", full=True, count=50):
        assert (said.caption, said.modified_caption) == (full_caption(before), full_caption(after))


def test_answers_depend_on_the_generator_alone_and_say_as_much_as_asked() -> None:
    assert world_answer(generator("val", 1)) == world_answer(generator("val", 1))
    lengths = []
    for share in (0.0, 0.5, 1.0):
        said = [world_answer(generator("val", 2, i), share) for i in range(300)]
        assert len(set(said)) == 300
        lengths.append(sum(len(words_of(answer.caption)) for answer in said))
    assert lengths == sorted(lengths) and lengths[0] < 0.7 * lengths[2]
