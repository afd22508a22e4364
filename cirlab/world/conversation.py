"""What a multimodal LLM is taught to say of a scene: descriptions, and answers to questions.

Conversations as LLaVA is tuned on (Liu et al., arXiv 2304.08485): a picture, and turns of one who
asks and one who sees it. The questions are those of the world's dialogues.
"""

from __future__ import annotations

import numpy as np

from cirlab.world.dialogue import dialogue
from cirlab.world.language import caption, full_caption
from cirlab.world.scene import Scene, pick

#: One who asks, one who answers.
Turn = tuple[str, str]

#: Asks for all that can be said of a scene (`language.full_caption`).
DESCRIBE_ALL = "Describe this image in detail."
#: Asks for what people would say of it (`language.caption`).
DESCRIBE = "Describe this image."

#: Questions of one conversation.
QUESTIONS_EACH = 6


def description(scene: Scene) -> tuple[Turn, ...]:
    """One turn: everything there is to say."""
    return ((DESCRIBE_ALL, full_caption(scene)),)


def interview(
    scene: Scene, rng: np.random.Generator, questions: int = QUESTIONS_EACH
) -> tuple[Turn, ...]:
    """Questions that no earlier answer tells, and at last a description as people give one.

    Each turn can be answered by the picture alone.
    """
    _, rounds = dialogue(scene, rng, questions)
    return (*(question_and_answer(text) for text in rounds), (DESCRIBE, caption(scene, rng)))


def conversation(scene: Scene, rng: np.random.Generator, descriptions: float) -> tuple[Turn, ...]:
    """One of the two.

    Args:
        scene: what is spoken of.
        rng: decides which, and what is asked.
        descriptions: share of descriptions that say everything, in [0, 1].
    """
    return description(scene) if rng.random() < descriptions else interview(scene, rng)


def question_and_answer(text: str) -> Turn:
    """The two halves of a dialogue's round, "question? answer"."""
    question, mark, answer = text.partition("? ")
    return question + mark.strip(), answer


def question_of(scene: Scene, rng: np.random.Generator) -> Turn:
    """A single question about a scene, with its answer."""
    _, rounds = dialogue(scene, rng, rounds=QUESTIONS_EACH)
    return question_and_answer(pick(rng, rounds))
