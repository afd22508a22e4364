from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from cirlab.world.dialogue import MAX_ROUNDS, QUESTIONS, dialogue
from cirlab.world.language import full_caption
from cirlab.world.scene import Scene, Thing, draw_scene, generator
from cirlab.world.series import FAMILY_SIZE, draw_family
from cirlab.world.vocabulary import (
    COLOURS,
    POSITIONS,
    SIZES,
    TEXTURES,
    dialogue_vocabulary,
    vocabulary,
    words_of,
)
from tests.world.reading import is_true, phrases, settings

SCENES = [draw_scene(generator("val", 30, i)) for i in range(300)]
TALKS = [dialogue(scene, generator("val", 31, i)) for i, scene in enumerate(SCENES)]
ROUNDS = [
    (scene, *text.split("? "))
    for scene, (_, rounds) in zip(SCENES, TALKS, strict=True)
    for text in rounds
]


def test_ten_rounds_of_a_question_and_an_answer_by_default() -> None:
    for opening, rounds in TALKS:
        assert len(rounds) == 10
        assert "?" not in opening
        assert all(re.fullmatch(r"[a-z][a-z, ]*\? [a-z][a-z, ]*", text) for text in rounds)


def test_answers_keep_to_the_words_of_captions_and_questions_to_those_of_dialogues() -> None:
    questions = {word for _, question, _ in ROUNDS for word in words_of(f"{question}?")}
    answers = {word for _, _, answer in ROUNDS for word in words_of(answer)}
    assert answers <= set(vocabulary())
    assert questions <= set(dialogue_vocabulary())
    # Each word that questions need besides is used.
    assert set(dialogue_vocabulary()) - set(vocabulary()) <= questions
    prompts = {word for options in QUESTIONS.values() for q in options for word in words_of(q)}
    assert prompts <= set(dialogue_vocabulary())


def test_captions_and_answers_are_true() -> None:
    for scene, (opening, _) in zip(SCENES, TALKS, strict=True):
        assert is_true(opening, scene), (opening, scene)
    for scene, question, answer in ROUNDS:
        assert is_true(answer, scene), (question, answer, scene)


def test_answers_say_something_that_is_not_true_of_all_scenes() -> None:
    for _, question, answer in ROUNDS:
        assert not all(is_true(answer, other) for other in SCENES), (question, answer)


def test_what_was_supposed_wrongly_is_corrected() -> None:
    right = wrong = 0
    for scene, question, answer in ROUNDS:
        if question.startswith("is it "):
            ((facet, value),) = settings(question)
            assert (getattr(scene, facet) != value) == answer.startswith("no, ")
        elif found := re.fullmatch(r"(?:is|are) (the .*) ([a-z]+)", question):
            if found[2] not in (*SIZES, *TEXTURES, *COLOURS) or " or " in question:
                continue
            (thing,) = phrases(found[1])[0].things(scene)
            assert (found[2] not in thing.look) == answer.startswith("no, ")
        elif answer.startswith("no, "):
            assert re.match(r"is the .* (left of|right of|above|below) the ", question)
        else:
            continue
        right, wrong = right + (not answer.startswith("no, ")), wrong + answer.startswith("no, ")
    assert right > 50 and wrong > 50


def test_questions_about_a_thing_mean_one_thing_only() -> None:
    asked = 0
    for scene, question, _ in ROUNDS:
        for phrase in phrases(question):
            if f"the {phrase.shape}" in question or phrase.colour or phrase.size:
                asked += 1
                things = phrase._replace(count=None).things(scene)
                assert len(things) == 1, (question, scene)
    assert asked > 200


def test_answers_to_what_is_where_name_the_cell() -> None:
    seen = 0
    for scene, question, answer in ROUNDS:
        for cell, name in enumerate(POSITIONS):
            if question in (f"what is {name}", f"what do you see {name}"):
                seen += 1
                assert answer.endswith(name)
                assert answer.startswith("there is not one") == (cell not in scene.taken_cells())
    assert seen > 100


def test_lists_of_all_things_are_complete() -> None:
    facets = ("shape", "number", "colour", "size", "texture", "position")
    overviews = {q.rstrip("?") for facet in facets for q in QUESTIONS[facet]}
    seen: Counter[str] = Counter()
    for scene, question, answer in ROUNDS:
        if question in overviews:
            seen[question] += 1
            assert len(phrases(answer)) == len(scene.things), (answer, scene)
        if found := re.fullmatch(r"what is ([a-z]+)", question):
            having = [thing for thing in scene.things if found[1] in thing.look]
            assert len(phrases(answer)) == len(having)
    assert set(seen) == overviews


def test_counts_are_those_of_the_scene() -> None:
    look = {"colour": "red", "size": "small", "texture": "plain"}
    things = Thing((4,), shape="ring", **look), Thing((0, 1, 2), shape="star", **look)
    scene = Scene(things, "sea", "day", "fog", "level", 0)
    rounds = {r for i in range(200) for r in dialogue(scene, generator("val", 33, i))[1]}
    assert {r for r in rounds if r.startswith("how many ") and ("stars" in r or "rings" in r)} == {
        "how many stars are there? there are three stars",
        "how many rings are there? there is a ring",
        "how many things are there? a ring and three stars",
        "how many things do you see? a ring and three stars",
    }
    assert rounds >= {"is there a star? there are three stars", "is there a heart? no heart"}


def test_no_question_is_asked_twice() -> None:
    for _, rounds in TALKS:
        questions = [text.split("?")[0] for text in rounds]
        assert len(set(questions)) == len(questions)
        for options in QUESTIONS.values():
            wordings = [option.rstrip("?") for option in options]
            assert sum(question in wordings for question in questions) <= 1


def test_nothing_is_asked_that_the_caption_has_told() -> None:
    for opening, rounds in TALKS:
        for facet, _ in settings(opening):
            assert not any(text.startswith(QUESTIONS[facet]) for text in rounds), (opening, rounds)
        shapes = {phrase.shape for phrase in phrases(opening)}
        for text in rounds:
            assert not any(text.startswith(f"is there a {shape}?") for shape in shapes)


def test_dialogues_are_decided_by_the_numbers_and_vary() -> None:
    scene = SCENES[0]
    talks = [dialogue(scene, generator("val", 34, i)) for i in range(50)]
    assert talks[7] == dialogue(scene, generator("val", 34, 7))
    assert len({talk[0] for talk in talks}) > 30
    assert len({talk[1] for talk in talks}) == 50
    first = Counter(text.split()[0] for _, rounds in TALKS for text in rounds[:1])
    assert set(first) >= {"what", "how", "is", "where", "which"}
    assert max(first.values()) < 0.6 * len(TALKS)


def test_as_many_rounds_as_promised_are_possible_of_every_scene() -> None:
    for i, scene in enumerate(SCENES[:60]):
        opening, rounds = dialogue(scene, generator("val", 35, i), rounds=MAX_ROUNDS)
        assert len({text.split("?")[0] for text in rounds}) == MAX_ROUNDS
        assert all(is_true(text.split("? ")[1], scene) for text in rounds)
        assert dialogue(scene, generator("val", 35, i), rounds=0) == (opening, ())
    with pytest.raises(ValueError, match="nothing left to ask"):
        dialogue(SCENES[0], generator("val", 36), rounds=100)


def test_rounds_narrow_down_which_look_alike_is_meant() -> None:
    left = np.zeros((40, 11))
    for i in range(40):
        family = draw_family(generator("val", 37, i))
        members = [family.scene(member) for member in range(FAMILY_SIZE)]
        scene = members[i % FAMILY_SIZE]
        opening, rounds = dialogue(scene, generator("val", 38, i))
        for number, text in enumerate((opening, *rounds)):
            members = [m for m in members if is_true(text.split("? ")[-1], m)]
            left[i, number] = len(members)
        assert full_caption(scene) in {full_caption(member) for member in members}
    mean = left.mean(axis=0)
    assert mean[0] > 5 and mean[5] < 4 and mean[10] < 2.5
    assert mean[0] > mean[2] > mean[5] > mean[10]


def test_the_reader_itself_tells_what_is_false() -> None:
    star = Thing((0, 4), shape="star", colour="red", size="small", texture="plain")
    ring = Thing((1,), shape="ring", colour="blue", size="large", texture="plain")
    scene = Scene((ring, star), "sea", "night", "fog", "level", 0)
    for text in (
        "a blue ring at the top and at night",
        "one of two red stars in the centre",
        "two red stars at the top left and in the centre",
        "there is not a green one",
        "no heart",
        "there is not one on the left",
        "no, on the water",
    ):
        assert is_true(text, scene), text
    for text in (
        "a red ring",
        "by day",
        "a ring on the left",
        "one of two red stars at the top",
        "a small star",
        "there is not a blue one",
        "no ring",
        "there is not one in the centre",
        "the ring is left of the stars",
    ):
        assert not is_true(text, scene), text
