"""How well the zoo's multimodal LLM speaks of the world: descriptions and answers, marked.

Scenes of the validation split, which no training sees; greedy decoding. Phrases that mean the same
count as the same ("at night", "in the dark"); everything else has to be said word by word.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from typing import Any

from cirlab.encoders.mllm.loading import load_mllm
from cirlab.encoders.mllm.processor import IMAGE_MARK, TEXT_MARK, MLLMProcessor, Prompt
from cirlab.encoders.mllm.settings import MLLMSettings
from cirlab.encoders.mllm.speaking import replies
from cirlab.world.conversation import DESCRIBE_ALL, question_and_answer
from cirlab.world.dialogue import QUESTIONS, dialogue
from cirlab.world.image import SceneImage
from cirlab.world.language import full_caption
from cirlab.world.scene import Scene, draw_scene, generator
from cirlab.world.vocabulary import SETTING_PHRASES

#: What is read at the end of questions: they are put to the picture alone.
ASK = f"{IMAGE_MARK}{TEXT_MARK}"


def measure(name: str = "zoo:tiny_mllm", scenes: int = 500, seed: int = 0) -> dict[str, Any]:
    """Shares of what is said right, in [0, 1].

    Args:
        name: of the model.
        scenes: described once each, and asked one question each.
        seed: of the scenes and the questions.

    Returns:
        `captions`: full descriptions that are right in everything; `caption_parts`: parts of them
        (a thing with its looks and place, a setting) that are named and right; `answers`, and
        `answers_by_kind`, by what is asked.
    """
    settings = MLLMSettings(name, frozen=True, padding_side="left")
    model, own = load_mllm(settings)
    processor = MLLMProcessor(own, settings.max_length, group_size=64)
    drawn = [draw_scene(generator("val", seed, number)) for number in range(scenes)]
    pictures = [SceneImage(str(number), scene).load() for number, scene in enumerate(drawn)]
    described = replies(
        model,
        processor,
        [Prompt(ASK, DESCRIBE_ALL, picture) for picture in pictures],
        description="descriptions",
    )
    asked = [_question(scene, seed, number) for number, scene in enumerate(drawn)]
    answered = replies(
        model,
        processor,
        [Prompt(ASK, text, picture) for (text, _), picture in zip(asked, pictures, strict=True)],
    )
    return _caption_shares(drawn, described) | _answer_shares(asked, answered)


def plain(text: str) -> str:
    """The text with every phrase of a setting in its plainest form."""
    plainest, pattern = _plainest()
    return pattern.sub(lambda found: plainest[found.group()], text)


def _caption_shares(scenes: Sequence[Scene], said: Sequence[str]) -> dict[str, float]:
    wanted = [full_caption(scene).split(", ") for scene in scenes]
    told = [plain(text).split(", ") for text in said]
    right = sum(len(set(t) & set(w)) for t, w in zip(told, wanted, strict=True))
    return {
        "captions": sum(t == w for t, w in zip(told, wanted, strict=True)) / len(wanted),
        "caption_parts": right / sum(map(len, wanted)),
    }


def _answer_shares(asked: Sequence[tuple[str, str]], said: Sequence[str]) -> dict[str, Any]:
    marks: dict[str, list[bool]] = defaultdict(list)
    for (question, answer), text in zip(asked, said, strict=True):
        marks[_kind(question)].append(plain(text) == plain(answer))
    every = [mark for kind in marks.values() for mark in kind]
    return {
        "answers": sum(every) / len(every),
        "answers_by_kind": {
            kind: {"asked": len(of_kind), "right": sum(of_kind) / len(of_kind)}
            for kind, of_kind in sorted(marks.items())
        },
    }


def _question(scene: Scene, seed: int, number: int) -> tuple[str, str]:
    """The first question of a dialogue about the scene."""
    _, (first,) = dialogue(scene, generator("val", seed, number, 1), rounds=1)
    return question_and_answer(first)


def _kind(question: str) -> str:
    """The facet a question is about, as far as its wording tells; else how it begins."""
    for facet, wordings in QUESTIONS.items():
        if question in wordings:
            return facet
    return " ".join(question.split()[:2])


@cache
def _plainest() -> tuple[dict[str, str], re.Pattern[str]]:
    """The plainest form of each phrase of a setting, and a pattern of them all."""
    plainest = {
        phrase: options[0]
        for values in SETTING_PHRASES.values()
        for options in values.values()
        for phrase in options
    }
    # "from above" is the end of "seen from above".
    longest_first = sorted(plainest, key=len, reverse=True)
    return plainest, re.compile(rf"\b({'|'.join(longest_first)})\b")
