"""Conversations about scenes: true, answerable by the picture alone, the same by the same seed."""

from __future__ import annotations

from cirlab.world.conversation import (
    DESCRIBE,
    DESCRIBE_ALL,
    QUESTIONS_EACH,
    conversation,
    description,
    interview,
    question_and_answer,
)
from cirlab.world.language import full_caption
from cirlab.world.scene import draw_scene, generator


def test_a_description_says_everything() -> None:
    scene = draw_scene(generator("val", 1))
    assert description(scene) == ((DESCRIBE_ALL, full_caption(scene)),)


def test_an_interview_asks_and_ends_with_a_caption() -> None:
    for seed in range(20):
        rng = generator("val", seed)
        turns = interview(draw_scene(rng), rng)
        assert len(turns) == QUESTIONS_EACH + 1
        assert all(question.endswith("?") and answer for question, answer in turns[:-1])
        assert turns[-1][0] == DESCRIBE
        assert len({question for question, _ in turns}) == len(turns)


def test_the_share_of_descriptions_is_kept() -> None:
    kinds = []
    for seed in range(400):
        rng = generator("val", seed)
        kinds.append(len(conversation(draw_scene(rng), rng, 0.25)) == 1)
    assert 0.18 < sum(kinds) / len(kinds) < 0.32


def test_a_round_is_split_at_its_question_mark() -> None:
    said = question_and_answer("is the ring small? no, a large ring")
    assert said == ("is the ring small?", "no, a large ring")
