from __future__ import annotations

import numpy as np
import pytest

from cirlab.world.dialogue import dialogue
from cirlab.world.language import caption, full_caption
from cirlab.world.oracle import answer_to, askable
from cirlab.world.scene import Scene, Thing, draw_scene, generator
from cirlab.world.told import Mention, mentions_in, settings_in, told

STAR = Thing((1,), "star", "red", "small", "plain")
RINGS = Thing((0, 4), "ring", "blue", "large", "dotted")
BLUE_STAR = Thing((8,), "star", "blue", "large", "plain")
SCENE = Scene((STAR, RINGS, BLUE_STAR), "sea", "night", "rain", "below", nuisance=0)


@pytest.mark.parametrize(
    ("opening", "rounds", "wanted"),
    [
        ("we see a red star at sea", [], "a red star, on the sea"),
        ("in the dark, two rings and a star", [], "two rings, a star, at night"),
        # Guesses tell nothing, answers do.
        ("two rings", ["is it by day? no, in the dark"], "two rings, at night"),
        ("two rings", ["are the rings red? no, two blue rings"], "two blue rings"),
        ("two rings", ["are the rings plain? two dotted rings"], "two dotted rings"),
        # What is not there, and how things stand to each other.
        ("two rings", ["is there a cross? no cross"], "two rings"),
        ("two rings", ["what is green? there is not a green one"], "two rings"),
        ("two rings", ["what is on the left? there is not one on the left"], "two rings"),
        (
            "a red star",
            ["is the red star below the blue star? no, the red star is left of the blue star"],
            "a red star, a blue star",
        ),
        # Positions: of copies all or none.
        (
            "two rings",
            ["what is at the top left? one of two large rings at the top left"],
            "two large rings",
        ),
        (
            "two rings",
            [
                "what is at the top left? one of two rings at the top left",
                "what is in the centre? one of two rings in the centre",
            ],
            "two rings at the top left and in the centre",
        ),
        (
            "two rings",
            ["where are the rings? the rings are at the top left and in the centre"],
            "two rings at the top left and in the centre",
        ),
        # Two stars: the phrase tells which one is meant, also if it says nothing new.
        (
            "a star",
            ["what shapes are there? two rings, a star and a star"],
            "a star, two rings, a star",
        ),
        (
            "a large star",
            ["what is at the top? a red star at the top", "what size is it? a small red star"],
            "a large star, a small red star at the top",
        ),
    ],
)
def test_captions_say_what_was_told(opening: str, rounds: list[str], wanted: str) -> None:
    assert told(SCENE, opening, rounds).caption() == wanted


def test_everything_that_can_be_asked_comes_to_the_full_caption() -> None:
    """The oracle's answers tell a scene whole; things of one shape cannot be told apart in all."""
    for number in range(40):
        rng = generator("train", 5, number)
        scene = draw_scene(rng)
        rounds = [f"{question} {answer_to(scene, question)}" for question in askable()]
        if len({thing.shape for thing in scene.things}) < len(scene.things):
            continue
        said = told(scene, caption(scene, rng), rounds).caption()
        assert sorted(parts(said)) == sorted(parts(full_caption(scene)))


def parts(text: str) -> list[str]:
    return [str(mention) for mention in mentions_in(text)] + [str(settings_in(text))]


def test_what_is_told_is_true_and_never_less_than_before() -> None:
    for number in range(60):
        rng = generator("val", 7, number)
        scene = draw_scene(rng)
        opening, rounds = dialogue(scene, rng, rounds=12)
        before = told(scene, opening)
        for shown in range(1, 13):
            now = told(scene, opening, rounds[:shown])
            assert list(now.things)[: len(before.things)] == list(before.things)
            assert all(before.things[thing] <= now.things[thing] for thing in before.things)
            assert before.setting.items() <= now.setting.items()
            before = now
        for mention in mentions_in(before.caption()):
            assert any(mention.fits(thing) for thing in scene.things)
        assert all(getattr(scene, facet) == value for facet, value in before.setting.items())


def test_a_caption_of_what_was_told_tells_the_same() -> None:
    for number in range(60):
        rng = generator("val", 8, number)
        scene = draw_scene(rng)
        opening, rounds = dialogue(
            scene, rng, rounds=int(np.random.default_rng(number).integers(9))
        )
        first = told(scene, opening, rounds).caption()
        assert told(scene, first).caption() == first


def test_mentions_have_counts_looks_and_places() -> None:
    text = "no heart, one of three small crosses on the left, the rings are at the top, at sea"
    assert list(mentions_in(text)) == [
        Mention("cross", 3, {"size": "small"}, (3,)),
        Mention("ring", None, {}, (1,)),
    ]


def test_what_is_not_in_the_scene_is_refused() -> None:
    with pytest.raises(ValueError, match="is true of nothing in"):
        told(SCENE, "a green star")
