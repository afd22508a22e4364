"""Who sits at the table in the tests: scripts with lines of their own, a retriever by rule."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import PIL.Image

from cirlab.chat.llm import Decoding, Message, Reply
from cirlab.dialogue.openings import Opening, Openings
from cirlab.dialogue.talk import Round, Talk
from cirlab.records import DecodedImage, Image

#: What a registry of the tests asks.
REGISTRY = (
    "what is in front?",
    "how is the weather?",
    "where was this taken?",
    "who is there?",
)


def image_of(number: int) -> Image:
    shade = 8 * number % 256
    return DecodedImage(f"images/{number}.jpg", PIL.Image.new("RGB", (8, 8), (shade, 0, 0)))


def openings(count: int = 10) -> Openings:
    images = [image_of(number) for number in range(count)]
    each = [Opening(image, f"a photo of thing {i}") for i, image in enumerate(images)]
    return Openings(each, {image.id: image for image in images})


def talk(*rounds: tuple[str, str], number: int = 0, best: Sequence[Image] = ()) -> Talk:
    said = tuple(Round(*each) for each in rounds)
    return Talk(number, f"a photo of thing {number}", said, best=tuple(best))


class Asks:
    """Asks by a rule.

    Args:
        say: the question, by dialogue.
        looks_at: how many images it wants to see.
        pause: seconds that a batch takes.
    """

    def __init__(self, say: Callable[[Talk], str], looks_at: int = 0, pause: float = 0.0) -> None:
        self.say, self.looks_at, self.pause = say, looks_at, pause
        self.seen: list[list[Talk]] = []

    def identity(self) -> Mapping[str, Any]:
        return {"kind": "asks", "name": "rule"}

    def ask(self, talks: Sequence[Talk]) -> list[str]:
        time.sleep(self.pause)
        self.seen.append(list(talks))
        return [self.say(each) for each in talks]


class Tells:
    """Answers by a rule, from the id of the image and the question."""

    def __init__(self, say: Callable[[str, str], str]) -> None:
        self.say = say
        self.heard: list[tuple[str, str]] = []

    def identity(self) -> Mapping[str, Any]:
        return {"kind": "tells", "name": "rule"}

    def answer(self, images: Sequence[Image], questions: Sequence[str]) -> list[str]:
        pairs = [(image.id, text) for image, text in zip(images, questions, strict=True)]
        self.heard += pairs
        return [self.say(*pair) for pair in pairs]


class Ranks:
    """Ranks a gallery in its own order, beginning at as many texts as a history has."""

    def __init__(self, ids: Sequence[str]) -> None:
        self.ids = list(ids)

    def identity(self) -> Mapping[str, Any]:
        return {"kind": "ranks"}

    def rank(self, histories: Sequence[Sequence[str]], k: int) -> list[list[str]]:
        turned = [self.ids[len(texts) :] + self.ids[: len(texts)] for texts in histories]
        return [ids[:k] for ids in turned]


class Chats:
    """A chat model that answers by a rule, from the last message and how it is decoded."""

    def __init__(self, say: Callable[[str, Decoding], str], room: int = 1000) -> None:
        self.say, self.room = say, room
        self.chats: list[list[Message]] = []
        self.decodings: list[Decoding] = []
        self.seeds: list[int] = []

    def identity(self) -> Mapping[str, Any]:
        return {"name": "script"}

    def length(self, chat: Sequence[Message]) -> int:
        return sum(len(message["content"].split()) for message in chat)

    def has_room(self, length: int, decoding: Decoding) -> bool:
        return length <= self.room

    def replies(
        self, chats: Sequence[Sequence[Message]], decoding: Decoding, seed: int
    ) -> list[Reply]:
        self.chats += [list(chat) for chat in chats]
        self.decodings.append(decoding)
        self.seeds.append(seed)
        return [Reply(self.say(chat[-1]["content"], decoding)) for chat in chats]
