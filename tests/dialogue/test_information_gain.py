from __future__ import annotations

import pytest

from cirlab.dialogue.answerers import WorldAnswerer
from cirlab.dialogue.faults import Fault
from cirlab.dialogue.information_gain import InformationGain, entropy, overlap
from cirlab.errors import UserError
from cirlab.world.image import SceneImage
from cirlab.world.oracle import answer_to, askable
from cirlab.world.scene import draw_scene, generator
from tests.dialogue.players import REGISTRY, Asks, Tells, image_of, talk

BEST = [image_of(number) for number in range(4)]
FRONT, WEATHER, WHERE, WHO = REGISTRY


def says(image: str, question: str) -> str:
    """Of four images: the weather splits them in halves, the place in four, nothing else."""
    number = int(image.removeprefix("images/").removesuffix(".jpg"))
    return {WEATHER: ("fog", "Rain!")[number % 2], WHERE: f"place {number}"}.get(question, "a dog")


def test_entropy_is_that_of_the_answers() -> None:
    assert entropy(["a", "b", "c", "d"]) == pytest.approx(2.0)
    assert entropy(["a", "A.", "b", "b"]) == pytest.approx(1.0)
    assert entropy(["a", "a"]) == entropy([]) == entropy(["", ""]) == 0.0
    # Two of four say nothing, which tells nobody apart.
    assert entropy(["a", "b", "", ""]) == pytest.approx(0.5)
    assert entropy(["a", "b"], [3.0, 1.0]) == pytest.approx(0.8113, abs=1e-4)


def test_the_question_that_splits_best_is_put_and_none_twice() -> None:
    questioner = InformationGain(Tells(says), REGISTRY)
    begun = talk((WHERE, "nowhere"), best=BEST)
    refused = talk(best=BEST).refusing(WHERE, Fault.REPEATED)
    both = talk((WHERE, ""), (WEATHER, ""), best=BEST)
    over = talk(*((question, "") for question in REGISTRY), best=BEST)
    asked = questioner.ask([talk(best=BEST), begun, refused, both, over])
    # Where nothing splits, the pool's order decides.
    assert asked == [WHERE, WEATHER, WEATHER, FRONT, ""]


def test_images_that_contradict_the_dialogue_count_less() -> None:
    tells = {"is it old?": "0 1 1 1", "is it big?": "1 2 3 3", "is it far?": "1 1 2 3"}

    def say(image: str, question: str) -> str:
        return tells[question].split()[BEST_IDS.index(image)]

    begun = talk(("is it old?", "1"), best=BEST)
    pool = tuple(tells)
    assert InformationGain(Tells(say), pool, doubt=1.0).ask([begun]) == ["is it big?"]
    assert InformationGain(Tells(say), pool, doubt=0.01).ask([begun]) == ["is it far?"]
    with pytest.raises(UserError, match=r"the doubt is 0\.0; set it above 0"):
        InformationGain(Tells(say), pool, doubt=0.0)


BEST_IDS = [image.id for image in BEST]


def test_what_a_proposer_asks_is_one_candidate_among_the_others() -> None:
    tells = Tells(lambda image, question: image if question == "is it new?" else "no")
    proposer = Asks(lambda each: "Question: is it new?")
    assert InformationGain(tells, REGISTRY, proposer=proposer).ask([talk(best=BEST)]) == [
        "is it new?"
    ]
    # What cannot be put is no candidate.
    silent = Asks(lambda each: "it is new")
    assert InformationGain(tells, REGISTRY, proposer=silent).ask([talk(best=BEST)]) == [FRONT]


def test_answers_share_words_or_do_not() -> None:
    assert overlap("two red dogs", "Two dogs.") == pytest.approx(2 / 3)
    assert (overlap("", ""), overlap("a", ""), overlap("a", "b")) == (1.0, 0.0, 0.0)


def test_in_the_world_its_questions_leave_fewer_scenes_than_a_list_does() -> None:
    scenes = [draw_scene(generator("val", 9, number)) for number in range(24)]
    images = [SceneImage(f"{number}", scene) for number, scene in enumerate(scenes)]
    questioner = InformationGain(WorldAnswerer(), askable())

    def left(questions: list[str]) -> int:
        told = [tuple(answer_to(scene, q) for q in questions) for scene in scenes]
        return sum(each == told[0] for each in told)

    asked: list[str] = []
    begun = talk(best=images)
    for _ in range(2):
        (question,) = questioner.ask([begun])
        asked.append(question)
        rounds = [(each, answer_to(scenes[0], each)) for each in asked]
        begun = talk(*rounds, best=images)
    assert left(asked) < left(list(askable()[:2]))
