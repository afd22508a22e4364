from __future__ import annotations

import re

import pytest

from cirlab.world.conversation import DESCRIBE_ALL, question_and_answer
from cirlab.world.dialogue import dialogue
from cirlab.world.language import full_caption
from cirlab.world.oracle import answer_to, askable
from cirlab.world.scene import Scene, draw_scene, generator
from cirlab.world.vocabulary import POSITIONS, dialogue_vocabulary, vocabulary, words_of
from cirlab.zoo.speech import plain

SCENES = [draw_scene(generator("val", 5, number)) for number in range(60)]


def same_words(text: str) -> list[str]:
    """Words without what is left to chance: settings' phrases, adjectives of cells, "no x"."""
    return sorted(words_of(re.sub(r"\bno (?=\w)", "there is not a ", plain(text))))


def test_answers_are_those_of_the_worlds_dialogues() -> None:
    agreed = understood = 0
    for number, scene in enumerate(SCENES):
        _, rounds = dialogue(scene, generator("val", 5, number, 1), rounds=20)
        for question, told in map(question_and_answer, rounds):
            answer = answer_to(scene, question)
            if not answer or question.startswith(("what do you see ", "what is at", "what is on")):
                continue
            understood += 1
            agreed += same_words(answer) == same_words(told)
    assert understood > 200
    assert agreed == understood


def test_what_is_in_a_cell_is_told_with_its_looks() -> None:
    for scene in SCENES:
        for thing in scene.things:
            said = answer_to(scene, f"what is {POSITIONS[thing.cells[0]]}?")
            assert {thing.colour, thing.size, thing.texture} <= set(said.split())
            assert thing.shape in said


def test_everything_askable_is_answered_in_the_words_of_captions() -> None:
    questions = askable()
    assert len(set(questions)) == len(questions) == 39
    for question in questions:
        assert set(words_of(question)) <= set(dialogue_vocabulary())
        for scene in SCENES[:5]:
            assert set(words_of(answer_to(scene, question))) <= set(vocabulary())


def test_all_answers_together_tell_scenes_apart() -> None:
    def told(scene: Scene) -> tuple[str, ...]:
        return tuple(answer_to(scene, question) for question in askable())

    assert len({told(scene) for scene in SCENES}) == len({s.signature() for s in SCENES})
    assert told(SCENES[0]) == told(SCENES[0].twin(nuisance=1))


def test_wording_and_blanks_do_not_matter_but_nonsense_has_no_answer() -> None:
    scene = SCENES[0]
    assert answer_to(scene, " What is  the Place? ") == answer_to(scene, "where is it?")
    assert answer_to(scene, DESCRIBE_ALL) == full_caption(scene)
    assert answer_to(scene, "who are you?") == ""


@pytest.mark.parametrize("value", ["day", "night"])
def test_a_wrong_guess_is_answered_by_no_and_the_truth(value: str) -> None:
    scene = next(scene for scene in SCENES if scene.time == value)
    phrase = answer_to(scene, "what time is it?")
    assert answer_to(scene, f"is it {phrase}?") == phrase
    assert answer_to(scene, "is it at dusk?") == f"no, {phrase}"
